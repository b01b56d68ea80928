"""What happens to each incoming message, live and in replay alike: convert, hand to the core, publish what it says.

Bad input becomes one log line (the next of its kind only after a while), a count and a diagnostic; the stream goes on.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from decaf_ros.config import DecafConfig
from decaf_ros.io.messages import Make, frame_from_message, frame_image, shortened, topic_messages
from decaf_ros.io.viz import overlay
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.statistics import Statistics
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Heatmap, Notice, Output, Query, QueryEvent, QueryState, StageEvent

# A kind of trouble is logged at once, then at most once in this time, with the number of those in between.
LOG_PERIOD_S = 10.0
# Kinds that are told apart; a stream that finds more starts over, so that they cannot pile up.
_MOST_KINDS = 200


class _LogThrottle:
    """Lets one line of each kind through in LOG_PERIOD_S."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def pass_on(self, kind: str, text: str, now: float) -> str:
        """The line to log, or nothing."""
        if kind in self._since and now - self._since[kind] < LOG_PERIOD_S:
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return ""
        if len(self._since) > _MOST_KINDS:
            self._since.clear()
            self._held_back.clear()
        self._since[kind] = now
        more = self._held_back.pop(kind, 0)
        return f"{text} ({more} more like it before)" if more else text


class Handlers:
    """The handlers of one camera stream. All methods but `new_query` belong to one thread.

    publish(topic, message): called for every output, in order. wanted(topic): whether someone looks at `overlay` or
    `heatmaps`; the others are always published. log(level, text): level is "info", "warn" or "error".
    between_stages: as OnlineSegmenter's. watch(output): sees every output of the core after it was published.
    query_numbers, target_ids: where ids come from; who makes several of these hands the same ones to all.
    """

    def __init__(
        self,
        decaf: Decaf,
        make: Make,
        publish: Callable[[str, Any], None],
        log: Callable[[str, str], None],
        wanted: Callable[[str], bool] = lambda topic: True,
        between_stages: Callable[[], None] = lambda: None,
        watch: Callable[[Output], None] = lambda output: None,
        query_numbers: Iterator[int] | None = None,
        target_ids: Iterator[int] | None = None,
    ) -> None:
        self.statistics = Statistics()
        self._decaf = decaf
        self._make = make
        self._publish = publish
        self._log = log
        self._wanted = wanted
        self._watch = watch
        self._online = OnlineSegmenter(decaf, self._on_output, between_stages, lambda: wanted("heatmaps"), target_ids)
        self._query_numbers = itertools.count(1) if query_numbers is None else query_numbers
        self._unanswered: set[str] = set()
        self._throttle = _LogThrottle()
        self._frame_began = 0.0
        self._stopping = False

    def change_config(self, config: DecafConfig) -> None:
        """Takes effect at the next stage or frame. One assignment, so any thread may do it."""
        self._decaf.config = config

    def new_query(self, text: str, stamp_ns: int) -> Query:
        """Gives a question its id: q1, q2, ... in the order of the calls. Blanks around the text are taken off.
        stamp_ns: when it was asked."""
        return Query(f"q{next(self._query_numbers)}", text.strip(), stamp_ns)

    def on_image(self, message: Any) -> None:
        """A sensor_msgs/Image or CompressedImage: published results for it, or a rejection."""
        began = time.perf_counter()
        try:
            frame = frame_from_message(message, self.statistics.used)
        except ValueError as error:
            self.reject_image(error)
            return
        self.statistics.used += 1
        self._frame_began = time.perf_counter()
        self.statistics.average("decode_ms", self._frame_began - began)
        self._online.observe(frame)

    def reject_image(self, error: ValueError) -> None:
        """Counts an image that cannot be used, and says why."""
        self.statistics.rejected += 1
        # What was expected makes the kind; what came, and every number, may differ from image to image.
        self.report(Notice("warn", f"image rejected: {error}"), kind=re.sub(r"[,;].*|\d+", "", str(error)))

    def on_query(self, query: Query) -> None:
        """A question, or an empty text, which ends the current one. Its answer comes on `status`."""
        self.statistics.queries += 1
        self._log("info", f"query {query.id}: {shortened(query.text)!r}")
        self._online.ask(query)

    def cancel(self, query_id: str, reason: str) -> None:
        """Ends the query if it is the current one; one that has ended has had its answer."""
        if self._online.query is not None and self._online.query.id == query_id:
            self._end_current(reason)

    def answer_waiting(self, reason: str) -> None:
        """Ends the query that has no answer yet, if there is one, so that it gets it."""
        for query_id in list(self._unanswered):
            self.cancel(query_id, reason)

    def stop(self, reason: str) -> None:
        """Ends the stream on purpose, so without a warning: the current query ends, answered or not, and frames and
        targets are forgotten."""
        self._stopping = True
        try:
            if self._online.query is not None:
                self._end_current(reason)
            if self._online.buffer.newest is not None:
                self._online.reset(reason)
        finally:
            self._stopping = False
        self.statistics.targets = 0

    def _end_current(self, reason: str) -> None:
        event = self.statistics.event
        self._online.cancel(self._online.query.id, reason)
        if self.statistics.event is event:  # a query that had its answer ends without another event
            self.statistics.event = None

    def report(self, notice: Notice, kind: str) -> None:
        """Tells people: in the log, unless the same kind was just told, and in the diagnostics."""
        self.statistics.note(notice)
        if line := self._throttle.pass_on(kind, notice.text, time.monotonic()):
            self._log(notice.level, line)

    def _on_output(self, output: Output) -> None:
        if isinstance(output, FrameResult):
            self._publish_result(output)
        elif isinstance(output, QueryEvent):
            self._publish_event(output)
        elif isinstance(output, Heatmap):
            if self._wanted("heatmaps"):
                self._publish_all(output)
        elif isinstance(output, StageEvent):
            self.statistics.stage = output
        elif not self._stopping:  # what is done on purpose is no trouble
            self.report(output, kind=output.text.split(":")[0])
        self._watch(output)

    def _publish_event(self, event: QueryEvent) -> None:
        query = event.query
        self._publish_all(event)
        failed, refused = event.state == QueryState.FAILED, query.id not in self._unanswered
        self._unanswered.add(query.id)
        if event.state.is_answer:
            self._unanswered.remove(query.id)
        # A query that is refused leaves the one before as it was.
        if self._online.query in (None, query):
            self.statistics.event = event
        self.statistics.stage_ms = event.stage_ms or self.statistics.stage_ms
        # A grounding that failed was told of in a notice.
        if refused or not failed:
            text = f"query {query.id}: {event.state.name}{': ' if event.text else ''}{event.text}"
            self._log("warn" if failed else "info", text)

    def _publish_result(self, result: FrameResult) -> None:
        tracked = time.perf_counter()
        self.statistics.average("track_ms", tracked - self._frame_began)
        self._publish_all(result)
        if self._wanted("overlay"):
            event = self.statistics.event
            text, state = (shortened(event.query.text), event.state.name) if event else ("", "")
            picture = overlay(result, state, text)
            self._publish("overlay", frame_image(self._make, picture, result.frame))
        self.statistics.result_ns = result.frame.stamp_ns
        self.statistics.targets = len(result.targets)
        self.statistics.average("publish_ms", time.perf_counter() - tracked)

    def _publish_all(self, output: Output) -> None:
        for topic, message in topic_messages(self._make, output):
            self._publish(topic, message)
