"""Whose turn it is: one grounding at a time over all streams of one Decaf, whose engine runs one task at a time."""

from __future__ import annotations

from typing import Protocol

from decaf_ros.online.ahead import Ahead
from decaf_ros.online.query import LiveQuery
from decaf_ros.pipeline import Decaf
from decaf_ros.stages import Steps
from decaf_ros.types import Query, Window


class Stream(Protocol):
    """A camera's stream, as `Turns` sees it."""

    @property
    def window(self) -> Window | None:
        """The newest key frames; None without one."""

    def due(self) -> LiveQuery | None:
        """The query to be grounded next; None if none is due now."""

    def begin(self, live: LiveQuery) -> Steps[None]:
        """The task that grounds this query."""


class Turns:
    """Runs the groundings of several streams, and what they prepare ahead, in units. Call it from one thread.

    Streams wait in the order in which they `ask`. When a grounding ends, the next one begins at once, whether its
    camera still sends images or not; a stream in which nothing is due any more is skipped. A question without an answer
    comes first, by priority. A running search makes way for it, and then waits as the first one; in the question's own
    stream it begins again with the next image. After a grounding, its stream asks again with its next image, or at once
    if another question waits in it.
    """

    def __init__(self, decaf: Decaf) -> None:
        self._decaf = decaf
        self._ahead = Ahead(decaf)
        self._streams: list[Stream] = []
        self._waiting: list[Stream] = []
        # The running grounding: its stream, query and task, and whether it yields to a question, as it only searches.
        self._holder: Stream | None = None
        self._live: LiveQuery | None = None
        self._task: Steps[None] | None = None
        self._yields = False
        self._in_unit = False

    @property
    def query(self) -> Query | None:
        """The query whose grounding is running. From any thread."""
        live = self._live
        return live.query if live is not None and (self._task is not None or self._in_unit) else None

    def join(self, stream: Stream) -> None:
        """Adds a stream."""
        self._streams.append(stream)

    def ask(self, stream: Stream) -> None:
        """A grounding of this stream may be due: begins it, or lets it wait for its turn."""
        if stream is not self._holder and stream not in self._waiting:
            self._waiting.append(stream)
        self._pass_on()

    def advance(self) -> bool:
        """Runs the next unit of the grounding, if one is running. Returns whether there is another."""
        task = self._task
        if task is None or self._in_unit:
            return False
        self._in_unit = True
        try:
            next(task)
        except StopIteration:
            self._task = None
        except BaseException:
            self._task = None
            raise
        finally:
            self._in_unit = False
            if self._task is None:
                self._end()
                task.close()  # an output of the unit may have made it obsolete
            self._pass_on()
        return self._task is not None

    def give_way(self, stream: Stream) -> None:
        """A question comes to this stream, which will `ask`: its own search, if one is running, begins again later."""
        if self._task is not None and self._holder is stream and self._yields:
            assert self._live is not None
            self._live.due_in = 0
            self._close()

    def abandon(self, live: LiveQuery) -> None:
        """Abandons the grounding of this query, if it is running. Its query has ended."""
        if self._task is not None and self._live is live:
            self._close()
            self._pass_on()

    def prepare(self) -> bool:
        """Runs a unit of work that a later question will need, if any is left and its time has come. To be called while
        nothing else is due. Returns whether it ran one."""
        if self._task is not None or self._in_unit:
            return False
        return self._ahead.advance([stream.window for stream in self._streams], self._decaf.config)

    def _close(self) -> None:
        """Ends the running task; within its own unit `advance` does so after it."""
        task, self._task = self._task, None
        if task is not None and not self._in_unit:
            self._holder = None
            task.close()

    def _end(self) -> None:
        """The grounding has ended. Another question of its stream waits again; other groundings for its next image."""
        stream, self._holder = self._holder, None
        if stream is not None and (live := stream.due()) is not None and live.fresh:
            self._waiting.append(stream)

    def _pass_on(self) -> None:
        """Begins the next grounding if none is running, or only a search while a question waits."""
        if self._in_unit or (self._task is not None and not self._yields):
            return
        due = [(stream, live) for stream in self._waiting if (live := stream.due()) is not None]
        self._waiting = [stream for stream, _ in due]
        questions = [one for one in due if one[1].fresh and not one[1].answered]
        if self._task is not None:
            if not questions:
                return
            assert self._live is not None and self._holder is not None
            self._task.close()
            self._live.due_in = 0
            self._waiting.insert(0, self._holder)
        if due:
            stream, live = max(questions, key=lambda one: one[1].query.priority) if questions else due[0]
            self._waiting.remove(stream)
            self._ahead.stop()
            self._holder, self._live, self._yields = stream, live, not live.fresh
            self._task = stream.begin(live)
