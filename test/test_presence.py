from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from decaf_ros.config import PresenceConfig
from decaf_ros.presence import PARTS, measure_presence, weighted_score
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
    def separation(peak):
        return measure_presence(AttentionMaps(ZERO, maps(peak).video, None), []).separation

    assert separation(0.0) < 0.02 < separation(0.02) < separation(0.05) < separation(0.2) < 1
    equal = maps(0.2).video.object
    assert measure_presence(AttentionMaps(ZERO, BranchMaps(equal, equal * 3), None), []).separation < 0.02
    assert measure_presence(AttentionMaps(ZERO, BranchMaps(equal, equal * 0), None), []).separation == 0


def test_branches_that_disagree_lower_the_score():
    agree, disagree = measure_presence(maps(peak=0.2), []), measure_presence(maps(peak=0.2, frame_peak=-0.2), [])
    assert agree.agreement > 0.8 and disagree.agreement == 0


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
    for asked in (0.2, None):
        found = measure_presence(maps(peak=0.2), [tracklet(0.8)], asked=asked)
        parts = {name: getattr(found, name) for name in PARTS}
        assert found.asked == asked and found.score == weighted_score(parts, PresenceConfig().weights)
    only_asked = PresenceConfig(**{f"weight_{name}": float(name == "asked") for name in PARTS})
    assert measure_presence(maps(peak=0.2), [tracklet(0.8)], only_asked, asked=0.2).score == 0.2


def test_the_answer_outweighs_the_maps_with_the_defaults():
    threshold = PresenceConfig().threshold
    assert measure_presence(maps(peak=0.2), [tracklet(0.8)], asked=0.01).score < threshold
    assert measure_presence(maps(), [tracklet(0.8)], asked=0.99).score > threshold


def test_there_is_a_weight_for_every_part():
    assert set(PresenceConfig().weights) == set(PARTS)


VIDEO, FRAMES = (8, 6, 8), (16, 12, 16)


def smooth_noise(rng, shape, over_time):
    noise = gaussian_filter(rng.standard_normal(shape), (over_time, 2, 2))
    return 5 + noise / noise.std()


NOISE = {
    "gaussian": lambda rng, shape: 5 + rng.standard_normal(shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "log-normal": lambda rng, shape: np.exp(1.5 * rng.standard_normal(shape)),
    "heavy log-normal": lambda rng, shape: np.exp(3 * rng.standard_normal(shape)),
    "cauchy": lambda rng, shape: np.abs(rng.standard_cauchy(shape)),
    "sparse": lambda rng, shape: (rng.random(shape) < 0.02) * rng.exponential(1, shape),
    "few cells": lambda rng, shape: (rng.random(shape) < 0.004) * rng.exponential(1, shape),
    "smooth": lambda rng, shape: smooth_noise(rng, shape, 0),
    "smooth in time": lambda rng, shape: smooth_noise(rng, shape, 3),
    "smooth log-normal": lambda rng, shape: np.exp(1.5 * (smooth_noise(rng, shape, 0) - 5)),
    "constant": lambda rng, shape: np.ones(shape),
    "zero": lambda rng, shape: np.zeros(shape),
}


def noise_branches(kind, seed):
    rng = np.random.default_rng(seed)
    return [
        BranchMaps(*(NOISE[kind](rng, shape).clip(0).astype(np.float32) for _ in range(2))) for shape in (VIDEO, FRAMES)
    ]


def variants(video, frames):
    """Both branches and each alone, with and without contrast."""
    for contrast in (True, False):
        both = [one if contrast else BranchMaps(one.object, one.object * 0) for one in (video, frames)]
        for chosen in (both, [both[0], None], [None, both[1]]):
            yield AttentionMaps(np.zeros(FRAMES, np.float32), *chosen)


@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_never_there(kind):
    threshold = PresenceConfig().threshold
    for seed in range(8):
        for noise_maps in variants(*noise_branches(kind, seed)):
            assert measure_presence(noise_maps, []).score < threshold, seed


@pytest.mark.parametrize("kind", ["gaussian", "uniform", "log-normal", "constant"])
def test_a_planted_blob_is_there(kind):
    threshold = PresenceConfig().threshold
    for seed in range(8):
        rng = np.random.default_rng(seed)
        place = rng.uniform(0.25, 0.75, 2)
        planted = []
        for branch in noise_branches(kind, seed):
            height, width = branch.object.shape[1:]
            rows, columns = np.mgrid[:height, :width] + 0.5
            blob = np.exp(-((rows - place[0] * height) ** 2 + (columns - place[1] * width) ** 2) / 2)
            strong = 6 * (branch.object.max() - np.median(branch.object)) or 1
            planted.append(BranchMaps((branch.object + strong * blob).astype(np.float32), branch.background))
        for blob_maps in variants(*planted):
            assert measure_presence(blob_maps, [tracklet(0.6)]).score > threshold, seed


def test_the_score_of_noise_is_the_same_every_time():
    video, frames = noise_branches("log-normal", 0)
    whole = AttentionMaps(np.zeros(FRAMES, np.float32), video, frames)
    assert measure_presence(whole, []) == measure_presence(whole, [])


def test_a_single_frame_can_be_there():
    one = AttentionMaps(ZERO[:1], BranchMaps(maps(0.2).video.object[:1], noise(9)[:1]), None)
    assert measure_presence(one, [tracklet(0.8)]).score > PresenceConfig().threshold
