from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sam2_scenes import grid_masks

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.scoring import close_objects, consistency_maps, score_tracklets, select_tracklets
from decaf_ros.segmentation.tracklets import Proposal

# One frame of 2 x 2 tokens: mean 0.45, so the mask is the upper row, and the map is -0.9 outside.
ATTENTION = np.array([[[0.9, 0.6], [0.2, 0.1]]], dtype=np.float32)


def proposal(tokens: list[list[int]], attention: float = 0.9, iou: float = 0.9, frames: int = 1) -> Proposal:
    """A candidate that covers whole tokens of 2 x 3 pixels."""
    mask = torch.tensor(tokens, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(3, 1)
    return Proposal(grid_masks(mask.expand(frames, -1, -1)), 0, (0.5, 0.5), attention, iou, 1.0)


def test_consistency_by_hand():
    upper, left, lower = proposal([[1, 1], [0, 0]]), proposal([[1, 0], [1, 0]]), proposal([[0, 0], [1, 1]])
    ranked = score_tracklets([lower, left, upper], ATTENTION, SegmentationConfig())
    # Eq. 8: 1.5 / 1.5, (0.9 - 0.9) / 1.5, -1.8 / 1.5.
    assert [tracklet.raw_consistency for tracklet in ranked] == pytest.approx([1.0, 0.0, -1.2], abs=1e-6)
    assert [tracklet.scores.combined for tracklet in ranked] == pytest.approx([2.8 / 3, 0.6, 0.2], abs=1e-6)


def test_positive_scores_are_divided_by_the_largest_and_negative_ones_stay():
    first, second, outside = proposal([[0, 1], [0, 0]]), proposal([[1, 0], [0, 0]]), proposal([[0, 0], [0, 1]])
    ranked = score_tracklets([first, second, outside], ATTENTION, SegmentationConfig())
    assert [tracklet.scores.consistency for tracklet in ranked] == pytest.approx([1.0, 0.6 / 0.9, -0.6], abs=1e-6)
    assert [tracklet.raw_consistency for tracklet in ranked] == pytest.approx([0.6, 0.4, -0.6], abs=1e-6)


def test_masks_are_averaged_over_a_token():
    mask = torch.tensor([[[1, 0, 0, 0], [1, 0, 0, 0]]]).bool()
    half = Proposal(grid_masks(mask), 0, (0.1, 0.5), 1.0, 1.0, 1.0)
    (scored,) = score_tracklets([half], ATTENTION, SegmentationConfig())
    assert scored.raw_consistency == pytest.approx((0.45 - 0.45) / 1.5, abs=1e-6)


def test_ablations_of_table_7():
    left = proposal([[1, 0], [1, 0]], attention=0.7, iou=0.5)
    (plain,) = score_tracklets([left], ATTENTION, SegmentationConfig(consistency_penalty=False))
    assert plain.raw_consistency == pytest.approx(0.9 / 1.5)
    (off,) = score_tracklets([left], ATTENTION, SegmentationConfig(consistency=False))
    assert off.scores.combined == pytest.approx(0.6)
    skewed = np.array([[[1.0, 0.0, 0.0, 0.35, 0.3, 0.0]]], dtype=np.float32)
    assert consistency_maps(skewed, SegmentationConfig())[0].tolist() == [[[True, False, False, True, True, False]]]
    assert consistency_maps(skewed, SegmentationConfig(consistency_mask="otsu"))[0].tolist() == [
        [[True, False, False, False, False, False]]
    ]


def test_a_constant_map_agrees_with_nothing():
    flat = np.full((1, 7, 9), 0.3, dtype=np.float32)  # its float32 mean is below 0.3
    (scored,) = score_tracklets([proposal([[1, 1], [1, 1]])], flat, SegmentationConfig())
    assert scored.raw_consistency == 0 and scored.scores.consistency == 0


def test_a_constant_frame_only_lowers_the_score():
    attention = np.concatenate([ATTENTION, np.full((1, 2, 2), 0.5, dtype=np.float32)])
    (scored,) = score_tracklets([proposal([[1, 1], [0, 0]], frames=2)], attention, SegmentationConfig())
    assert scored.raw_consistency == pytest.approx((1.5 - 1.0) / 1.5, abs=1e-6)


def test_selection_is_strict_and_falls_back_as_configured():
    (good,) = score_tracklets([proposal([[1, 1], [0, 0]], 0.9, 0.5)], ATTENTION, SegmentationConfig())
    assert good.scores.combined == pytest.approx(0.8)
    exact = SegmentationConfig(tracklet_threshold=good.scores.combined)
    assert select_tracklets([good], exact) == []
    below = SegmentationConfig(tracklet_threshold=good.scores.combined - 1e-6)
    assert select_tracklets([good], below) == [good]
    best = SegmentationConfig(tracklet_threshold=1.0, fallback="best")
    assert select_tracklets([good], best) == [good] and select_tracklets([], best) == []


def test_density_is_the_consistency_per_covered_token():
    # The left column is half outside the attended region, where a token counts -0.9.
    upper, left, half = proposal([[1, 1], [0, 0]]), proposal([[1, 0], [1, 0]]), proposal([[0, 0], [0, 0]])
    found = {
        id(one.masks): one.density for one in score_tracklets([upper, left, half], ATTENTION, SegmentationConfig())
    }
    assert [found[id(one.masks)] for one in (upper, left, half)] == pytest.approx([0.75, 0.0, 0.0], abs=1e-6)


# Two frames of 1 x 16 tokens: a large object of 4 tokens, a small one of 1, a weak one of 2, and nothing.
STRIP = np.array([[[0.9, 0.9, 0.9, 0.9, 1.0, 0.45, 0.45, *[0.0] * 9]]] * 2, dtype=np.float32)


def strip(*tokens: int, attention: float, iou: float = 0.9) -> Proposal:
    return proposal([[int(place in tokens) for place in range(16)]], attention, iou, frames=2)


def test_one_object_is_the_densest_with_all_tracklets_on_it():
    large, small, weak = strip(0, 1, 2, 3, attention=0.9), strip(4, attention=1.0), strip(5, 6, attention=0.5)
    part, both = strip(0, 1, attention=0.9), strip(3, 4, attention=1.0)
    ranked = score_tracklets([large, small, weak, part], STRIP, SegmentationConfig())
    assert [id(one.masks) for one in select_tracklets(ranked, SegmentationConfig())] == [id(large.masks)]
    # Eq. 8 ranks the large one first, because it covers more of the map.
    assert ranked[0].masks is large.masks
    assert [one.masks for one in select_tracklets(ranked, SegmentationConfig(), False)] == [small.masks]
    ranked = score_tracklets([large, weak, part], STRIP, SegmentationConfig())
    assert [one.masks for one in select_tracklets(ranked, SegmentationConfig(), False)] == [large.masks, part.masks]
    # The best comes first and stays, however many better ranked ones are on it.
    whole = [strip(0, 1, 2, 3, 4, attention=0.8) for _ in range(4)]
    ranked = score_tracklets([*whole, small], STRIP, SegmentationConfig())
    chosen = select_tracklets(ranked, SegmentationConfig(), False)
    assert ranked[0].masks is not small.masks and chosen[0].masks is small.masks and len(chosen) == 3
    ranked = score_tracklets([both, weak], STRIP, SegmentationConfig())
    assert [one.masks for one in select_tracklets(ranked, SegmentationConfig(), False)] == [both.masks]


def test_several_objects_are_all_that_are_dense_enough():
    large, small, weak = strip(0, 1, 2, 3, attention=0.9), strip(4, attention=1.0), strip(5, 6, attention=0.5)
    ranked = score_tracklets([large, small, weak], STRIP, SegmentationConfig())
    assert len(select_tracklets(ranked, SegmentationConfig(tracklet_threshold=1.0))) == 0
    several = select_tracklets(ranked, SegmentationConfig(tracklet_threshold=1.0), True)
    assert [one.masks for one in several] == [large.masks, small.masks]
    assert len(select_tracklets(ranked, SegmentationConfig(several_share=0.4), True)) == 3
    # One that drifted away from the map, and five on one object, of which three stay.
    drifted, again = strip(4, 8, 9, 10, attention=1.0), [strip(0, 1, 2, 3, attention=0.8) for _ in range(4)]
    ranked = score_tracklets([large, small, drifted, *again], STRIP, SegmentationConfig())
    several = select_tracklets(ranked, SegmentationConfig(), True)
    assert [one.masks for one in several] == [large.masks, again[0].masks, again[1].masks, small.masks]
    # Nothing lies on the map: the best is still an answer, which the presence score judges.
    far = score_tracklets([strip(8, attention=0.5)], STRIP, SegmentationConfig())
    assert far[0].density < 0 and select_tracklets(far, SegmentationConfig(), True) == far
    for means_several in (None, False, True):
        assert select_tracklets([], SegmentationConfig(), means_several) == []


def test_another_number_of_frames_is_named():
    with pytest.raises(ValueError, match="expected 1 key frames, got 2"):
        score_tracklets([proposal([[1, 1], [0, 0]], frames=2)], ATTENTION, SegmentationConfig())


def answered(ranked, **margins: float):
    """The tracklets with log-odds by their place in the ranking: `_0=1.5`."""
    known = {int(name[1:]): value for name, value in margins.items()}
    return [dataclasses.replace(one, verified=known.get(place)) for place, one in enumerate(ranked)]


def test_answers_decide_between_close_objects():
    large, small, weak = strip(0, 1, 2, 3, attention=0.9), strip(4, attention=1.0), strip(5, 6, attention=0.5)
    config = SegmentationConfig(verify_prior=0.0)
    ranked = score_tracklets([large, small, weak], STRIP, config)
    order = [one.masks for one in ranked]
    assert order == [large.masks, small.masks, weak.masks]

    def chosen(means_several, config=config, **margins):
        return [order.index(one.masks) for one in select_tracklets(answered(ranked, **margins), config, means_several)]

    # One object: the highest log-odds, also if all are negative; equal ones: by the scores.
    assert chosen(False) == [1] and chosen(False, _0=-1.0, _1=-2.0) == [0] and chosen(False, _0=1.0, _1=1.0) == [1]
    # Several: those with a "yes", and unasked ones by their scores; all "no": by the scores.
    assert chosen(True) == [0, 1] and chosen(True, _0=-1.0, _1=2.0) == [1] and chosen(True, _0=-1.0, _2=1.0) == [1, 2]
    assert chosen(True, _0=-1.0, _1=-2.0) == [0, 1]
    # Any number, the paper's rule; and its fallback to a single one, when none passes.
    assert chosen(None) == [0] and chosen(None, _0=-1.0, _1=2.0) == [1] and chosen(None, _0=1.0, _1=2.0) == [0, 1]
    best = SegmentationConfig(tracklet_threshold=1.0, fallback="best", verify_prior=0.0)
    assert chosen(None, best) == [0] and chosen(None, best, _0=1.0, _1=2.0) == [1]
    assert chosen(None, SegmentationConfig(tracklet_threshold=1.0), _0=1.0, _1=2.0) == []
    # Beside the scores. One: 0.9 and 1.0. Several: densities of 0.9, 1.0 and 0.45, of which 0.9 is the weakest target.
    prior = SegmentationConfig(verify_prior=10.0)
    assert chosen(False, prior, _0=0.9, _1=0.0) == [1] and chosen(False, prior, _0=1.1, _1=0.0) == [0]
    assert chosen(True, prior, _0=1.0, _2=4.4) == [0, 1] and chosen(True, prior, _0=1.0, _2=4.6) == [0, 1, 2]
    assert chosen(True, prior, _0=-1.0, _1=-0.9) == [1] and chosen(True, prior, _0=-1.0, _1=-1.1) == [0, 1]


def test_close_objects_are_those_near_the_targets_strength():
    large, part, small = strip(0, 1, 2, 3, attention=0.9), strip(1, 2, attention=0.9), strip(4, attention=1.0)
    weak = strip(5, 6, attention=0.5)
    ranked = score_tracklets([large, part, small, weak], STRIP, SegmentationConfig())
    names = {id(large.masks): "large", id(part.masks): "part", id(small.masks): "small", id(weak.masks): "weak"}

    def close(means_several, **options):
        found = close_objects(ranked, SegmentationConfig(**options), means_several)
        return [[names[id(ranked[index].masks)] for index in members] for members in found]

    # Strengths of one: 1, 0.9, 0.9, 0.475.
    assert close(False, verify_close=0.2) == [["small"], ["large", "part"]]
    assert close(False, verify_close=0.05) == [] and len(close(False, verify_close=0.6)) == 3
    assert close(False, verify_close=0.6, verify_most=2) == [["small"], ["large", "part"]]
    # Several: the weakest target has a density of 0.9, the weak one 0.45.
    assert len(close(True, verify_close=0.3)) == 2 and len(close(True, verify_close=0.5)) == 3
    assert close(None, tracklet_threshold=1.0) == [] and close_objects([], SegmentationConfig(), None) == []
