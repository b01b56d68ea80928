"""Whose turn it is among several streams: order, questions before searches, and what each leaves to the others."""

from __future__ import annotations

import pytest
from scripted import ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.online.query import LiveQuery
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.turns import Turns
from decaf_ros.types import FrameResult, Notice, Query, QueryEvent


class Stream:
    """A stream with due queries; a grounding takes two units, which `done` records. `in_unit` is called in each."""

    def __init__(self, turns: Turns, name: str, done: list[str]) -> None:
        self.turns, self.name, self.done = turns, name, done
        self.queries: list[LiveQuery] = []
        self.in_unit = lambda: None
        self.again = False
        self.window = None
        turns.join(self)

    def search(self) -> LiveQuery:
        return self.add(LiveQuery(Query("q", "it"), answered=True, fresh=False))

    def question(self, priority: int = 0) -> LiveQuery:
        return self.add(LiveQuery(Query("q", "it", priority=priority)))

    def add(self, live: LiveQuery) -> LiveQuery:
        self.queries.append(live)
        self.turns.ask(self)
        return live

    def due(self) -> LiveQuery | None:
        return next((live for live in self.queries if live.due_in == 0), None)

    def begin(self, live: LiveQuery):
        for unit in (1, 2):
            live.due_in = 8
            self.done.append(f"{self.name}{unit}")
            self.in_unit()
            yield
        if self.again:
            live.due_in = 0
        else:
            self.queries.remove(live)


@pytest.fixture
def turns() -> Turns:
    return Turns(ScriptedDecaf(World(), settings(), []))


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def streams(turns, done) -> list[Stream]:
    return [Stream(turns, name, done) for name in "abc"]


def _finish(turns: Turns, most: int = 100) -> None:
    for _ in range(most):
        if not turns.advance():
            return
    pytest.fail("groundings without end")


def test_one_grounding_runs_at_a_time_in_the_order_of_asking(turns, streams, done):
    a, b, c = streams
    for stream in (b, a, c):
        stream.search()
    assert turns.advance() and done == ["b1"]
    _finish(turns)  # no stream asks again: their cameras are silent
    assert done == ["b1", "b2", "a1", "a2", "c1", "c2"]


def test_a_stream_in_which_nothing_is_due_any_more_is_skipped(turns, streams, done):
    a, b, c = streams
    for stream in streams:
        stream.search()
    b.queries.clear()
    _finish(turns)
    assert done == ["a1", "a2", "c1", "c2"]
    b.search()
    _finish(turns)
    assert done[4:] == ["b1", "b2"]


def test_a_stream_that_is_always_due_leaves_every_other_turn_to_the_others(turns, streams, done):
    a, b, _ = streams
    for stream in (a, b):
        stream.again = True
        stream.search()
    for _ in range(60):
        turns.advance()
        turns.ask(a)
        turns.ask(b)
    assert done.count("a1") == done.count("b1") == 10
    for number in range(60):
        turns.advance()
        turns.ask(a)
        if number % 10 == 0:  # a slow camera
            turns.ask(b)
    assert done.count("b1") == 16 and done.count("a1") == 24


def test_a_stream_that_is_due_again_waits_for_its_next_image_unless_a_question_waits(turns, streams, done):
    a, _, _ = streams
    a.again = True
    a.search()
    _finish(turns)
    assert done == ["a1", "a2"]
    a.again = False
    turns.ask(a)
    a.question()
    _finish(turns)
    assert done == ["a1", "a2", "a1", "a2", "a1", "a2"]


def test_a_search_makes_way_for_a_question_of_another_stream_and_comes_first_after_it(turns, streams, done):
    a, b, c = streams
    search = a.search()
    c.search()
    assert turns.advance() and done == ["a1"] and search.due_in == 8
    b.question()
    _finish(turns)
    assert done == ["a1", "b1", "b2", "a1", "a2", "c1", "c2"]


def test_questions_come_by_priority_and_do_not_make_way(turns, streams, done):
    a, b, c = streams
    a.question()
    turns.advance()
    b.question(priority=1)
    c.question(priority=2)
    _finish(turns)
    assert done == ["a1", "a2", "c1", "c2", "b1", "b2"]


def test_a_grounding_after_a_restart_is_no_question(turns, streams, done):
    """Its query has an answer: it would abandon the searches of the others whenever it is due."""
    a, b, _ = streams
    a.search()
    turns.advance()
    b.add(LiveQuery(Query("q", "it"), answered=True))
    _finish(turns)
    assert done == ["a1", "a2", "b1", "b2"]


def test_when_a_grounding_is_abandoned_the_next_one_begins(turns, streams, done):
    a, b, _ = streams
    search = a.search()
    b.search()
    turns.advance()
    turns.abandon(search)
    _finish(turns)
    assert done == ["a1", "b1", "b2"]


@pytest.mark.parametrize("end", ["abandon", "give_way"])
def test_nothing_begins_within_a_unit(turns, streams, done, end):
    a, b, _ = streams
    search = a.search()

    def in_unit() -> None:
        a.in_unit = lambda: None
        b.question()
        turns.abandon(search) if end == "abandon" else turns.give_way(a)
        assert not turns.advance() and not turns.prepare() and done == ["a1"]

    a.in_unit = in_unit
    assert turns.advance()
    _finish(turns)
    # A search that gives way to a question of its stream begins again with its next image.
    assert done == ["a1", "b1", "b2"]


def test_an_error_in_a_unit_leaves_the_turn_to_the_others(turns, streams, done):
    a, b, _ = streams

    def fail() -> None:
        raise RuntimeError("unit")

    a.in_unit = fail
    a.search()
    b.search()
    with pytest.raises(RuntimeError, match="unit"):
        turns.advance()
    _finish(turns)
    assert done == ["a1", "b1", "b2"]


# Two cameras, whose objects and answers are known


class Camera:
    """A stream of two that share a Decaf."""

    def __init__(self, decaf: ScriptedDecaf, turns: Turns, live: bool) -> None:
        self.outputs: list = []
        self.online = OnlineSegmenter(decaf, self.outputs.append, live, turns=turns)

    def events(self) -> list[str]:
        return [one.state.name for one in self.outputs if isinstance(one, QueryEvent)]

    def states(self) -> dict[int, str]:
        results = [one for one in self.outputs if isinstance(one, FrameResult)]
        return {target.id: target.state.name for target in results[-1].targets}


@pytest.fixture
def make(monkeypatch):
    """Makes two cameras, live or not, and their Decaf."""
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)

    def make_cameras(live: bool, **changes) -> tuple[ScriptedDecaf, Turns, Camera, Camera]:
        world = World(a=lambda time_s: (0, 0), b=lambda time_s: (20, 0))
        decaf = ScriptedDecaf(world, settings(**changes), {"left": ["a"], "right": ["b"]})
        turns = Turns(decaf)
        return decaf, turns, Camera(decaf, turns, live), Camera(decaf, turns, live)

    return make_cameras


def test_a_question_to_a_silent_camera_is_answered_after_that_of_the_other(make):
    _, turns, wrist, head = make(live=True)
    for number in range(16):
        wrist.online.observe(frame(number))
        head.online.observe(frame(number))
    wrist.online.ask(Query("q1", "left"))
    head.online.ask(Query("q2", "right"))
    assert (wrist.events(), head.events()) == (["RECEIVED"], ["RECEIVED"])
    _finish(turns)
    assert wrist.events() == head.events() == ["RECEIVED", "GROUNDING", "TRACKING"]


@pytest.mark.parametrize("live", [False, True])
def test_a_camera_that_restarts_leaves_the_targets_and_the_grounding_of_the_other(make, live):
    _, turns, wrist, head = make(live, queries__mode="add")
    for number in range(20):
        wrist.online.observe(frame(number))
        head.online.observe(frame(number))
        if number == 15:
            wrist.online.ask(Query("q1", "left"))
            head.online.ask(Query("q2", "right"))
            _finish(turns)
    assert wrist.states() == head.states() == {1: "TRACKED"}
    wrist.online.ask(Query("q3", "right"))
    turns.advance()
    head.online.reset("the image size changed")
    _finish(turns)
    wrist.online.observe(frame(20))
    head.online.observe(frame(20))
    assert wrist.states()[1] == "TRACKED" and head.states() == {1: "LOST"}
    assert wrist.events()[-2:] == ["GROUNDING", "TRACKING"] and wrist.online.buffer.keyframe_count == 5
    assert not [one for one in wrist.outputs if isinstance(one, Notice)]
    for number in range(21, 40):
        head.online.observe(frame(number))
        _finish(turns)
    assert head.states() == {2: "TRACKED"}


def test_in_a_replay_a_grounding_ends_at_the_frame_where_it_begins(make):
    decaf, turns, wrist, head = make(live=False)
    wrist.online.ask(Query("q1", "left"))
    head.online.ask(Query("q2", "right"))
    for number in range(16):
        wrist.online.observe(frame(number))
        assert decaf.asked.count("left") == (number == 15)
        head.online.observe(frame(number))
        assert decaf.asked.count("right") == (number == 15)
    assert wrist.events() == head.events() == ["RECEIVED", "GROUNDING", "TRACKING"] and not turns.advance()


def test_a_question_without_an_answer_comes_before_those_that_are_grounded_again(make):
    """Also if another camera searches: the stream has more than one query to begin again."""
    decaf, turns, wrist, head = make(live=True, queries__mode="add")
    for number in range(16):
        wrist.online.observe(frame(number))
    wrist.online.ask(Query("q1", "left", priority=1))
    _finish(turns)
    decaf.asked.clear()
    wrist.online.reset("the image size changed")
    for number in range(15):
        wrist.online.observe(frame(number))
    wrist.online.ask(Query("q2", "right"))
    wrist.online.observe(frame(15))
    _finish(turns)
    assert decaf.asked == ["right", "left"]


def test_a_question_is_answered_if_its_grounding_meets_an_unexpected_error(make, monkeypatch):
    _, turns, wrist, head = make(live=True)
    for number in range(16):
        wrist.online.observe(frame(number))
        head.online.observe(frame(number))

    def fail(*args, **options):
        raise RuntimeError("merge")

    monkeypatch.setattr(wrist.online._follower, "merge", fail)
    wrist.online.ask(Query("q1", "left"))
    head.online.ask(Query("q2", "right"))
    with pytest.raises(RuntimeError, match="merge"):
        _finish(turns)
    _finish(turns)
    assert wrist.events() == ["RECEIVED", "GROUNDING", "FAILED"] and not wrist.online.queries.events
    assert head.events() == ["RECEIVED", "GROUNDING", "TRACKING"]
