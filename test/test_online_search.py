"""Groundings that search: for hidden targets, more and more rarely, and after a reset for any."""

from __future__ import annotations

import pytest
from scripted import ABSENT, PRESENT, Recorder, ScriptedDecaf, World, WorldTracker, settings

from decaf_ros.types import QueryState

THREE = World(a=lambda time_s: (0, 0), b=lambda time_s: (24, 0), c=lambda time_s: (0, 12))


@pytest.fixture
def world_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def _tracking(*script, world=THREE, **changes) -> Recorder:
    """A query answered on frame 15. There is a key frame every half second (5 frames), and a stride has two."""
    config = settings(**{"regrounding__stride": 2, "regrounding__policy": "hold"} | changes)
    run = Recorder(ScriptedDecaf(world, config, script))
    run.watch(range(16))
    run.ask("q1")
    assert run.answers("q1") == [QueryState.TRACKING]
    return run


def _grounded_on(run: Recorder) -> list[int]:
    return [window.frames[-1].index for window in run.decaf.windows]


def test_hold_searches_for_a_hidden_target_and_lets_nothing_else_join(world_tracker):
    world = World(a=lambda time_s: None if 102.05 < time_s < 104.45 else (0, 0), b=THREE.paths["b"])
    run = _tracking(["a"], ["b", "a"], world=world, regrounding__policy="hold", tracking__lost_after_s=60.0)
    run.decaf.source = 0
    run.watch(range(16, 60))
    # Hidden for a second on frame 30; then every stride of two key frames, until it is visible again on frame 45.
    assert _grounded_on(run) == [15, 30, 40]
    assert {id for result in run.results for id in (target.id for target in result.targets)} == {1}
    assert run.states(44) == {1: "OCCLUDED"} and run.states(46) == {1: "TRACKED"}


def test_hold_searches_less_often_for_what_it_does_not_find(world_tracker):
    """Each stride of two key frames at first, then every second one, then every fourth; at once for another target."""
    hidden = {"a": 102.05, "b": 111.05}
    world = World(
        a=lambda time_s: (0, 0) if time_s < hidden["a"] else None,
        b=lambda time_s: (20, 0) if time_s < hidden["b"] else None,
        c=THREE.paths["c"],
    )
    run = _tracking(["a", "b"], ["c"], world=world, regrounding__policy="hold", tracking__lost_after_s=60.0)
    run.watch(range(16, 160))
    grounded = _grounded_on(run)
    assert grounded == [15, 30, 40, 60, 100, 120]


@pytest.mark.parametrize("policy, found", [("hold", {1: "TRACKED"}), ("refresh", {})])
def test_a_search_does_not_ask_whether_the_target_is_there(world_tracker, policy, found):
    """ "The one that fell" is gone from the newest frames with its fall; what fell is still there."""
    world = World(a=THREE.paths["a"], nowhere=lambda time_s: None)
    run = _tracking(["a"], world=world, regrounding__stride=3, regrounding__policy=policy, regrounding__max_misses=1)
    run.decaf.source = 2
    run.watch(range(16, 20))
    run.decaf.presence = ABSENT
    run.online._follower.tracker._names = {0: "nowhere"}  # the tracker loses it after frame 19
    run.watch(range(20, 60))
    assert len(run.decaf.windows) > 1 and run.states() == found


def test_a_target_that_was_seen_in_between_is_searched_for_at_once(world_tracker):
    """Hidden from frame 21 to 100, and from 116 on."""
    world = World(a=lambda time_s: None if 102.05 < time_s < 110.05 or time_s > 111.55 else (0, 0), c=THREE.paths["c"])
    run = _tracking(["a"], ["c"], world=world, tracking__lost_after_s=60.0, regrounding__max_misses=99)
    run.watch(range(16, 145))
    assert _grounded_on(run) == [15, 30, 40, 60, 100, 125, 135]


@pytest.mark.parametrize("fails", [False, True])
def test_after_a_reset_a_query_is_grounded_until_it_has_targets_again(world_tracker, fails):
    """A looped recording: at first the object is not there, or the grounding fails."""
    run = _tracking(["a"])
    steps = run.decaf.steps
    if fails:
        run.decaf.steps = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("CUDA error"))
    else:
        run.decaf.presence = ABSENT
    run.watch(range(40), start_s=50.0)
    assert run.states() == {} and run.online.query is not None
    run.decaf.steps, run.decaf.presence = steps, PRESENT
    run.watch(range(40, 55), start_s=50.0)
    assert run.states() == {2: "TRACKED"} and run.answers("q1") == [QueryState.TRACKING]
