"""Living targets: states, labels, ids, and merging of a new grounding."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scripted import frame, settings
from target_scenes import (
    HIDDEN,
    NOW,
    QUERY,
    SIZE_HW,
    follow,
    make_candidate,
    make_candidate_on,
    make_mask,
    seen_step,
    states_of,
)

from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import TargetState, Tracklet, TrackletScores


def test_streams_can_share_an_id_supply():
    ids = itertools.count(5)
    first, second = Targets(ids), Targets(ids)
    first.merge([make_candidate(0, 0), make_candidate(1, 20)], QUERY, "", NOW, settings())
    second.merge([make_candidate(0, 0)], QUERY, "", NOW, settings())
    assert [target.id for target in (*first.living, *second.living)] == [5, 6, 7]


def test_tentative_tracked_occluded_lost_once():
    config = settings(tracking__confirm_frames=2, tracking__lost_after_s=0.25)
    targets = Targets()
    targets.merge([make_candidate(7, 0)], QUERY, "mug", NOW, config)
    steps = {1: seen_step(1), 2: HIDDEN, 3: seen_step(3), 4: HIDDEN, 5: HIDDEN, 6: HIDDEN, 7: HIDDEN}
    published = {number: states_of(follow(targets, number, {7: step}, config)) for number, step in steps.items()}
    assert published == {
        1: [(1, "TENTATIVE")],
        2: [(1, "TENTATIVE")],  # hidden, but never confirmed
        3: [(1, "TRACKED")],
        4: [(1, "OCCLUDED")],
        5: [(1, "OCCLUDED")],  # 0.2 s
        6: [(1, "LOST")],  # 0.3 s after it was last seen
        7: [],
    }


def test_a_target_that_starts_hidden_has_the_full_time_until_lost():
    config = settings(tracking__lost_after_s=0.25)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", frame(10), config)  # last seen a second before
    states = {number: states_of(follow(targets, number, {0: HIDDEN}, config)) for number in (11, 12, 13)}
    assert states == {11: [(1, "TENTATIVE")], 12: [(1, "TENTATIVE")], 13: [(1, "LOST")]}


def test_an_occluded_target_reappears():
    config = settings(tracking__confirm_frames=1)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    states = []
    for number, step in enumerate([seen_step(0), HIDDEN, seen_step(2)], start=1):
        (target,) = follow(targets, number, {0: step}, config).targets
        states.append((target.state.name, target.area_px, target.box_xywh))
    assert states == [("TRACKED", 64, (0, 4, 8, 8)), ("OCCLUDED", 0, (0, 0, 0, 0)), ("TRACKED", 64, (2, 4, 8, 8))]


@pytest.mark.parametrize("step", [TrackStep(make_mask(0), 1.0), TrackStep(np.zeros(SIZE_HW, bool), 5.0)])
def test_seen_needs_the_object_score_and_a_mask(step):
    config = settings(tracking__confirm_frames=1, tracking__object_score=1.0)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    result = follow(targets, 1, {0: step}, config)
    assert result.targets[0].state is TargetState.TENTATIVE and result.targets[0].area_px == 0
    assert not result.labels.any()


def test_in_an_overlap_the_higher_score_wins():
    config = settings()
    targets = Targets()
    candidates = [make_candidate(0, 0, 0.9), make_candidate(1, 4, 0.95), make_candidate(2, 8, 0.9)]
    targets.merge(candidates, QUERY, "", NOW, config)
    result = follow(targets, 1, {0: seen_step(0), 1: seen_step(4), 2: seen_step(8)}, config)
    assert result.labels[5, :18].tolist() == [1] * 4 + [2] * 8 + [3] * 4 + [0] * 2
    assert [target.area_px for target in result.targets] == [64, 64, 64]  # masks themselves may overlap


def test_with_equal_scores_the_older_id_wins():
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 4)], QUERY, "", NOW, settings())
    assert (
        follow(targets, 1, {0: seen_step(0), 1: seen_step(4)}, settings()).labels[5, :12].tolist() == [1] * 8 + [2] * 4
    )


def test_a_match_keeps_id_and_label_and_renews_memory_and_scores():
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 20)], QUERY, "mug", NOW, config)
    targets.update(frame(1), {0: HIDDEN, 1: HIDDEN}, config)
    # The same objects in the other order, shifted by one pixel, with another category.
    again = [make_candidate(2, 19, 0.7), make_candidate(3, 1, 0.6)]
    targets.merge(again, QUERY, "cup", frame(1), config)
    result = follow(targets, 2, {2: seen_step(19), 3: seen_step(1)}, config)
    rows = [
        (target.id, target.label, target.category, target.scores.combined, target.box_xywh[0])
        for target in result.targets
    ]
    assert rows == [(1, 1, "mug", 0.6, 1), (2, 2, "mug", 0.7, 19)]


def test_consecutive_misses_lose_a_hidden_target_and_its_id_waits_for_it():
    config = settings(regrounding__max_misses=2)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    hidden = frame(1)
    targets.update(hidden, {0: HIDDEN}, config)
    targets.merge([], QUERY, "", hidden, config)
    targets.merge([make_candidate(1, 0)], QUERY, "", hidden, config)  # a match resets the misses
    targets.merge([], QUERY, "", hidden, config)
    assert [target.id for target in targets.living] == [1]
    targets.merge([make_candidate(2, 20)], QUERY, "", hidden, config)
    assert [target.id for target in targets.living] == [2]
    result = targets.publish(hidden, [QUERY])
    assert [(target.id, target.label, target.state.name) for target in result.targets] == [
        (1, 1, "LOST"),
        (2, 2, "TENTATIVE"),
    ]
    assert targets.sought(hidden, 60.0, QUERY)
    # Found again while label 1 is taken: the same id with another label.
    targets.merge([make_candidate(3, 12), make_candidate(4, 20)], QUERY, "", hidden, config)
    again = [make_candidate(5, 0), make_candidate(6, 12), make_candidate(7, 20)]
    targets.merge(again, QUERY, "", hidden, config, may_join=False)
    assert [target.id for target in targets.living] == [2, 3], "SAM 2 lost the candidate before the newest frame"
    again[0].seen_frame = hidden
    targets.merge(again, QUERY, "", hidden, config, may_join=False)
    assert [(target.id, target.label) for target in targets.living] == [(2, 2), (3, 1), (1, 3)]
    assert not targets.sought(hidden, 60.0, QUERY)
    targets.drop(QUERY)
    targets.merge([make_candidate(8, 0)], QUERY, "", frame(2), config)
    assert [(target.id, target.label) for target in targets.living] == [(4, 1)]


def test_a_visible_target_stays_as_it_is_and_counts_no_miss():
    config = settings(regrounding__max_misses=1)
    targets = Targets()
    targets.merge([make_candidate(0, 0, 0.9)], QUERY, "", NOW, config)
    newest = frame(1)
    targets.update(newest, {0: seen_step(0)}, config)
    targets.merge([make_candidate_on(targets, 1, 0)], QUERY, "", newest, config, may_join=False)
    targets.merge([], QUERY, "", newest, config, may_join=False)
    targets.merge([make_candidate(2, 30)], QUERY, "", newest, config, may_join=False)
    assert [(target.id, target.key, target.misses) for target in targets.living] == [(1, 0, 0)]


def test_after_a_reset_nothing_is_searched_for():
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 20)], QUERY, "", NOW, settings())
    targets.lose_all()
    targets.forget_missing()
    targets.publish(NOW, [QUERY])
    assert not targets.sought(frame(99), 0.0, QUERY) and targets.last_key_frames(QUERY) == []


def test_max_targets_prefers_living_targets_then_the_best_candidates():
    config = settings(tracking__max_targets=2)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    new = [make_candidate(1, 10, 0.99), make_candidate(2, 20, 0.98)]
    targets.merge(new, QUERY, "", NOW, config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 0), (2, 1)]


def test_a_hidden_target_is_matched_where_it_was_last_seen():
    config = settings(tracking__confirm_frames=1)
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    seen, hidden = frame(1), frame(2)
    targets.update(seen, {0: seen_step(5)}, config)
    targets.update(hidden, {0: HIDDEN}, config)
    found = make_candidate(1, 0)
    found.masks = {seen: make_mask(6), hidden: make_mask(12)}  # the new grounding sees it again
    targets.merge([found], QUERY, "", hidden, config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 1)]


def test_a_target_hidden_since_before_a_candidates_source_is_compared_on_a_key_frame():
    """The catch-up runs forward only, so the candidate has no mask on the target's last-seen frame."""
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    first, second, third = frame(1), frame(2), frame(5)
    targets.update(first, {0: seen_step(2)}, config, is_keyframe=True)
    targets.update(second, {0: seen_step(4)}, config)
    targets.update(third, {0: HIDDEN}, config)
    scores = TrackletScores(0.9, 0.9, 0.9, 0.9)
    # On that key frame, a candidate elsewhere is another object, one at the same position the same object.
    for left, ids in ((30, [1, 2]), (2, [1, 2])):
        masks = np.stack([make_mask(left), make_mask(40)])
        again = Candidate(9, Tracklet(masks, 1, (0.5, 0.5), scores, 1.0, 3.0), (first, third))
        targets.merge([again], QUERY, "", third, config)
        assert [target.id for target in targets.living] == ids
    assert targets.living[0].key == 9


def test_two_targets_on_one_object_merge_into_the_older_one():
    """The younger one starts as a small part, with an IoU too low for suppression."""
    config = settings()
    targets = Targets()
    part, whole = TrackStep(make_mask(0, 4), 3.0), seen_step(0)
    targets.merge([make_candidate(0, 0), make_candidate(1, 0, 0.95, width=4)], QUERY, "", NOW, config)
    # A smaller overlap restarts the count; a frame on which one target is hidden does not change it.
    steps = [part, whole, whole, part, whole, HIDDEN, whole, whole]
    for number, step in enumerate(steps, start=1):
        result = follow(targets, number, {0: whole, 1: step}, config)
        assert [target.id for target in result.targets] == [1, 2]
    assert [target.state.name for target in result.targets] == ["TRACKED", "LOST"]
    assert [target.area_px for target in result.targets] == [64, 0] and set(np.unique(result.labels)) == {0, 1}
    assert states_of(follow(targets, 9, {0: whole}, config)) == [(1, "TRACKED")]


def test_a_renewed_memory_restarts_the_duplicate_count():
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 0, width=5)], QUERY, "", NOW, config)
    for number in (1, 2):
        follow(targets, number, {0: seen_step(0), 1: seen_step(0)}, config)
    targets.merge(
        [make_candidate_on(targets, 2, 0), make_candidate_on(targets, 3, 0, width=5)], QUERY, "", frame(2), config
    )
    states = [states_of(follow(targets, number, {2: seen_step(0), 3: seen_step(0)}, config))[1] for number in (3, 4, 5)]
    assert states == [(2, "TRACKED"), (2, "TRACKED"), (2, "LOST")]


def test_a_duplicate_of_a_lost_target_stays():
    """The third target duplicates the second, which is lost, but not the first."""
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(key, 0, width=width) for key, width in enumerate((16, 8, 5))], QUERY, "", NOW, config)
    steps = {key: TrackStep(make_mask(0, width), 3.0) for key, width in enumerate((16, 12, 9))}
    for number in (1, 2, 3, 4):
        result = follow(targets, number, {target.key: steps[target.key] for target in targets.living}, config)
    assert [target.id for target in result.targets] == [1, 3]


@pytest.mark.parametrize("apart_on", ["the window", "a followed frame", "the last-seen frame of a hidden one"])
def test_two_targets_that_were_apart_do_not_merge(apart_on):
    config = settings()
    targets = Targets()
    first, second = make_candidate(0, 0), make_candidate(1, 0, width=5)
    newest = frame(1)
    if apart_on == "the window":
        # Apart on the first key frame; on the newest frame the tracker has one mask for both.
        for candidate, left in ((first, 0), (second, 20)):
            candidate.tracklet = replace(candidate.tracklet, masks=np.stack([make_mask(left), make_mask(0)]))
            candidate.frames, candidate.seen_frame = (NOW, newest), newest
        targets.merge([first, second], QUERY, "", newest, config)
    elif apart_on == "a followed frame":
        targets.merge([first, second], QUERY, "", newest, config)
        follow(targets, 2, {0: seen_step(0), 1: seen_step(20)}, config)
    else:
        targets.merge([first], QUERY, "", newest, config)
        follow(targets, 1, {0: seen_step(30)}, config)
        follow(targets, 2, {0: HIDDEN}, config)
        targets.merge([make_candidate_on(targets, 1, 0)], QUERY, "", frame(2), config)
    for number in range(3, 9):
        result = follow(targets, number, {0: seen_step(0), 1: seen_step(0)}, config)
    assert [target.id for target in result.targets] == [1, 2]


def test_duplicate_candidates_give_one_target():
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 1), make_candidate(2, 20)], QUERY, "", NOW, config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 0), (2, 2)]
    targets.update(frame(1), {0: HIDDEN, 2: HIDDEN}, config)
    # The better candidate continues the target, not the closer one.
    again = [make_candidate(3, 1), make_candidate(4, 0), make_candidate(5, 19), make_candidate(6, 8)]
    targets.merge(again, QUERY, "", frame(1), config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 3), (2, 5), (3, 6)]


def test_of_duplicates_the_one_that_was_surely_seen_last_is_followed():
    """The tracker lost the better one, whose source mask was inexact."""
    config = settings()
    targets = Targets()
    newest = frame(1)
    lost, seen = make_candidate(0, 0, 0.95, width=13), make_candidate(1, 0, 0.9)
    for candidate in (lost, seen):
        candidate.frames = (NOW, newest)
        candidate.tracklet = replace(candidate.tracklet, masks=np.stack([candidate.seen_mask, make_mask(0)]))
    seen.see(newest, seen_step(0), config.tracking)
    targets.merge([lost, seen], QUERY, "", newest, config)
    # On one key frame of two they match: too few for duplicates.
    assert [(target.id, target.key) for target in targets.living] == [(1, 0), (2, 1)]
    lost.frames = seen.frames = (frame(-1), NOW, newest)
    for candidate in (lost, seen):
        candidate.tracklet = replace(candidate.tracklet, masks=np.stack([*candidate.tracklet.masks, make_mask(0)]))
    targets = Targets()
    targets.merge([lost, seen], QUERY, "", newest, config)
    assert [(target.id, target.key) for target in targets.living] == [(1, 1)]


def test_of_two_targets_on_one_object_the_surely_seen_one_stays():
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 0, width=5)], QUERY, "", NOW, config)
    unsure = seen_step(0)._replace(has_strays=True)
    for number in (1, 2, 3):
        result = follow(targets, number, {0: unsure, 1: seen_step(0)}, config)
    assert states_of(result) == [(1, "LOST"), (2, "TRACKED")]


def test_a_hidden_target_is_matched_by_a_duplicate_of_the_best_candidate():
    """Both candidates are on it now. On the target's last-seen frame the better one covers only a small part."""
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0)], QUERY, "", NOW, config)
    seen, hidden = frame(1), frame(2)
    targets.update(seen, {0: seen_step(0)}, config)
    targets.update(hidden, {0: HIDDEN}, config)
    again = [make_candidate(1, 4, 0.95), make_candidate(2, 4, 0.9)]
    for candidate, width in zip(again, (3, 8)):
        candidate.masks, candidate.seen_frame = {seen: make_mask(0, width)}, hidden
    targets.merge(again, QUERY, "", hidden, config)
    assert [(target.id, target.key, target.misses) for target in targets.living] == [(1, 1, 0)]


def test_two_targets_separated_by_a_later_grounding_do_not_merge():
    config = settings()
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 0, width=5)], QUERY, "", NOW, config)
    again = [make_candidate_on(targets, 2, 0), make_candidate_on(targets, 3, 0, width=5)]
    for candidate, left in zip(again, (0, 20)):
        candidate.frames = (frame(-1), NOW)
        candidate.tracklet = replace(candidate.tracklet, masks=np.stack([make_mask(left), candidate.seen_mask]))
    targets.merge(again, QUERY, "", NOW, config)
    for number in range(1, 7):
        result = follow(targets, number, {0: seen_step(0), 1: seen_step(0)}, config)
    assert [target.id for target in result.targets] == [1, 2]


def test_duplicates_stay_if_regrounding_is_disabled():
    config = settings(regrounding__policy="off")
    targets = Targets()
    targets.merge([make_candidate(0, 0), make_candidate(1, 0)], QUERY, "", NOW, config)
    for number in range(1, 9):
        result = follow(targets, number, {0: seen_step(0), 1: seen_step(0)}, config)
    assert states_of(result) == [(1, "TRACKED"), (2, "TRACKED")]


def test_a_query_for_one_object_has_one_target():
    targets = Targets()
    both = [make_candidate(0, 0), make_candidate(1, 20, combined=0.8)]
    targets.merge(both, QUERY, "", NOW, settings(), means_one=True)
    assert [target.key for target in targets.living] == [0]
    targets.merge([make_candidate(2, 20)], QUERY, "", NOW, settings(), means_one=True)
    assert [target.key for target in targets.living] == [0], "it joins only where there is none"
    again = Targets()
    again.merge(both, QUERY, "", NOW, settings())
    assert len(again.living) == 2
