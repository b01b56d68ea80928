from __future__ import annotations

import numpy as np
import pytest
from scripted import ABSENT, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral, masks_from_labels
from decaf_ros.evaluation.online import play, to_ask

FRAMES = 40
# The mug moves; the ball is hidden for a second.
WORLD = World(
    mug=lambda s: (round(20 * (s - 100) / 4), 2),
    ball=lambda s: None if 102.5 <= s < 103.5 else (20, 14),
)
MUG = Referral("the mug", "explicit", (0,), "mug", timeless=True)
BOTH = Referral("the things", "several", (0, 1), timeless=True)
BALL = Referral("the ball", "explicit", (1,), "ball", timeless=True)
# As long as a clip of the tabletop, with its key frames; the ball is hidden early.
CROSSING = World(mug=lambda s: (0, 2), ball=lambda s: None if 101.0 <= s < 101.4 else (20, 14))
CROSSING_FRAMES, CROSSING_SETTINGS = 32, {"window__keyframe_period_s": 0.2, "regrounding__stride": 8}


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.segmenter.StreamingTracker", WorldTracker)


def clip_of(world, count=FRAMES):
    frames = tuple(frame(number) for number in range(count))
    labels = np.zeros((count, *frames[0].size_hw), np.uint8)
    for one in frames:
        for label, name in ((1, "mug"), (2, "ball")):
            labels[one.index][world.mask(name, one)] = label
    return EvaluationClip("scripted", frames, masks_from_labels(labels, 2), (MUG, BOTH, BALL))


@pytest.fixture
def clip():
    return clip_of(WORLD)


def decaf(*script, **changes):
    return ScriptedDecaf(WORLD, settings(regrounding__stride=2, **changes), script)


def test_the_right_target_is_followed_without_a_fault(clip):
    segmenter = decaf(["mug"])
    score = play(segmenter, clip, MUG)
    assert (score.tracked, score.frames, score.j, score.switches) == (True, 20, 1.0, 0)
    assert [where.index for where in segmenter.windows[0].frames] == [0, 5, 10, 15]
    assert len(segmenter.windows) > 1  # asked again on the way


def test_a_target_keeps_its_id_behind_another(clip):
    score = play(decaf(["mug", "ball"]), clip, BOTH)
    assert (score.j, score.switches, score.drifts, score.hidden) == (1.0, 0, 0, True)


class DriftingTracker(WorldTracker):
    """Goes on with the mug where its object is hidden."""

    def step(self, where):
        names = self._names.items()
        self._names = {key: name if self._world.mask(name, where).any() else "mug" for key, name in names}
        return super().step(where)


def test_what_is_hidden_early_is_asked_for_before_that_and_looked_for_after_it(monkeypatch):
    """In the middle, frame 15, the ball is back already, and nothing could go wrong any more."""
    clip = clip_of(CROSSING, CROSSING_FRAMES)
    segmenter = ScriptedDecaf(CROSSING, settings(**CROSSING_SETTINGS), [["ball"]])
    score = play(segmenter, clip, BALL)
    assert (score.frames, score.hidden, score.j, score.switches) == (25, True, 1.0, 0)
    assert [window.frames[-1].index for window in segmenter.windows] == [6, 22]
    monkeypatch.setattr("decaf_ros.online.segmenter.StreamingTracker", DriftingTracker)
    lost = play(segmenter, clip, BALL)
    assert (lost.tracked, lost.hidden, lost.switches) == (True, True, 1) and 0 < lost.j < 1
    # The id went over to the mug, which is not even a target; a grounding then gives the ball a new one.
    assert score.drifts == 0 and lost.drifts == 1


def test_what_is_not_followed_is_not_hidden_from_following():
    """There are not key frames enough before the ball is back."""
    slow = ScriptedDecaf(CROSSING, settings(), [["ball"]])
    score = play(slow, clip_of(CROSSING, CROSSING_FRAMES), BALL)
    assert [where.index for where in slow.windows[0].frames] == [0, 5, 10, 15]
    assert score.tracked and not score.hidden


def test_what_is_asked_is_timeless_and_best_of_something_hidden(clip):
    moving = Referral("the one that moves", "motion", (1,), "")
    assert to_ask(clip, [moving, MUG, BALL, BOTH]) == BALL
    assert to_ask(clip, [moving, MUG]) == MUG and to_ask(clip, [moving]) is None


def test_another_object_is_no_target(clip):
    score = play(decaf(["ball"]), clip, MUG)
    assert score.tracked and score.j == 0 and score.switches == score.drifts == 0


def test_a_target_that_is_lost_and_comes_back_under_another_id(clip):
    """Groundings in between do not find it; the next one does, as a new target."""
    lost = decaf(["mug"], [], ["mug"], regrounding__max_misses=1)
    score = play(lost, clip, MUG)
    assert score.switches == 1 and 0 < score.j < 1


def test_not_found(clip):
    segmenter = decaf([])
    segmenter.presence = ABSENT
    score = play(segmenter, clip, MUG)
    assert (score.tracked, score.j) == (False, 0.0)


def test_a_failure_is_no_score(clip):
    with pytest.raises(RuntimeError, match="grounding of query eval failed: ValueError: broken"):
        play(decaf(ValueError("broken")), clip, MUG)
