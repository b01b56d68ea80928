"""Lost targets that SAM 2 goes on looking for."""

from __future__ import annotations

import numpy as np
import pytest
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

from decaf_ros.config import DecafConfig
from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate
from decaf_ros.segmentation.tracker import TrackStep

LOOK, SIMILAR = np.array([1, 0], np.float32), np.array([0.995, 0.1], np.float32)
OTHER = np.array([0.6, 0.8], np.float32)


def _known_and_missing(config: DecafConfig) -> Targets:
    """Target 1, seen on ten frames as LOOK and lost after twenty."""
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
    for number in range(1, 11):
        follow(targets, number, {0: TrackStep(make_mask(0), 3.0, LOOK)}, config)
    for number in range(11, 21):
        result = follow(targets, number, {0: HIDDEN}, config)
    assert states_of(result) == [] and targets.tracker_keys == {0}
    return targets


def test_the_tracker_finds_a_missing_target_again():
    config = settings(tracking__lost_after_s=0.5)
    targets = _known_and_missing(config)
    for step in (
        TrackStep(make_mask(20), 3.0, OTHER),
        HIDDEN,
        TrackStep(make_mask(20), 3.0),
    ):  # no evidence is not enough
        assert states_of(follow(targets, 21, {0: step}, config)) == []
    again = TrackStep(make_mask(20), 3.0, SIMILAR)
    assert states_of(follow(targets, 22, {0: again}, config)) == [(1, "TENTATIVE")]
    result = follow(targets, 23, {0: again}, config)
    assert states_of(result) == [(1, "TRACKED")] and result.targets[0].area_px == 64
    assert not targets.sought(frame(23), 0.5, QUERY)


@pytest.mark.parametrize("look, ids", [(SIMILAR, [1]), (OTHER, []), (None, [])])
def test_without_a_shared_frame_a_candidate_has_to_look_like_the_missing_target(look, ids):
    config = settings(tracking__lost_after_s=0.5)
    targets = _known_and_missing(config)
    newest = frame(21)
    found = Candidate(5, make_candidate(5, 20).tracklet, (newest,))
    found.look = look
    targets.merge([found], QUERY, "", newest, config, may_join=False)
    assert [target.id for target in targets.living] == ids


def test_a_doubtful_candidate_does_not_continue_a_target():
    """It matches on an old frame, but has drifted to something else since."""
    config = settings(tracking__lost_after_s=9.0, tracking__appearance_margin=0.3)
    for look, key in ((SIMILAR, 5), (np.array([0.9, 0.44], np.float32), 0)):
        targets = Targets()
        targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
        for number in range(1, 11):
            follow(targets, number, {0: TrackStep(make_mask(0), 3.0, LOOK)}, config)
        follow(targets, 11, {0: HIDDEN}, config)
        found = make_candidate_on(targets, 5, 0)
        found.look = look
        targets.merge([found], QUERY, "", frame(11), config, may_join=False)
        assert [(target.id, target.key, target.misses) for target in targets.living] == [(1, key, 0)]


def test_a_target_of_doubtful_masks_is_visible_and_searched_for_by_its_looks():
    config = settings(tracking__appearance_margin=0.6)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
    for number in range(1, 11):
        follow(targets, number, {0: TrackStep(make_mask(0), 3.0, LOOK)}, config)
    doubtful = TrackStep(make_mask(0), 3.0, np.array([0.8, 0.6], np.float32))
    for number in range(11, 21):
        now = frame(number)
        assert targets.update(now, {0: doubtful}, config) == [0], "SAM 2 does not learn it"
        assert targets.publish(now, [QUERY]).targets[0].area_px == 64
        assert bool(targets.unsure(now, 0.95)) == (number == 20)
        assert not targets.sought(now, 0.0, QUERY), "nothing is grounded for a visible target"


@pytest.mark.parametrize(("left", "key"), [(0, 5), (20, 0)])
def test_a_grounding_that_agrees_with_a_doubtful_target_teaches_its_looks(left, key):
    """The first source mask was inexact. A candidate that was elsewhere on the newest frame teaches nothing."""
    config = settings(tracking__appearance_margin=0.6)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "mug", NOW, config)
    follow(targets, 1, {0: TrackStep(make_mask(0), 3.0, LOOK)}, config)
    now, exact = frame(2), TrackStep(make_mask(0), 3.0, np.array([0.8, 0.6], np.float32))
    targets.update(now, {0: exact}, config)
    found = make_candidate_on(targets, 5, 0)
    found.frames = (frame(1), now)
    found.masks = {targets.living[0].sure_frame: make_mask(0)}
    found.see(now, exact._replace(mask=make_mask(left)), config.tracking)
    targets.merge([found], QUERY, "", now, config, may_join=False)
    assert [(target.id, target.key, target.is_sure) for target in targets.living] == [(1, key, key == 5)]
    follow(targets, 3, {key: exact}, config)
    assert targets.living[0].is_sure == (key == 5)


def test_a_target_found_by_its_looks_keeps_its_id_unless_another_is_there():
    config = settings(tracking__lost_after_s=0.5)
    targets = _known_and_missing(config)
    targets.merge([make_candidate(5, 20)], QUERY, "", frame(20), config)
    now = frame(21)
    targets.update(now, {0: HIDDEN, 5: seen_step(20)}, config)
    (missing,) = [target for target in targets.unsure(now, 0.5) if target.id == 1]
    assert not targets.find(missing, 8, now, TrackStep(make_mask(21), 1.0, LOOK), config)
    assert targets.find(missing, 9, now, TrackStep(make_mask(5), 1.0, LOOK), config)
    result = targets.publish(now, [QUERY])
    assert sorted(states_of(result)) == [(1, "TENTATIVE"), (2, "TENTATIVE")] and targets.tracker_keys == {5, 9}
    assert not targets.sought(now, 0.5, QUERY)


def test_keys_of_hidden_and_rejected_targets_are_returned():
    config = settings(tracking__appearance_margin=0.1)
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 20)], QUERY, "", NOW, config)
    seen = {0: TrackStep(make_mask(0), 3.0, LOOK), 1: TrackStep(make_mask(20), 3.0, LOOK)}
    assert targets.update(frame(1), seen, config) == []
    assert targets.update(frame(2), {0: HIDDEN, 1: TrackStep(make_mask(20), 3.0, OTHER)}, config) == [0, 1]


def test_a_missing_target_waits_while_there_is_no_room():
    config = settings(tracking__lost_after_s=0.5, tracking__max_targets=1)
    targets = _known_and_missing(config)
    targets.merge([make_candidate(5, 40 - 12)], QUERY, "", frame(21), config)  # another object takes the place
    assert [target.id for target in targets.living] == [2]
    again = {0: TrackStep(make_mask(10), 3.0, LOOK), 5: seen_step(28)}
    assert states_of(follow(targets, 22, again, config))[0][0] == 2 and len(targets.living) == 1
    fewer = settings(tracking__max_targets=1)
    targets.merge([make_candidate(6, 4), make_candidate(7, 14)], QUERY, "", frame(22), fewer)
    assert len(targets.living) == 1


def test_missing_targets_are_bounded():
    config = settings(tracking__lost_after_s=0.0)
    targets = Targets()
    for number in range(0, 80, 2):
        newest = frame(number)
        other = Candidate(
            number, make_candidate(number, 0).tracklet, (newest,)
        )  # shares no frame with the missing ones
        targets.merge([other], QUERY, "", newest, config)
        steps = dict.fromkeys(targets.tracker_keys, HIDDEN)
        follow(targets, number + 1, steps, config)
    assert len(targets.tracker_keys) == 16 and targets.living == []
