"""The book of a stream's queries: whoever ends a query, it has exactly one answer, booked when that is out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from decaf_ros.types import Query, QueryEvent, QueryState


@dataclass(eq=False)
class _Entry:
    """A query from its asking to its end.

    Attributes:
        query: the query.
        event: the last event that is out; None before the first.
        answered: whether an answer is out.
        taken: whether the core has it.
        closed: ended by `Ledger.close`; the core may still have it.
        asked_s: when it was opened (time.monotonic).
    """

    query: Query
    event: QueryEvent | None = None
    answered: bool = False
    taken: bool = False
    closed: bool = False
    asked_s: float = field(default_factory=time.monotonic)


class Ledger:
    """Passes on the events of queries, and keeps those that would be a second answer. From any thread.

    The core's events pass through `publish`. Another thread ends a query with `close` while the core hangs: what the
    core says of it later is kept back, and `closed` tells the core's thread to end it too.

    Args:
        send: publishes an event. If it raises, the event is not booked.
        booked: called after `send` with the event and whether it is the first one of its query.
    """

    def __init__(self, send: Callable[[QueryEvent], None], booked: Callable[[QueryEvent, bool], None]) -> None:
        self._send = send
        self._booked = booked
        # Held while an event goes out, so that two threads cannot both answer.
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}

    def open(self, query: Query) -> None:
        """A query was asked; the core will `take` it."""
        with self._lock:
            self._entries[query.id] = _Entry(query)

    def take(self, query: Query) -> bool:
        """The core begins with a query. Returns False if it was closed before, and is to be left out."""
        with self._lock:
            entry = self._entries.setdefault(query.id, _Entry(query))
            if entry.closed:
                del self._entries[query.id]
            entry.taken = True
            return not entry.closed

    def publish(self, event: QueryEvent) -> bool:
        """Sends and books an event of the core. Returns False if its query has ended already.

        An answer after TRACKING ends the query with ENDED: the first one is out.
        """
        with self._lock:
            entry = self._entries.get(event.query.id)
            if entry is None:
                return False
            if entry.closed:
                if _is_end(event):
                    del self._entries[event.query.id]
                return False
            if entry.answered and event.state.is_answer:
                event = _bare(event, QueryState.ENDED, event.text)
            self._go_out(entry, event)
            return True

    def close(self, query_id: str, state: QueryState, text: str) -> list[str]:
        """Ends a query, or all if the id is empty: with `state`, or with ENDED if its answer is out. Returns the ids of
        those that it ended."""
        with self._lock:
            found = [one for one in self._entries.values() if query_id in ("", one.query.id) and not one.closed]
            for entry in found:
                last = entry.event or QueryEvent(entry.query, state)
                self._go_out(entry, _bare(last, QueryState.ENDED if entry.answered else state, text), is_closing=True)
            return [entry.query.id for entry in found]

    def forget(self, query_id: str) -> None:
        """Removes a query that neither the core nor its user has any more."""
        with self._lock:
            self._entries.pop(query_id, None)

    @property
    def closed(self) -> list[str]:
        """Ids of queries that were closed while the core had them."""
        with self._lock:
            return [entry.query.id for entry in self._entries.values() if entry.closed and entry.taken]

    def lost(self, current: Collection[str]) -> list[str]:
        """Ids of queries that the core took and has no more, although their end is not out. current: those it has."""
        with self._lock:
            open_entries = [entry for entry in self._entries.values() if entry.taken and not entry.closed]
            return [entry.query.id for entry in open_entries if entry.query.id not in current]

    def unanswered(self, for_s: float = 0.0) -> list[str]:
        """Ids of queries that have been asked for so many seconds and have no answer."""
        with self._lock:
            until_s = time.monotonic() - for_s
            waiting = [one for one in self._entries.values() if not (one.closed or one.answered)]
            return [entry.query.id for entry in waiting if entry.asked_s <= until_s]

    @property
    def events(self) -> tuple[QueryEvent, ...]:
        """The last event of each current query, in the order of asking."""
        with self._lock:
            return tuple(entry.event for entry in self._entries.values() if entry.event and not entry.closed)

    def _go_out(self, entry: _Entry, event: QueryEvent, is_closing: bool = False) -> None:
        is_first = entry.event is None
        self._send(event)
        entry.event, entry.closed = event, is_closing
        entry.answered = entry.answered or event.state.is_answer
        if _is_end(event) and not is_closing:
            del self._entries[event.query.id]
        self._booked(event, is_first)


def _is_end(event: QueryEvent) -> bool:
    return event.state == QueryState.ENDED or (event.state.is_answer and event.state != QueryState.TRACKING)


def _bare(event: QueryEvent, state: QueryState, text: str) -> QueryEvent:
    """An event of the same query and time, without details."""
    return QueryEvent(event.query, state, text, stamp_ns=event.stamp_ns, frame_id=event.frame_id)
