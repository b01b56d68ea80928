"""The book of queries: one answer each, whoever gives it."""

from __future__ import annotations

import pytest

from decaf_ros.online.ledger import Ledger
from decaf_ros.types import Query, QueryEvent, QueryState

MUG, BOX = Query("q1", "the mug"), Query("q2", "the box")


class _Book:
    """A ledger with what went out. The next sending raises if `broken`."""

    def __init__(self) -> None:
        self.out: list[tuple[str, QueryState, str]] = []
        self.firsts: list[bool] = []
        self.broken = False
        self.ledger = Ledger(self._send, lambda event, is_first: self.firsts.append(is_first))

    def _send(self, event: QueryEvent) -> None:
        if self.broken:
            raise RuntimeError("not sent")
        self.out.append((event.query.id, event.state, event.text))

    def emit(self, query: Query, state: QueryState, text: str = "") -> bool:
        return self.ledger.publish(QueryEvent(query, state, text, stamp_ns=5, frame_id="camera"))


@pytest.fixture
def book() -> _Book:
    book = _Book()
    for query in (MUG, BOX):
        book.ledger.open(query)
        assert book.ledger.take(query)
        book.emit(query, QueryState.RECEIVED)
    return book


def test_the_core_answers_and_ends(book):
    assert book.emit(MUG, QueryState.TRACKING) and book.emit(BOX, QueryState.NOT_FOUND)
    assert book.ledger.unanswered() == [] and [event.query for event in book.ledger.events] == [MUG]
    assert book.emit(MUG, QueryState.ENDED) and book.ledger.events == ()
    assert not book.emit(MUG, QueryState.FAILED) and len(book.out) == 5
    assert book.firsts == [True, True, False, False, False]


@pytest.mark.parametrize("late", [QueryState.TRACKING, QueryState.FAILED, QueryState.ENDED])
def test_what_the_core_says_after_a_close_is_kept_back(book, late):
    book.emit(MUG, QueryState.GROUNDING)
    assert book.ledger.close("q1", QueryState.FAILED, "too long") == ["q1"]
    assert book.out[-1] == ("q1", QueryState.FAILED, "too long")
    assert book.ledger.close("q1", QueryState.CANCELLED, "again") == [] and book.ledger.closed == ["q1"]
    out = len(book.out)
    assert not book.emit(MUG, late) and len(book.out) == out
    assert [event.query for event in book.ledger.events] == [BOX] and book.ledger.unanswered() == ["q2"]
    # The core has ended it with any state but TRACKING.
    assert book.ledger.closed == (["q1"] if late == QueryState.TRACKING else [])


def test_a_close_after_tracking_is_an_end(book):
    book.emit(MUG, QueryState.TRACKING)
    assert book.ledger.close("", QueryState.CANCELLED, "stop") == ["q1", "q2"]
    assert book.out[-2:] == [("q1", QueryState.ENDED, "stop"), ("q2", QueryState.CANCELLED, "stop")]


def test_a_query_that_ended_before_the_core_took_it_is_left_out(book):
    late = Query("q3", "the cup")
    book.ledger.open(late)
    assert book.ledger.close("q3", QueryState.CANCELLED, "timeout") == ["q3"] and book.firsts[-1]
    assert book.ledger.closed == [] and not book.ledger.take(late) and not book.emit(late, QueryState.RECEIVED)


def test_an_answer_is_booked_when_it_is_out(book):
    book.broken = True
    with pytest.raises(RuntimeError, match="not sent"):
        book.emit(MUG, QueryState.TRACKING)
    with pytest.raises(RuntimeError, match="not sent"):
        book.ledger.close("q2", QueryState.CANCELLED, "stop")
    book.broken = False
    assert book.ledger.unanswered() == ["q1", "q2"] and book.ledger.closed == []
    assert book.emit(MUG, QueryState.FAILED, "an error") and book.emit(BOX, QueryState.NOT_FOUND)


def test_an_error_after_the_answer_does_not_answer_again(book):
    book.emit(MUG, QueryState.TRACKING)
    assert book.emit(MUG, QueryState.FAILED, "an error")
    assert book.out[-1] == ("q1", QueryState.ENDED, "an error") and [event.query for event in book.ledger.events] == [
        BOX
    ]


def test_queries_that_the_core_has_lost_are_known(book):
    assert book.ledger.lost({"q1", "q2"}) == [] and book.ledger.lost({"q2"}) == ["q1"]
    book.ledger.forget("q1")
    assert book.ledger.lost({"q2"}) == []


def test_only_queries_that_have_waited_are_overdue(book):
    assert book.ledger.unanswered(60.0) == [] and book.ledger.unanswered(0.0) == ["q1", "q2"]
