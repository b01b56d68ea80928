from __future__ import annotations

import numpy as np

from decaf_ros.presence import WEIGHTS, measure_presence, weighted_score
from decaf_ros.types import AttentionMaps, BranchMaps, Tracklet, TrackletScores

ZERO = np.zeros((4, 6, 8), np.float32)


def noise(seed, scale=0.01):
    return np.random.default_rng(seed).random((4, 6, 8), np.float32) * scale


def maps(peak=0.0, seeds=(0, 1, 2, 3), frame_peak=None):
    video, frames = noise(seeds[0]), noise(seeds[1])
    video[:, 2:4, 3:5] += peak
    frames[:, 2:4, 3:5] += peak if frame_peak is None else frame_peak
    return AttentionMaps(ZERO, BranchMaps(video, noise(seeds[2])), BranchMaps(frames, noise(seeds[3])))


def tracklet(consistency, iou=0.9, object_score=4.0):
    masks = np.zeros((4, 6, 8), bool)
    return Tracklet(masks, 0, (0.5, 0.5), TrackletScores(0.9, iou, 1.0, 0.9), consistency, object_score)


def test_a_clear_target_scores_above_noise():
    present = measure_presence(maps(peak=0.2), [tracklet(0.8)])
    absent = measure_presence(maps(), [tracklet(-2.0, iou=0.5, object_score=-3.0)])
    assert present.score > absent.score + 0.3
    for part in ("contrast", "separation", "consistency", "agreement", "iou", "object_presence"):
        assert 0 <= getattr(absent, part) < getattr(present, part) <= 1


def test_contrast_does_not_depend_on_the_scale_of_the_map():
    small = maps(peak=0.2)
    large = AttentionMaps(ZERO, *(BranchMaps(b.object * 8, b.background * 8) for b in (small.video, small.frames)))
    assert abs(measure_presence(small, []).contrast - measure_presence(large, []).contrast) < 1e-4


def test_separation_grows_with_the_share_of_attention_that_moves():
    half, other = np.zeros_like(ZERO), np.zeros_like(ZERO)
    half[:, 0], other[:, 0, :4], other[:, 1, :4] = 0.25, 8.0, 8.0
    branch = BranchMaps(half, other)
    assert measure_presence(AttentionMaps(ZERO, None, branch), []).separation == 0.5 / 0.55
    equal = BranchMaps(half, half * 3)
    assert measure_presence(AttentionMaps(ZERO, branch, equal), []).separation == 0.5 / 0.55 / 2
    assert measure_presence(AttentionMaps(ZERO, BranchMaps(half, half * 0), None), []).separation == 0


def test_branches_that_disagree_lower_the_score():
    agree, disagree = measure_presence(maps(peak=0.2), []), measure_presence(maps(peak=0.2, frame_peak=-0.2), [])
    assert agree.agreement > 0.9 and disagree.agreement == 0


def test_without_a_background_there_is_no_separation():
    both = maps(peak=0.2)
    alone = AttentionMaps(ZERO, BranchMaps(both.video.object, ZERO), BranchMaps(both.frames.object, ZERO))
    found, whole = measure_presence(alone, [tracklet(0.8)]), measure_presence(both, [tracklet(0.8)])
    assert found.separation == 0 and abs(found.score - whole.score) < 0.2 and found.score > 0.6


def test_agreement_needs_two_branches():
    both = maps(peak=0.2)
    alone = measure_presence(AttentionMaps(ZERO, both.video, None), [tracklet(0.8)])
    assert alone.agreement == 0 and alone.score > 0.6


def test_no_candidate_and_constant_maps():
    flat = AttentionMaps(ZERO, BranchMaps(ZERO, ZERO), BranchMaps(ZERO, ZERO))
    assert measure_presence(flat, []).score == 0


def test_weighted_score():
    weights = {"a": 3.0, "b": 1.0, "c": 0.0}
    assert weighted_score({"a": 1.0, "b": 0.0, "c": 0.5}, weights) == 0.75
    assert weighted_score({"a": None, "b": 0.4, "c": 0.9}, weights) == 0.4
    assert weighted_score({"a": None, "b": None, "c": 0.9}, weights) == 0


def test_score_is_the_weighted_mean_of_the_parts():
    found = measure_presence(maps(peak=0.2), [tracklet(0.8)])
    parts = {name: getattr(found, name) for name in WEIGHTS}
    assert found.score == weighted_score(parts, WEIGHTS)
