"""The life of one query, and whose turn it is among several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from decaf_ros.config import DecafConfig
from decaf_ros.config.stream import POLICIES
from decaf_ros.types import Frame, Query, QueryEvent, Window
from decaf_ros.types.checks import quoted

# Most strides between two groundings that search for the same targets.
_MOST_STRIDES = 4


@dataclass(eq=False)
class LiveQuery:
    """A query from its asking to its end.

    Attributes:
        event: its last event.
        answered: answered with TRACKING (any other answer ends the query).
        fresh: to be grounded to be answered, or after a restart of the stream, until that finds targets.
        window: where a fresh query is grounded, if that is fixed already.
        turn: number of its last grounding.
        due_in: key frames until the next grounding may begin.
        sought: ids of the targets that the last grounding did not find.
        rest: key frames until these alone are a reason for the next one.
        fruitless: groundings in a row that found none of the targets they sought.
        anchors: key frames of the answer, which later groundings see too.
    """

    query: Query
    event: QueryEvent | None = None
    answered: bool = False
    fresh: bool = True
    window: Window | None = None
    turn: int = 0
    due_in: int = 0
    sought: frozenset[int] = frozenset()
    rest: int = 0
    fruitless: int = 0
    anchors: tuple[Frame, ...] = ()

    def config(self, config: DecafConfig) -> DecafConfig:
        """The configuration, with the policy of the query."""
        policy = self.query.policy
        if policy in ("", config.regrounding.policy):
            return config
        return dataclasses.replace(config, regrounding=dataclasses.replace(config.regrounding, policy=policy))

    def on_key_frame(self) -> None:
        """A key frame came."""
        self.due_in = max(0, self.due_in - 1)
        self.rest = max(0, self.rest - 1)

    def restart(self) -> None:
        """The stream restarted: it is grounded again on the new one."""
        self.fresh, self.window, self.due_in, self.anchors = True, None, 0, ()

    @property
    def is_waiting(self) -> bool:
        """Whether it is fresh, and the window where it will be grounded is not fixed yet."""
        return self.fresh and self.window is None

    @property
    def window_frames(self) -> tuple[Frame, ...]:
        """The frames of the window that is fixed for it, if any."""
        return self.window.frames if self.window else ()

    def is_due(self, policy: str, sought: frozenset[int]) -> bool:
        """Whether a grounding may begin. Targets that are not to be searched for any more no longer count as sought in
        vain. policy: its own. sought: ids of the targets to be searched for.
        """
        if self.due_in > 0:
            return False
        if self.fresh:
            return self.window is not None
        if policy != "hold":
            return policy == "refresh"
        self.sought &= sought
        if not self.sought:
            self.rest = self.fruitless = 0
        return bool(sought) and (self.rest == 0 or not sought <= self.sought)

    def rest_after(self, sought: frozenset[int], found_not: frozenset[int], stride: int) -> None:
        """Sets when to look again for targets that the grounding has `sought` in vain: they may be gone for long."""
        self.sought = found_not
        self.fruitless = self.fruitless + 1 if sought and found_not == sought else 0
        self.rest = stride * min(2 ** max(self.fruitless - 1, 0), _MOST_STRIDES)


def refusal(text: str, policy: str, config: DecafConfig) -> str:
    """Why a query with this stripped text and policy cannot be asked; else ""."""
    most = config.node.max_query_chars
    if len(text) > most:
        return f"query: expected at most {most} characters, got {len(text)}"
    if policy not in ("", *POLICIES):
        return f"policy: expected one of {', '.join(POLICIES)}, or nothing, got {quoted(policy)}"
    return ""


class Queries:
    """The current queries of a stream, in the order of asking. One thread changes them, any thread may read them."""

    def __init__(self) -> None:
        self._by_id: dict[str, LiveQuery] = {}

    def __iter__(self) -> Iterator[LiveQuery]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __getitem__(self, query_id: str) -> LiveQuery:
        return self._by_id[query_id]

    def __contains__(self, query: str | LiveQuery) -> bool:
        """query: an id, or a query as it is kept here."""
        return query in self._by_id if isinstance(query, str) else self._by_id.get(query.query.id) is query

    def add(self, query: Query) -> None:
        self._by_id[query.id] = LiveQuery(query)

    def remove(self, live: LiveQuery) -> None:
        del self._by_id[live.query.id]

    def note(self, event: QueryEvent) -> None:
        """Keeps the event if its query is current."""
        if event.query.id in self:
            self[event.query.id].event = event

    def fix_windows(self, window: Window) -> None:
        """Fresh queries without a window will be grounded on this one, also if it takes a while until their turn comes:
        those that come between two key frames share what the models make of it."""
        for live in self:
            if live.is_waiting and not live.due_in:
                live.window = window

    def waiting_for(self, window: Window, priority: int) -> list[str]:
        """Texts of the queries of this priority that will be grounded on this window next."""
        return [
            live.query.text.strip()
            for live in self
            if live.fresh and live.window_frames == window.frames and live.query.priority == priority
        ]

    @property
    def newest(self) -> Query | None:
        live = [*self]
        return live[-1].query if live else None

    @property
    def events(self) -> tuple[QueryEvent, ...]:
        """The last event of each query."""
        return tuple(live.event for live in self if live.event)

    @property
    def waiting(self) -> tuple[Query, ...]:
        """The queries that have no answer because there are too few key frames to ground them."""
        return tuple(live.query for live in self if live.is_waiting and not live.answered)

    def whose_turn(self, is_due: Callable[[LiveQuery], bool]) -> LiveQuery | None:
        """The query to be grounded next; None if none is due.

        One without an answer comes first, then fresh ones: of the highest priority, of these the oldest. Among the
        others, the one whose last grounding is the longest ago, so that none that is always due keeps another waiting.
        """
        due = [live for live in self if is_due(live)]
        fresh = [live for live in due if live.fresh]
        if fresh:
            return max(fresh, key=lambda live: (not live.answered, live.query.priority))
        return min(due, key=lambda live: live.turn, default=None)

    def who_gives_way(self) -> LiveQuery:
        """The oldest query of the lowest priority. Raises ValueError without a query."""
        return min(self, key=lambda live: live.query.priority)
