"""Where targets may be: one place for each, a size that fits, and a way from where they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
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

from decaf_ros.online.catch_up import apart_from
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
    targets = _two_of_one_kind(config, 8)
    assert not targets.living[1].appearance.contradicts(
        frame(6), make_mask(3, 10), _looking_alike(0).look, config.tracking
    )
    result = follow(targets, 6, {0: _looking_alike(0), 1: _looking_alike(3, 10)}, config)
    assert states_of(result) == [(1, "TRACKED"), (2, "OCCLUDED")]
    result = follow(targets, 7, {0: _looking_alike(0), 1: _looking_alike(8)}, config)
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


def test_a_tracklet_on_a_settled_object_needs_no_search():
    on_it, elsewhere = make_candidate(1, 2).tracklet, make_candidate(2, 20).tracklet
    assert apart_from([on_it, elsewhere], (NOW,), [(NOW, make_mask(1))], 0.5) == [elsewhere]
    assert apart_from([on_it], (NOW,), [(frame(1), make_mask(1))], 0.5) == [on_it], "no key frame on which to compare"


SLIVER = np.array([0.93, 0.37], np.float32)  # of an object that looks like LOOK: doubtful, but not different


def _half_hidden(config):
    """Target 1 at 0, visible on frame 6 but not surely."""
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
    for number in range(1, 6):
        follow(targets, number, {0: _looking_alike(0)}, config)
    targets.update(frame(6), {0: TrackStep(make_mask(0, 6), 3.0, SLIVER)}, config)
    assert targets.living[0].seen_frame is not None and not targets.living[0].is_sure
    return targets


@pytest.mark.parametrize(("left", "key"), [(1, 5), (20, 0)])
def test_a_grounding_does_not_move_a_visible_target(left, key):
    """The candidate is on it on an old frame, and surely seen now: there, or on a look-alike."""
    config = settings()
    targets = _half_hidden(config)
    now = targets.living[0].seen_frame
    candidate = make_candidate_on(targets, 5, left)
    candidate.masks = {targets.living[0].sure_frame: make_mask(0)}
    candidate.see(now, _looking_alike(left), config.tracking)
    targets.merge([candidate], QUERY, "", now, config, may_join=False)
    assert targets.living[0].key == key


class _Finding:
    """A tracker whose search finds the given masks, all of the same looks."""

    def __init__(self, *masks):
        self.masks = np.array(masks)
        self.added = []

    def search(self, where, example):
        looks = np.tile(np.array([1, 0], np.float32), (len(self.masks), 1))
        return self.masks, looks, torch.from_numpy(self.masks.astype(np.float32) - 0.5)

    def add(self, keys, where, masks):
        self.added += keys


@pytest.mark.parametrize(("left", "found"), [(1, [9]), (20, [])])
def test_a_search_does_not_move_a_visible_target(left, found):
    config = settings(regrounding__search_after_s=0.0)
    targets, tracker = _half_hidden(config), _Finding(make_mask(left))
    targets.search(frame(7), tracker, iter([9]), config)
    assert tracker.added == [9], "hidden on this frame: it may be anywhere"
    targets, tracker = _half_hidden(config), _Finding(make_mask(left))
    targets.search(targets.living[0].seen_frame, tracker, iter([9]), config)
    assert tracker.added == found


def test_what_fits_two_hidden_targets_goes_to_the_more_similar_one():
    config = settings(regrounding__search_after_s=0.0, tracking__appearance_margin=1.0)
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 20)], QUERY, "mug", NOW, config)
    similar = TrackStep(make_mask(0), 3.0, np.array([0.99, 0.14], np.float32))
    for number in range(1, 6):
        follow(targets, number, {0: similar, 1: _looking_alike(20)}, config)
    hidden = frame(6)
    targets.update(hidden, {0: HIDDEN, 1: HIDDEN}, config)
    tracker = _Finding(make_mask(10))
    targets.search(hidden, tracker, iter([8, 9]), config)
    assert [target.seen_frame is hidden for target in targets.living] == [False, True]


def test_what_was_found_again_is_tracked_once_it_is_surely_seen():
    config = settings(regrounding__search_after_s=0.0)
    targets = _half_hidden(config)
    now = frame(7)
    targets.update(now, {0: HIDDEN}, config)
    assert targets.find(targets.living[0], 9, now, TrackStep(make_mask(2, 4), 1.0, SLIVER), config)
    for number in range(8, 12):
        result = follow(targets, number, {9: TrackStep(make_mask(2, 4), 3.0, SLIVER)}, config)
        assert states_of(result) == [(1, "TENTATIVE")]
    assert states_of(follow(targets, 12, {9: _looking_alike(0)}, config)) == [(1, "TRACKED")]
