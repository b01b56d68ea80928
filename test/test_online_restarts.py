"""Streams that break and start again, and odd stamps: what happens to queries, targets and window.

The objects' motion is scripted (see `scripted`), so only the state machine is tested.
"""

from __future__ import annotations

import pytest
from scripted import Recorder, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.types import QueryState


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def _recorder(*script) -> Recorder:
    world = World(a=lambda time_s: (0, 0), b=lambda time_s: (16, 8))
    return Recorder(ScriptedDecaf(world, settings(), script or [["a"]]))


@pytest.mark.parametrize("again", [{"start_s": 50.0}, {"size_hw": (30, 40), "start_s": 110.0}], ids=["jump", "size"])
def test_a_broken_stream_is_reset_and_keeps_the_query(again):
    run = _recorder(["a", "b"])
    run.watch(range(16))
    run.ask("q1")
    run.watch(range(16, 20))
    events = list(run.events)
    run.watch(range(16), **again)
    assert len(run.notices) == 1 and run.notices[0].startswith("warn: stream reset: the ")
    first, second = run.results[20:22]
    assert [target.state.name for target in first.targets] == ["LOST", "LOST"] and not first.labels.any()
    assert first.labels.shape == frame(0, **again).size_hw and second.targets == ()
    assert len(run.decaf.windows) == 2 and len(run.decaf.windows[-1]) == 4  # grounded again as soon as possible
    assert run.decaf.windows[-1].size_hw == frame(0, **again).size_hw
    run.watch(range(16, 20), **again)
    assert run.events == events and run.answers("q1") == [QueryState.TRACKING]
    assert run.states() == {3: "TRACKED", 4: "TRACKED"}


def test_a_second_attempt_after_a_restart_looks_at_the_newest_window():
    """The first one finds nothing."""
    run = _recorder(["a"], [], ["a"])
    run.watch(range(16))
    run.ask("q1")
    run.watch(range(120), start_s=50.0)
    first, second = run.decaf.windows[1:3]
    assert second.frames[0].stamp_ns > first.frames[0].stamp_ns
    assert (second.frames[-1].stamp_ns - first.frames[-1].stamp_ns) / 1e9 == pytest.approx(4.0)


def test_a_query_has_anchors_again_after_a_restart():
    run = _recorder(["a"])
    run.watch(range(16))
    run.ask("q1")
    (live,) = run.online.queries
    before = [frame.stamp_ns for frame in live.anchors]
    run.watch(range(16), start_s=50.0)
    after = [frame.stamp_ns for frame in live.anchors]
    assert len(before) == len(after) == 4 and 50e9 <= min(after) <= max(after) < 52e9 < min(before)


def test_equal_stamps_are_tracked_but_never_key_frames():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1")
    for _ in range(3):
        run.watch([16])
    assert len(run.results) == 19 and run.states() == {1: "TRACKED"}
    stamp = f"{frame(16).stamp_ns} ns"
    assert run.notices == [f"warn: stamp {stamp} comes after {stamp}: only frames in order can be key frames"]


def test_two_frames_out_of_order_keep_targets_and_window():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1")
    run.watch([17, 16, 18, 19])
    assert run.states() == {1: "TRACKED"} and run.online.buffer.keyframe_count > 1
    assert len(run.results) == 20 and len(run.notices) == 1


def test_a_camera_without_stamps_gives_one_warning_per_stream():
    run = _recorder()
    run.ask("q1")
    for _ in range(30):
        run.watch([0], start_s=0.0)
    assert len(run.results) == 30 and run.events == [("q1", "RECEIVED")] and len(run.notices) == 1
    run.online.reset("another bag")
    run.watch([0, 0, 0], start_s=0.0)
    texts = [notice.split(":")[1].strip() for notice in run.notices]
    assert texts == ["stamp 0 ns comes after 0 ns", "stream reset", "stamp 0 ns comes after 0 ns"]
