from __future__ import annotations

import numpy as np
import pytest
from scripted import ABSENT, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.evaluation.datasets.clips import EvaluationClip
from decaf_ros.evaluation.online import play
from decaf_ros.tabletop.clip import Expression

FRAMES = 40
# The mug moves; the ball is hidden for a second.
WORLD = World(
    mug=lambda s: (round(20 * (s - 100) / 4), 2),
    ball=lambda s: None if 102.5 <= s < 103.5 else (20, 14),
)
MUG = Expression("the mug", "explicit", (0,), "mug")
BOTH = Expression("the things", "several", (0, 1), "")


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.StreamingTracker", WorldTracker)


@pytest.fixture
def clip():
    frames = tuple(frame(number) for number in range(FRAMES))
    labels = np.zeros((FRAMES, *frames[0].size_hw), np.uint8)
    for one in frames:
        for label, name in ((1, "mug"), (2, "ball")):
            labels[one.index][WORLD.mask(name, one)] = label
    return EvaluationClip("scripted", frames, labels, (MUG, BOTH))


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
    assert (score.j, score.switches) == (1.0, 0)


def test_another_object_is_no_target(clip):
    score = play(decaf(["ball"]), clip, MUG)
    assert score.tracked and score.j == 0 and score.switches == 0


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
