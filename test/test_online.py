"""A query's life: events in order and exactly one answer, whatever happens in between.

The objects' motion is scripted (see `scripted`), so only the state machine is tested.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from scripted import ABSENT, PRESENT, Recorder, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.online import follower
from decaf_ros.types import FrameResult, Heatmap, Query, QueryEvent, QueryState, StageEvent

TWO = World(a=lambda time_s: (0, 0), b=lambda time_s: (16, 8))


@pytest.fixture(autouse=True)
def _scripted_tracker(monkeypatch):
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def _recorder(*script, between=None, world=TWO, options=None, **changes) -> Recorder:
    decaf = ScriptedDecaf(world, settings(**changes), script or [["a"]])
    return Recorder(decaf, between, **options or {})


def test_a_query_before_any_frame_waits_for_the_window():
    run = _recorder(["a", "b"])
    run.ask("q1", "  the thing ")
    assert run.events == [("q1", "RECEIVED")]
    assert run.of(QueryEvent)[0].text == "waiting for key frames: 0 of 4"
    assert (run.of(QueryEvent)[0].stamp_ns, run.of(QueryEvent)[0].frame_id) == (0, "")
    run.watch(range(15))
    assert run.events == [("q1", "RECEIVED")]
    run.watch(range(15, 18))
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "TRACKING")]
    assert len(run.results) == 18
    assert [run.results[index].query for index in (14, 15)] == [None, None]
    assert run.results[16].query.id == "q1"


def test_the_answer_has_all_fields():
    run = _recorder(["a", "b"])
    run.watch(range(18))
    run.ask("q1")
    kinds = [type(output).__name__ for output in run.outputs[18:]]
    assert kinds == [*["QueryEvent"] * 2, *["StageEvent"] * 3, *["Heatmap"] * 4, "StageEvent", "QueryEvent"]
    grounding, answer = run.of(QueryEvent)[1:]
    assert grounding.text == "looking back over 4 key frames (window.size is 6)"
    assert (answer.state, answer.text) == (QueryState.TRACKING, "tracking 2 targets: thing")
    assert (answer.category, answer.target_ids, answer.presence.score) == ("thing", (1, 2), 0.9)
    assert (answer.stamp_ns, answer.frame_id) == (frame(17).stamp_ns, "camera")
    assert (answer.window_start_ns, answer.window_end_ns) == (frame(0).stamp_ns, frame(15).stamp_ns)
    assert [stage for stage, _ in answer.stage_ms] == ["prefill", "points", "tracklets", "catch_up"]
    assert [tuple(point) for point in answer.keypoints] == [(frame(15).stamp_ns, 20.0, 12.0, 1.0)]
    assert [event.stage for event in run.of(StageEvent)] == ["prefill", "points", "tracklets", "catch_up"]
    assert [heatmap.frame.index for heatmap in run.of(Heatmap)] == [0, 5, 10, 15]


def test_heatmaps_are_emitted_only_if_wanted():
    run = _recorder(options={"want_heatmaps": lambda: False})
    run.watch(range(18))
    run.ask("q1")
    assert run.of(Heatmap) == [] and run.answers("q1") == [QueryState.TRACKING]


def test_every_frame_has_one_result_with_its_own_stamp():
    run = _recorder(["a", "b"])
    run.watch(range(16))
    run.ask("q1")
    run.watch(range(16, 40))
    assert [result.frame.index for result in run.results] == list(range(40))
    for result in run.results[:16]:
        assert result.targets == () and not result.labels.any() and result.query is None
    for result in run.results[16:]:
        assert {target.query_ids for target in result.targets} == {("q1",)}
        for target in result.targets:
            assert (target.mask == TWO.mask("ab"[target.id - 1], result.frame)).all()
            assert (result.labels[target.mask] == target.label).all()


@pytest.mark.parametrize("tracked", [False, True])
def test_a_new_query_ends_the_current_one(tracked):
    run = _recorder()
    run.watch(range(16 if tracked else 3))
    run.ask("q1")
    run.ask("q2")
    run.watch(range(16, 50))
    assert len(run.answers("q1")) == len(run.answers("q2")) == 1
    if tracked:  # answered already: no second answer
        states = ("RECEIVED", "GROUNDING", "TRACKING")
        first, second = ([(query, state) for state in states] for query in ("q1", "q2"))
        assert run.events == [*first, ("q1", "ENDED"), *second]
        assert run.of(QueryEvent)[3].text == "superseded by query q2"
        assert run.states() == {2: "TRACKED"}
    else:
        assert run.events[:3] == [("q1", "RECEIVED"), ("q1", "SUPERSEDED"), ("q2", "RECEIVED")]


@pytest.mark.parametrize("tracked", [False, True])
def test_an_empty_query_ends_the_current_one(tracked):
    run = _recorder()
    run.watch(range(16 if tracked else 3))
    run.ask("q1")
    run.ask("q2", " \n ")
    assert run.events[-1] == ("q2", "CANCELLED") and "targets cleared" in run.of(QueryEvent)[-1].text
    assert run.answers("q1") == [QueryState.TRACKING if tracked else QueryState.CANCELLED]
    run.watch(range(16, 50))
    assert run.results[-1].targets == () and run.results[-1].query is None and run.online.query is None
    assert run.answers("q2") == [QueryState.CANCELLED] and len(run.decaf.windows) == int(tracked)


def test_a_too_long_query_is_refused_and_changes_nothing():
    run = _recorder(node__max_query_chars=10)
    run.watch(range(16))
    run.ask("q1", "ten chars!")
    run.ask("q2", "eleven char")
    assert run.events[-1] == ("q2", "FAILED")
    assert run.of(QueryEvent)[-1].text == "query: expected at most 10 characters, got 11"
    run.watch(range(16, 20))
    assert run.online.query.id == "q1" and run.states() == {1: "TRACKED"}


def test_the_id_of_the_current_query_raises():
    run = _recorder()
    run.ask("q1")
    with pytest.raises(ValueError, match="expected a new one, got 'q1'"):
        run.ask("q1", "something else")


@pytest.mark.parametrize(
    "selected, presence, text", [([], PRESENT, "no candidate"), (["a"], ABSENT, "presence score 0.10")]
)
def test_not_found_has_a_reason_and_ends_the_query(selected, presence, text):
    run = _recorder(selected)
    run.decaf.presence = presence
    run.watch(range(16))
    run.ask("q1")
    run.watch(range(16, 120))
    answer = run.of(QueryEvent)[-1]
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "NOT_FOUND")]
    assert text in answer.text and answer.presence is run.decaf.presence and answer.target_ids == ()
    assert len(run.decaf.windows) == 1 and run.online.query is None
    assert all(result.targets == () for result in run.results)


def test_a_model_error_fails_the_query_and_the_stream_continues():
    run = _recorder(RuntimeError("CUDA error: device-side assert\nlong story"), ["a"])
    run.watch(range(16))
    run.ask("q1")
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "FAILED")]
    assert run.of(QueryEvent)[-1].text == "RuntimeError: CUDA error: device-side assert"
    assert run.notices == ["error: grounding of query q1 failed: RuntimeError: CUDA error: device-side assert"]
    run.watch(range(16, 18))
    run.ask("q2")
    run.watch(range(18, 20))
    assert run.answers("q2") == [QueryState.TRACKING] and run.states() == {1: "TRACKED"}


@pytest.mark.parametrize("error, releases", [(RuntimeError, 0), (torch.OutOfMemoryError, 1)])
@pytest.mark.parametrize("where", ["steps", "catch_up"])
def test_memory_is_released_after_an_out_of_memory_error(monkeypatch, where, error, releases):
    class Work:
        """Stands for the tensors of the failed grounding."""

    works = []

    def broken(*_args, **_options):
        work = Work()
        works.append(weakref.ref(work))
        raise error("no room")

    run = _recorder(["a"])
    monkeypatch.setattr(*((run.decaf, "steps", broken) if where == "steps" else (follower, "catch_up", broken)))
    alive_at_release = []
    monkeypatch.setattr(run.decaf, "release", lambda: alive_at_release.append(works[-1]()))
    run.watch(range(16))
    run.ask("q1")
    assert run.answers("q1") == [QueryState.FAILED] and len(works) == 1
    assert alive_at_release == [None] * releases, "release is called when nothing references the work"


def test_cancel_while_waiting():
    run = _recorder()
    run.ask("q1")
    with pytest.raises(ValueError, match="current query .'q1'., got 'q7'"):
        run.online.cancel("q7")
    run.online.cancel("q1", "no longer needed")
    assert run.events == [("q1", "RECEIVED"), ("q1", "CANCELLED")]
    assert run.of(QueryEvent)[-1].text == "no longer needed"
    run.watch(range(20))
    assert run.decaf.windows == []
    with pytest.raises(ValueError, match="no query is current"):
        run.online.cancel("q1")


def test_cancel_while_tracked_stops_without_a_second_answer():
    run = _recorder()
    run.watch(range(16))
    run.ask("q1")
    run.watch(range(16, 20))
    run.online.cancel("q1")
    run.watch(range(20, 22))
    assert run.answers("q1") == [QueryState.TRACKING]
    event = run.of(QueryEvent)[-1]
    assert (event.state, event.text, run.notices) == (QueryState.ENDED, "cancelled on request", [])
    assert run.results[-1].targets == ()


class Between:
    """Runs functions at chosen calls, counted from 0."""

    def __init__(self) -> None:
        self.at: dict[int, Callable[[], None]] = {}
        self.calls = 0

    def __call__(self) -> None:
        call, self.calls = self.calls, self.calls + 1
        if call in self.at:
            self.at[call]()


@pytest.mark.parametrize("call", [0, 1, 2, 3])  # 3: at the start of the catch-up
def test_a_query_during_a_grounding_supersedes_at_once(call):
    between = Between()
    run = _recorder(["a"], ["b"], between=between)
    run.watch(range(16))
    between.at = {call: lambda: run.ask("q2", "other")}
    run.ask("q1")
    assert run.events == [
        ("q1", "RECEIVED"),
        ("q1", "GROUNDING"),
        ("q1", "SUPERSEDED"),
        ("q2", "RECEIVED"),
        ("q2", "GROUNDING"),
        ("q2", "TRACKING"),
    ]
    stages = [event.query.id for event in run.of(StageEvent)]
    assert stages == ["q1"] * (call + 1) + ["q2"] * 4
    run.watch(range(16, 20))
    assert run.results[-1].query.id == "q2"
    assert len(run.results[-1].targets) == 1


def test_many_queries_during_groundings_do_not_recurse():
    between = Between()
    run = _recorder(between=between)
    run.watch(range(16))
    numbers = iter(range(2, 3000))  # more than Python's recursion limit
    run.between = lambda: next((run.ask(f"q{number}") for number in numbers), None)
    run.ask("q1")
    answers = [event for event in run.of(QueryEvent) if event.state.is_answer]
    assert len(answers) == len({event.query.id for event in answers}) == 2999
    assert [event.state.name for event in answers] == ["SUPERSEDED"] * 2998 + ["TRACKING"]


@pytest.mark.parametrize("call", [0, 3])
def test_cancel_during_a_grounding_abandons_it(call):
    between = Between()
    run = _recorder(between=between)
    run.watch(range(16))
    between.at = {call: lambda: run.online.cancel("q1")}
    run.ask("q1")
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "CANCELLED")]
    assert between.calls == call + 1
    run.watch(range(16, 20))
    assert run.results[-1].targets == () and run.notices == []


def test_an_empty_query_during_a_grounding_abandons_it():
    between = Between()
    run = _recorder(between=between)
    run.watch(range(16))
    between.at = {1: lambda: run.ask("q2", "")}
    run.ask("q1")
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "CANCELLED"), ("q2", "CANCELLED")]


def test_frames_during_a_grounding_get_a_result_and_do_not_ground_again():
    between = Between()
    run = _recorder(between=between)
    run.watch(range(16))
    # A key frame arrives after the first stage and after the first step of the catch-up, a frame after its first step.
    between.at = {0: lambda: run.watch(range(16, 22)), 3: lambda: run.watch(range(22, 27)), 4: lambda: run.watch([27])}
    run.ask("q1")
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING"), ("q1", "TRACKING")]
    assert len(run.decaf.windows) == 1 and len(run.decaf.windows[0]) == 4
    assert run.of(QueryEvent)[-1].stamp_ns == frame(27).stamp_ns
    run.watch([28])
    assert [result.frame.index for result in run.results] == list(range(29))
    assert all(result.targets == () for result in run.results[:28]) and run.states() == {1: "TENTATIVE"}


def test_an_output_may_make_a_grounding_obsolete():
    """Whoever receives an event may answer with another query, in the middle of a unit."""
    run = _recorder(["a"], ["b"])
    run.watch(range(16))

    def emit(output):
        run.outputs.append(output)
        if isinstance(output, StageEvent) and output.stage == "points" and output.query.id == "q1":
            run.ask("q2")

    run.online._emit = emit
    run.ask("q1")
    assert run.answers("q1") == [QueryState.SUPERSEDED] and run.answers("q2") == [QueryState.TRACKING]
    assert len(run.decaf.windows) == 2


@pytest.mark.parametrize("end", ["cancel", "ask", "reset"])
def test_an_output_of_the_last_unit_may_end_the_query(end):
    run = _recorder([], ["a"])
    run.watch(range(16))
    acts = {
        "cancel": lambda: run.online.cancel("q1"),
        "ask": lambda: run.ask("q2"),
        "reset": lambda: run.online.reset("x"),
    }

    def emit(output):
        run.outputs.append(output)
        if isinstance(output, Heatmap) and acts:
            act = acts[end]
            acts.clear()
            act()

    run.online._emit = emit
    run.ask("q1")
    expected = {"cancel": [QueryState.CANCELLED], "ask": [QueryState.SUPERSEDED], "reset": []}
    assert run.answers("q1") == expected[end]
    assert run.answers("q2") == ([QueryState.TRACKING] if end == "ask" else [])


def test_an_error_of_a_listener_does_not_stop_later_groundings():
    run = _recorder()
    run.watch(range(16))

    def emit(output):
        run.outputs.append(output)
        if isinstance(output, QueryEvent) and output.query.id == "q1" and output.state is QueryState.TRACKING:
            raise OSError("disk full")

    run.online._emit = emit
    with pytest.raises(OSError, match="disk full"):
        run.ask("q1")
    run.ask("q2")
    assert run.answers("q2") == [QueryState.TRACKING]


def test_a_live_grounding_begins_in_ask_and_goes_on_in_advance():
    run = _recorder(between=lambda: None)
    run.watch(range(16))
    run.online.ask(Query("q1", "it"))
    assert run.events == [("q1", "RECEIVED")] and run.decaf.windows == []
    units = 1
    while run.online.advance():
        units += 1
    # Three stages, from the last of them to the start of the catch-up, and from there to the answer.
    assert units == 5 and run.answers("q1") == [QueryState.TRACKING]
    assert not run.online.advance()


def test_after_a_reset_during_a_grounding_the_query_is_grounded_on_the_new_stream():
    between = Between()
    run = _recorder(between=between)
    run.watch(range(16))
    between.at = {1: lambda: run.watch(range(3), size_hw=(30, 40), start_s=200.0)}
    run.ask("q1")
    assert run.events == [("q1", "RECEIVED"), ("q1", "GROUNDING")]
    run.watch(range(3, 17), size_hw=(30, 40), start_s=200.0)
    assert run.events[1:] == [("q1", "GROUNDING"), ("q1", "GROUNDING"), ("q1", "TRACKING")]
    assert run.results[-1].labels.shape == (30, 40) and run.states() == {1: "TENTATIVE"}


def test_only_results_are_emitted_without_a_query():
    run = _recorder()
    run.watch(range(60))
    assert [type(output) for output in run.outputs] == [FrameResult] * 60 and run.decaf.windows == []


def test_thresholds_may_change_while_running():
    run = _recorder()
    run.watch(range(16))
    run.decaf.config = settings(presence__threshold=0.95)
    run.online.ask(Query("q1", "it"))
    assert run.answers("q1") == [QueryState.NOT_FOUND]
