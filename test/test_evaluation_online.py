"""Clips played as a live stream, with scripted groundings."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import ABSENT, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral, masks_from_labels
from decaf_ros.evaluation.online import choose_online_expression, play

FRAMES = 40
# The mug moves; the ball is occluded for a second.
WORLD = World(
    mug=lambda s: (round(20 * (s - 100) / 4), 2),
    ball=lambda s: None if 102.5 <= s < 103.5 else (20, 14),
)
MUG = Referral("the mug", "explicit", (0,), "mug", timeless=True)
BOTH = Referral("the things", "several", (0, 1), timeless=True)
BALL = Referral("the ball", "explicit", (1,), "ball", timeless=True)
# Length and key frames of a tabletop clip; the ball is occluded early.
CROSSING = World(mug=lambda s: (0, 2), ball=lambda s: None if 101.0 <= s < 101.4 else (20, 14))
CROSSING_FRAMES, CROSSING_SETTINGS = 32, {"window__keyframe_period_s": 0.2, "regrounding__policy": "refresh"}


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def clip_of(world, count=FRAMES):
    frames = tuple(frame(number) for number in range(count))
    labels = np.zeros((count, *frames[0].size_hw), np.uint8)
    for clip_frame in frames:
        for label, name in ((1, "mug"), (2, "ball")):
            labels[clip_frame.index][world.mask(name, clip_frame)] = label
    return EvaluationClip("scripted", frames, masks_from_labels(labels, 2), (MUG, BOTH, BALL))


@pytest.fixture
def clip():
    return clip_of(WORLD)


def decaf(*script, **changes):
    return ScriptedDecaf(
        WORLD, settings(**{"regrounding__stride": 2, "regrounding__policy": "refresh"} | changes), script
    )


def test_a_correct_target_is_tracked_without_errors(clip):
    segmenter = decaf(["mug"])
    score = play(segmenter, clip, MUG)
    assert (score.tracked, score.frames, score.j, score.switches) == (True, 20, 1.0, 0)
    assert [where.index for where in segmenter.windows[0].frames] == [0, 5, 10, 15]
    assert len(segmenter.windows) > 1  # grounded again


def test_a_target_keeps_its_id_through_an_occlusion(clip):
    score = play(decaf(["mug", "ball"]), clip, BOTH)
    assert (score.j, score.switches, score.drifts, score.hidden) == (1.0, 0, 0, True)


class DriftingTracker(WorldTracker):
    """Moves to the mug if its object is occluded."""

    def step(self, where):
        names = self._names.items()
        self._names = {key: name if self._world.mask(name, where).any() else "mug" for key, name in names}
        return super().step(where)


def test_an_early_occlusion_is_asked_for_before_it_starts(monkeypatch):
    """In the middle, on frame 15, the ball is visible again, so the occlusion would test nothing."""
    clip = clip_of(CROSSING, CROSSING_FRAMES)
    segmenter = ScriptedDecaf(CROSSING, settings(**CROSSING_SETTINGS), [["ball"]])
    score = play(segmenter, clip, BALL)
    assert (score.frames, score.hidden, score.j, score.switches) == (25, True, 1.0, 0)
    assert [window.frames[-1].index for window in segmenter.windows] == [6, 22]
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", DriftingTracker)
    lost = play(segmenter, clip, BALL)
    assert (lost.tracked, lost.hidden, lost.switches) == (True, True, 1) and 0 < lost.j < 1
    # The id moved to the mug, which is no target; a grounding then gave the ball a new id.
    assert score.drifts == 0 and lost.drifts == 1


def test_an_occlusion_before_tracking_does_not_count():
    """There are too few key frames before the ball is visible again."""
    slow = ScriptedDecaf(CROSSING, settings(), [["ball"]])
    score = play(slow, clip_of(CROSSING, CROSSING_FRAMES), BALL)
    assert [where.index for where in slow.windows[0].frames] == [0, 5, 10, 15]
    assert score.tracked and not score.hidden


def test_the_query_is_timeless_and_preferably_about_an_occluded_target(clip):
    moving = Referral("the one that moves", "motion", (1,), "")
    assert choose_online_expression(clip, [moving, MUG, BALL, BOTH]) == BALL
    assert choose_online_expression(clip, [moving, MUG]) == MUG and choose_online_expression(clip, [moving]) is None


def test_a_wrong_object_scores_zero(clip):
    score = play(decaf(["ball"]), clip, MUG)
    assert score.tracked and score.j == 0 and score.switches == score.drifts == 0


def test_not_found(clip):
    segmenter = decaf([])
    segmenter.presence = ABSENT
    score = play(segmenter, clip, MUG)
    assert (score.tracked, score.j) == (False, 0.0)


def test_a_failed_grounding_raises(clip):
    with pytest.raises(RuntimeError, match="grounding of query eval failed: ValueError: broken"):
        play(decaf(ValueError("broken")), clip, MUG)


def test_an_expression_without_targets_is_not_played(clip):
    nothing = Referral("the plate", "absent", (), timeless=True)
    assert choose_online_expression(clip, [nothing]) is None
    assert choose_online_expression(clip, [nothing, MUG]) is MUG
