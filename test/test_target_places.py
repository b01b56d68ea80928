"""Where targets may be: one place for each, a size that fits, and a way from where they were."""

from __future__ import annotations

import numpy as np
from scripted import frame, settings
from target_scenes import (
    HIDDEN,
    NOW,
    QUERY,
    follow,
    make_candidate,
    make_candidate_on,
    make_mask,
    seen_step,
    states_of,
)

from decaf_ros.online.targets import Targets
from decaf_ros.segmentation.tracker import TrackStep


def _looking_alike(left: int, width: int = 8) -> TrackStep:
    return TrackStep(make_mask(left, width), 3.0, np.array([1, 0], np.float32))


def _two_of_one_kind(config, second=20):
    """Targets 1 and 2, apart and tracked, at 0 and at `second`."""
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, second)], QUERY, "mug", NOW, config)
    for number in range(1, 6):
        follow(targets, number, {0: _looking_alike(0), 1: _looking_alike(second)}, config)
    return targets


def test_a_target_that_goes_over_to_another_one_is_occluded():
    """The one that was there keeps its place, also if the other has the older id."""
    config = settings(tracking__lost_after_s=0.35)
    targets = _two_of_one_kind(config)
    there = _looking_alike(20)
    rejected = targets.update(frame(6), {0: _looking_alike(19), 1: there}, config)
    result = targets.publish(frame(6), [QUERY])
    assert rejected == [0] and states_of(result) == [(1, "OCCLUDED"), (2, "TRACKED")]
    assert result.targets[0].area_px == 0
    for number in range(7, 12):
        result = follow(targets, number, {0: there, 1: there}, config)
    assert states_of(result) == [(2, "TRACKED")], "a missing one does not come back there either"
    result = follow(targets, 12, {0: _looking_alike(2), 1: there}, config)
    assert states_of(result) == [(2, "TRACKED"), (1, "TENTATIVE")]


def test_a_mask_that_spreads_over_another_target_gives_way():
    config = settings()
    targets = _two_of_one_kind(config, 10)
    result = follow(targets, 6, {0: _looking_alike(0), 1: _looking_alike(2, 16)}, config)
    assert states_of(result) == [(1, "TRACKED"), (2, "OCCLUDED")]
    result = follow(targets, 7, {0: _looking_alike(0), 1: _looking_alike(10)}, config)
    assert states_of(result) == [(1, "TRACKED"), (2, "TRACKED")]


def test_a_visible_target_does_not_go_on_with_a_candidate_that_was_lost_on_the_way():
    """Both match it. The better match was last seen on an old key frame."""
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
    follow(targets, 1, {0: _looking_alike(0)}, config)
    now = frame(2)
    targets.update(now, {0: TrackStep(make_mask(0), 3.0, np.array([0.93, 0.37], np.float32))}, config)
    assert targets.living[0].seen_frame is now and targets.living[0].sure_frame is not now
    old, late = make_candidate_on(targets, 5, 0), make_candidate_on(targets, 6, 1)
    old.masks = late.masks = {targets.living[0].sure_frame: make_mask(0)}
    old.seen_frame = targets.living[0].sure_frame
    targets.merge([old], QUERY, "", now, config, may_join=False)
    assert targets.living[0].key == 0
    late.see(now, _looking_alike(1), config.tracking)
    targets.merge([old, late], QUERY, "", now, config, may_join=False)
    assert targets.living[0].key == 6


def test_a_candidate_that_drifted_off_after_the_window_is_no_further_target():
    """Two tracklets of one object; SAM 2 takes the worse one to something else on the way to the newest frame."""
    config, now = settings(), frame(1)
    right, drifted = make_candidate(0, 0, 0.9), make_candidate(1, 1, 0.8)
    right.see(now, seen_step(2), config.tracking)
    drifted.see(now, seen_step(20), config.tracking)
    targets = Targets()
    targets.merge([right, drifted], QUERY, "", now, config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 0)]


def test_a_tracklet_on_a_target_that_is_surely_seen_needs_no_search():
    config, now = settings(), frame(1)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    targets.update(now, {0: seen_step(1)}, config, is_keyframe=True)
    on_it, elsewhere = make_candidate(1, 2).tracklet, make_candidate(2, 20).tracklet
    assert targets.is_settled(on_it, (now,), now, config)
    assert not targets.is_settled(elsewhere, (now,), now, config)
    assert not targets.is_settled(on_it, (NOW,), now, config), "no key frame on which to compare"
    targets.update(frame(2), {0: HIDDEN}, config)
    assert not targets.is_settled(on_it, (now,), frame(2), config)
