"""After the answer: regrounding with stable ids, lost targets, memory bounds, reproducible runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scripted import Recorder, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Frame, FrameResult, Query, QueryEvent, QueryState

# Object a moves to the right, b stands still, c moves down.
THREE = World(
    a=lambda time_s: (round((time_s - 100) * 2) % 20, 0),
    b=lambda time_s: (24, 0),
    c=lambda time_s: (0, 8 + round((time_s - 100) * 2) % 8),
)


@pytest.fixture
def world_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def _tracking(*script, world=THREE, between=None, **changes) -> Recorder:
    """A query answered on frame 15 and grounded again every second (10 frames), unless `changes` override that."""
    config = settings(**{"regrounding__stride": 2, "regrounding__policy": "refresh"} | changes)
    run = Recorder(ScriptedDecaf(world, config, script), between)
    run.watch(range(16))
    run.ask("q1")
    assert run.answers("q1") == [QueryState.TRACKING]
    return run


def _keys(run: Recorder) -> dict[int, int]:
    return {target.id: target.key for target in run.online._targets.living}


def test_regrounding_every_stride(world_tracker):
    run = _tracking(["a"])
    run.watch(range(16, 60))
    ends = [window.frames[-1].index for window in run.decaf.windows]
    assert ends == [15, 25, 35, 45, 55]
    assert len(run.decaf.windows[-1]) == 6
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "TRACKING")]


@pytest.mark.parametrize("policy", ["hold", "off"])
def test_no_regrounding_while_the_target_is_visible(world_tracker, policy):
    run = _tracking(["a"], ["b"], regrounding__policy=policy)
    run.watch(range(16, 60))
    assert len(run.decaf.windows) == 1 and run.states() == {1: "TRACKED"}
    np.testing.assert_array_equal(run.results[-1].targets[0].mask, THREE.mask("a", frame(59)))


def test_ids_do_not_depend_on_the_order_of_tracklets(world_tracker):
    run = _tracking(["a", "b"], ["b", "a"], ["c", "b", "a"])
    run.watch(range(16, 40))
    for result in run.results[16:]:
        for target, name in zip(result.targets, "abc"):
            assert (target.id, target.label) == ("abc".index(name) + 1,) * 2
            np.testing.assert_array_equal(target.mask, THREE.mask(name, result.frame))
    assert run.states() == {1: "TRACKED", 2: "TRACKED", 3: "TRACKED"}
    assert _keys(run) == {1: 0, 2: 1, 3: 4}  # what is visible keeps its memory
    assert run.results[-1].targets[0].source_stamp_ns == frame(15).stamp_ns


@pytest.mark.parametrize("policy", ["hold", "refresh"])
def test_a_hidden_target_that_is_not_found_is_lost_once_and_keeps_its_id_when_it_returns(world_tracker, policy):
    """a is hidden from frame 21 to 44; groundings on the key frames 30 and 40 (and 20 with refresh) do not find it."""
    world = World(a=lambda time_s: None if 102.05 < time_s < 104.45 else (0, 0), b=THREE.paths["b"])
    found_later = [["b"]] * (3 if policy == "refresh" else 2)
    options = {"regrounding__policy": policy, "regrounding__max_misses": 2}
    run = _tracking(["a", "b"], *found_later, ["a", "b"], world=world, **options)
    run.watch(range(16, 80))
    history = {number: run.states(number)[1] for number in range(80) if 1 in run.states(number)}
    (lost_on,) = [number for number, state in history.items() if state == "LOST"]
    lost = next(target for target in run.results[lost_on].targets if target.id == 1)
    assert lost.area_px == 0 and not (run.results[lost_on].labels == lost.label).any()
    assert run.states(lost_on + 1) == {2: "TRACKED"} and lost_on > 30
    assert run.states() == {1: "TRACKED", 2: "TRACKED"}  # the same id
    assert sorted(target.label for target in run.results[-1].targets) == [1, 2]
    np.testing.assert_array_equal(run.results[-1].labels == lost.label, world.mask("a", frame(79)))


def test_a_query_may_have_its_own_policy(world_tracker):
    run = Recorder(ScriptedDecaf(THREE, settings(regrounding__stride=1), [["a"]]))
    run.watch(range(16))
    run.online.ask(Query("q1", "it", policy="refresh"))
    run.watch(range(16, 40))
    assert len(run.decaf.windows) == 5
    run.online.ask(Query("q2", "it"))  # the default again: hold
    run.watch(range(40, 60))
    assert len(run.decaf.windows) == 6
    run.online.ask(Query("q3", "it", policy="keep"))
    assert run.answers("q3") == [QueryState.FAILED] and run.online.query.id == "q2"
    assert run.of(QueryEvent)[-1].text == "policy: expected one of hold, refresh, off, or nothing, got 'keep'"


def test_later_groundings_see_the_key_frames_of_the_answer(world_tracker):
    run = _tracking(["a"], regrounding__anchors=2)
    run.watch(range(16, 80))
    # The source of the answer, and of the equally strong key frames the first one.
    assert [frame.index for frame in run.decaf.windows[-1].frames] == [0, 15, 60, 65, 70, 75]
    without = _tracking(["a"], regrounding__anchors=0)
    without.watch(range(16, 80))
    assert [frame.index for frame in without.decaf.windows[-1].frames] == [50, 55, 60, 65, 70, 75]


def test_ids_count_on_over_queries(world_tracker):
    run = _tracking(["a", "b"])
    run.ask("q2")
    run.watch(range(16, 20))
    assert run.states() == {3: "TRACKED", 4: "TRACKED"}
    assert [target.label for target in run.results[-1].targets] == [1, 2]


@pytest.mark.parametrize("answer, notices", [([], 0), (RuntimeError("no memory left"), 4)])
def test_a_visible_target_outlives_empty_and_failed_groundings(world_tracker, answer, notices):
    run = _tracking(["a"], answer, regrounding__max_misses=1)
    run.watch(range(16, 60))
    assert run.answers("q1") == [QueryState.TRACKING] and run.states() == {1: "TRACKED"}
    assert run.notices == ["error: grounding of query q1 failed: RuntimeError: no memory left"] * notices
    assert run.results[-1].query.id == "q1"


def test_a_hidden_target_is_lost_after_a_while_and_regrounded_at_the_next_key_frame(world_tracker):
    world = World(a=lambda time_s: (0, 0) if time_s < 102.05 else None)
    run = _tracking(["a"], [], world=world, tracking__lost_after_s=1.0, regrounding__stride=7)
    run.watch(range(16, 75))
    assert run.online._follower.tracker.ids == (0,)  # it goes on looking for it
    states = [run.states(number) for number in range(16, 75)]
    assert states[0] == {1: "TENTATIVE"} and states[1:5] == [{1: "TRACKED"}] * 4
    assert states[5:15] == [{1: "OCCLUDED"}] * 10 and states[15] == {1: "LOST"} and states[16:] == [{}] * 43
    assert not any(result.labels.any() for result in run.results[21:])
    # Lost on frame 31: regrounding on the next key frame 35, then every stride.
    assert [window.frames[-1].index for window in run.decaf.windows] == [15, 35, 70]


def test_two_targets_whose_masks_come_together_merge(world_tracker):
    world = World(a=lambda time_s: (0, 0), part=lambda time_s: (3, 0) if time_s < 102.05 else (0, 0))
    run = _tracking(["a", "part"], world=world, regrounding__stride=100)
    run.watch(range(16, 30))
    assert run.states(22) == {1: "TRACKED", 2: "TRACKED"}
    assert run.states(23) == {1: "TRACKED", 2: "LOST"} and run.results[23].labels.max() == 1
    assert run.states(24) == run.states() == {1: "TRACKED"}
    assert run.online._follower.tracker.ids == (0,)


def test_at_most_max_targets_are_tracked(world_tracker):
    run = _tracking(["a", "b", "c"], ["b", "a"], ["c", "a", "b"], tracking__max_targets=2)
    assert _keys(run) == {1: 0, 2: 1} and run.online._follower.tracker.ids == (0, 1)
    run.watch(range(16, 26))
    run.watch(range(26, 36))  # c and a are the best now, but there is no room for c
    assert _keys(run) == {1: 0, 2: 1} and sorted(run.online._follower.tracker.ids) == [0, 1]


def test_a_target_keeps_its_id_after_occlusion(world_tracker):
    world = World(a=lambda time_s: None if 101.95 < time_s < 102.75 else (round((time_s - 100) * 2), 0))
    run = _tracking(["a"], world=world, regrounding__stride=100)
    run.watch(range(16, 40))
    assert run.states(20) == {1: "OCCLUDED"} and not run.results[20].labels.any()
    assert run.states(28) == {1: "TRACKED"} and run.states() == {1: "TRACKED"}


class DriftingTracker(WorldTracker):
    """Slides to b when its object is hidden. Descriptors are one-hot by object."""

    def step(self, where):
        self._names = {key: name if self._world.mask(name, where).any() else "b" for key, name in self._names.items()}
        looks = np.eye(3, dtype=np.float32)
        names = list(self._world.paths)
        return {
            key: step._replace(look=looks[names.index(self._names[key])]) for key, step in super().step(where).items()
        }


@pytest.mark.parametrize("margin, state", [(0.1, "OCCLUDED"), (2.0, "TRACKED")])
def test_a_mask_on_another_object_counts_as_occluded(monkeypatch, margin, state):
    """b touches a, so that nothing but its look gives the drift away."""
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", DriftingTracker)
    world = World(a=lambda time_s: (0, 0) if time_s < 102.05 else None, b=lambda time_s: (3, 0))
    run = _tracking(["a"], world=world, regrounding__policy="off", tracking__appearance_margin=margin)
    run.watch(range(16, 26))
    assert run.states(20) == {1: "TRACKED"} and run.states(25) == {1: state}
    assert run.results[25].labels.any() == (state == "TRACKED")


def test_regrounding_recovers_a_target_that_the_tracker_lost(world_tracker):
    world = World(a=THREE.paths["a"], nowhere=lambda time_s: None)
    run = _tracking(["a"], world=world, regrounding__stride=3)
    run.decaf.source = 2
    run.watch(range(16, 20))
    run.online._follower.tracker._names = {0: "nowhere"}  # the tracker loses it after frame 19
    run.watch(range(20, 31))
    assert run.states(30) == {1: "OCCLUDED"}
    run.watch(range(31, 34))  # grounded on frame 30 with source frame 15, so the catch-up covers frame 19
    assert run.states(31) == {1: "TRACKED"} and run.states() == {1: "TRACKED"}


def test_frames_during_a_regrounding_are_tracked_with_the_living_targets(world_tracker):
    arriving = []
    run = _tracking(["a", "b"], between=lambda: [run.watch([arriving.pop(0)]) for _ in arriving[:1]])
    arriving += range(26, 40)
    run.watch(range(16, 26))  # key frame 25 starts a regrounding; one frame arrives between two stages
    assert len(run.decaf.windows) == 2
    assert [result.frame.index for result in run.results] == list(range(len(run.results)))
    assert len(run.results) > 30
    for result in run.results[17:]:
        assert [(target.id, target.state.name) for target in result.targets] == [(1, "TRACKED"), (2, "TRACKED")]
        np.testing.assert_array_equal(result.targets[0].mask, THREE.mask("a", result.frame))
    assert set(_keys(run).values()) == {0, 1}


def test_a_new_query_during_a_regrounding(world_tracker):
    pending = []
    run = _tracking(["a"], ["a"], ["b"], between=lambda: pending and run.online.ask(pending.pop()))
    pending.append(Query("q2", "other"))
    run.watch(range(16, 28))
    assert run.events[3:] == [("q1", "ENDED"), ("q2", "RECEIVED"), ("q2", "GROUNDING"), ("q2", "TRACKING")]
    assert run.results[25].query.id == "q1" and run.results[26].query.id == "q2"
    assert run.states(26) == {2: "TENTATIVE"}
    np.testing.assert_array_equal(run.results[26].targets[0].mask, THREE.mask("b", frame(26)))


@pytest.mark.parametrize("error, releases", [(RuntimeError, 0), (torch.OutOfMemoryError, 1)])
def test_a_tracker_error_loses_all_targets_and_grounds_again(world_tracker, monkeypatch, error, releases):
    run = _tracking(["a", "b"], regrounding__stride=100)
    run.watch(range(16, 18))

    def broken(where):
        raise error("cuDNN error\nmore")

    monkeypatch.setattr(run.online._follower.tracker, "step", broken)
    run.watch(range(18, 24))
    assert run.notices == [f"error: tracking failed, all targets are lost: {error.__name__}: cuDNN error"]
    assert run.decaf.released == releases, "only out of memory releases memory"
    assert [result.frame.index for result in run.results] == list(range(24))
    assert run.states(18) == {1: "LOST", 2: "LOST"} and not run.results[18].labels.any()
    assert run.states(19) == {}
    assert len(run.decaf.windows) == 2  # at the next key frame, 20
    assert run.states() == {1: "TRACKED", 2: "TRACKED"} and run.answers("q1") == [QueryState.TRACKING]


def test_memory_is_bounded(world_tracker):
    run = _tracking(["a", "b"], ["b"], [], ["c", "a"], ["a", "b", "c"], window__buffer_frames=20)
    sizes = []
    for number in range(16, 316):
        run.watch([number])
        online = run.online
        run.outputs.clear()
        run.decaf.windows.clear()
        targets = online._targets
        target_sizes = len(targets._targets), len(online._follower.tracker.ids), len(targets._duplicates._frames)
        sizes.append((len(online.buffer), online.buffer.keyframe_count, *target_sizes))
        assert online.buffer.nbytes == len(online.buffer) * 24 * 32 * 3
        assert {target.key for target in targets.living} == set(online._follower.tracker.ids)
    assert np.max(sizes, axis=0).tolist() == [20, 6, 3, 3, 3]


def _digest(result: FrameResult) -> tuple:
    targets = [
        (target.id, target.label, target.state, target.scores, target.mask.tobytes()) for target in result.targets
    ]
    return result.frame.index, result.labels.tobytes(), targets


@pytest.mark.parametrize("real", [False, True], ids=["scripted", "sam2"])
def test_two_runs_give_the_same_bytes(real, request, monkeypatch):
    if real:
        sam2 = load_sam2(Sam2Config(checkpoint=str(request.getfixturevalue("tiny_sam2_dir")), device="cpu"))
    else:
        sam2 = THREE
        monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)

    def run() -> Recorder:
        decaf = ScriptedDecaf(
            THREE, settings(regrounding__stride=3, regrounding__policy="refresh"), [["a", "b"], ["b", "a"], ["c"]]
        )
        decaf.sam2, decaf.source = sam2, 1
        recorder = Recorder(decaf)
        recorder.ask("q1")
        for number in range(34):
            recorder.online.observe(_picture(number))
        return recorder

    first, second = run(), run()
    assert first.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "TRACKING")] == second.events
    assert len(first.results) == 34 and any(result.targets for result in first.results)
    assert [_digest(result) for result in first.results] == [_digest(result) for result in second.results]


def _picture(number: int) -> Frame:
    """Frame `number` of THREE: coloured squares on a dark background."""
    picture = frame(number)
    picture.image[:] = 30
    for name, colour in zip("abc", [(250, 60, 60), (60, 250, 60), (60, 60, 250)]):
        picture.image[THREE.mask(name, picture)] = colour
    return picture


def test_with_the_real_tracker(tiny_sam2_dir):
    """Masks of untrained weights are arbitrary; ids, states and one result per frame must still hold."""
    config = settings(regrounding__stride=2, regrounding__policy="refresh")
    decaf = ScriptedDecaf(THREE, config, [["a", "b"], ["b", "a"]])
    decaf.sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), device="cpu"))
    run = Recorder(decaf)
    for number in range(16):
        run.online.observe(_picture(number))
    run.ask("q1")
    for number in range(16, 30):
        run.online.observe(_picture(number))
    assert [result.frame.index for result in run.results] == list(range(30))
    assert len(decaf.windows) == 2
    assert set(run.online._follower.tracker.ids) == {target.key for target in run.online._targets.living}
    for result in run.results[16:]:
        assert len(result.targets) >= 2
        painted = {int(value) for value in np.unique(result.labels)} - {0}
        assert painted <= {target.label for target in result.targets if target.area_px}
    ids = [target.id for target in run.results[-1].targets]
    assert ids == sorted(set(ids)) and ids[0] >= 1


def test_the_next_grounding_reuses_the_embeddings_of_tracking(tiny_sam2_dir):
    decaf = ScriptedDecaf(THREE, settings(regrounding__policy="off"), [["a"]])
    decaf.sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), device="cpu", embedding_cache=8))
    run = Recorder(decaf)
    for number in range(16):
        run.online.observe(_picture(number))
    run.ask("q1")
    for number in range(16, 40):
        run.online.observe(_picture(number))
    tracked = [key for key in run.online.buffer.window().frames if key.index >= 16]
    assert [key.index for key in tracked] == [20, 25, 30, 35]
    decaf.sam2._encode = None  # computing an embedding fails from here on
    for key in tracked:
        decaf.sam2.embed(key)
    run.online.reset("another camera")
    assert not decaf.sam2._held


def test_a_grounding_slower_than_its_stride_does_not_repeat_at_once(world_tracker):
    """Key frames that arrive during a grounding do not make it due again."""
    number = itertools.count(16)

    def add_frames() -> None:
        for _ in range(40):
            run.online.observe(frame(next(number)))

    config = settings(regrounding__stride=2, regrounding__policy="refresh")
    decaf = ScriptedDecaf(THREE, config, [["a"]])
    run = Recorder(decaf, add_frames)
    run.watch(range(16))
    run.ask("q1")
    groundings = []
    for _ in range(30):
        run.watch([next(number)])
        groundings.append(len(decaf.windows))
    # A stride of two key frames is ten frames, counted from the end of the slow grounding.
    assert [groundings.count(count) for count in sorted(set(groundings))][1:-1] == [10, 10]


@pytest.mark.parametrize("policy, found", [("hold", True), ("off", False)])
def test_a_lost_target_is_found_by_its_looks(world_tracker, monkeypatch, policy, found):
    """The tracker does not see it again and the grounding does not find it."""
    world = World(a=lambda time_s: (0, 0) if time_s < 102 else None, b=lambda time_s: (24, 0))
    world.looks = {"a": np.array([1, 0], np.float32), "b": np.array([0, 1], np.float32)}
    run = _tracking(["a"], [], world=world, regrounding__policy=policy)
    run.watch(range(16, 90))
    assert run.results[-1].targets == ()
    world.paths["a2"], world.looks["a2"] = (lambda time_s: (12, 12)), world.looks["a"]
    run.watch(range(90, 110))
    assert [(target.id, target.state.name) for target in run.results[-1].targets] == [(1, "TRACKED")] * found
