"""Message handlers, shared by the live node and the replay: convert input, pass it to the core, publish the outputs.

Invalid input gives a rate-limited log line, a count and a diagnostic; the stream continues.
"""

from __future__ import annotations

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from decaf_ros.config import DecafConfig
from decaf_ros.io.images import Convert, builtin_rgb
from decaf_ros.io.mask_codes import with_codes
from decaf_ros.io.messages import (
    Make,
    frame_from_message,
    frame_image,
    mask_messages,
    shortened,
    topic_messages,
    tracklet_array,
)
from decaf_ros.io.stamps import StreamStamps
from decaf_ros.io.vision_messages import detections, label_info, label_names
from decaf_ros.io.viz import overlay
from decaf_ros.online.ledger import Ledger
from decaf_ros.online.patience import Patience
from decaf_ros.online.segmenter import RESET_NOTICE, OnlineSegmenter
from decaf_ros.online.space import SpaceOutputs, Transforms
from decaf_ros.online.statistics import Statistics
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Heatmap, Notice, Output, Query, QueryEvent, QueryState, StageEvent

_log = logging.getLogger(__name__)
# Minimum time between two log lines of one kind. The later line has the number of suppressed ones.
LOG_PERIOD_S = 10.0
# More kinds than this clear the throttle, which bounds its memory.
_MAX_KINDS = 200


class _LogThrottle:
    """Passes one line of each kind per LOG_PERIOD_S."""

    def __init__(self) -> None:
        self._logged_at: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def filter(self, kind: str, text: str, now: float) -> str:
        """The line to log, or "". now: seconds (time.monotonic)."""
        if kind in self._logged_at and now - self._logged_at[kind] < LOG_PERIOD_S:
            self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
            return ""
        if len(self._logged_at) > _MAX_KINDS:
            self._logged_at.clear()
            self._suppressed.clear()
        self._logged_at[kind] = now
        suppressed = self._suppressed.pop(kind, 0)
        return f"{text} ({suppressed} more like it before)" if suppressed else text


class Handlers:
    """The handlers of one camera stream. Call all methods from one thread, except those under "From any thread".

    space: the 3D outputs, if `space.enabled`; else None.
    ledger: the queries and their answers.

    Args:
        make: message factory, see `decaf_ros.io.messages`.
        publish: called with topic and message for every output, in order.
        log: called with level ("info", "warn", "error") and text.
        is_wanted: whether a topic is published and has a consumer. `masks`, `target_mask`, `tracklets` and `status` are
            always published; it decides about the masks in `tracklets`. A latched topic needs no consumer.
        live: see `OnlineSegmenter`.
        watch: called with every output of the core after it was published.
        query_numbers: supply of query numbers. Share it between several Handlers, so ids stay unique.
        target_ids: the same for target ids.
        convert: makes RGB of raw images.
        turns: shared by all Handlers of `decaf`; default: these are the only ones.
        clock: seconds, for the waiting of 3D outputs.
        transforms: for 3D outputs; None: there are none. Raises ValueError if `space.target_frame` needs them.
    """

    def __init__(
        self,
        decaf: Decaf,
        make: Make,
        publish: Callable[[str, Any], None],
        log: Callable[[str, str], None],
        is_wanted: Callable[[str], bool] = lambda topic: True,
        live: bool = False,
        watch: Callable[[Output], None] = lambda output: None,
        query_numbers: Iterator[int] | None = None,
        target_ids: Iterator[int] | None = None,
        convert: Convert = builtin_rgb,
        turns: Turns | None = None,
        clock: Callable[[], float] = time.monotonic,
        transforms: Transforms | None = None,
    ) -> None:
        self.statistics = Statistics()
        self._decaf = decaf
        self._make = make
        self._publish = publish
        self._log = log
        self._is_wanted = is_wanted
        self._watch = watch
        self._convert = convert
        self._online = OnlineSegmenter(
            decaf,
            self._on_output,
            live,
            lambda: is_wanted("heatmaps"),
            target_ids,
            turns,
            want_confidence=lambda: is_wanted("confidence"),
        )
        self._query_numbers = itertools.count(1) if query_numbers is None else query_numbers
        self.ledger = Ledger(self._publish_all, self._on_booked)
        self._throttle = _LogThrottle()
        self._stamps = StreamStamps(self._warn_once)
        # By id, for each query that has no answer yet.
        self._patience: dict[str, Patience] = {}
        self._warned: set[str] = set()
        self._frame_began = 0.0
        self._label_names: tuple[tuple[int, str], ...] | None = None
        self.space: SpaceOutputs | None = None
        if decaf.config.space.enabled:
            keep_all = not (live and decaf.config.node.drop_frames)
            self.space = SpaceOutputs(
                make,
                publish,
                is_wanted,
                self.report,
                self.statistics,
                lambda: decaf.config,
                clock,
                keep_all,
                transforms,
            )
        self._stopping = False

    # From any thread

    def change_config(self, config: DecafConfig) -> None:
        """Sets the configuration. Takes effect at its next use."""
        self._decaf.config = config

    def new_query(self, text: str, stamp_ns: int, policy: str = "", priority: int = 0) -> Query:
        """Makes a query with id q1, q2, ... in call order and with its text stripped. stamp_ns: time of the query."""
        return Query(f"q{next(self._query_numbers)}", text.strip(), stamp_ns, policy, priority)

    @property
    def is_waiting(self) -> bool:
        """Whether a query waits for key frames."""
        return bool(self._online.queries.waiting)

    # From one thread

    def on_image(self, message: Any, arrival_ns: int | None = None) -> None:
        """Publishes the results for a sensor_msgs/Image or CompressedImage, or rejects it, whatever decoding raises.

        arrival_ns: when it came; default: now. Takes the place of a stamp that does not tell the time, see
        `decaf_ros.io.stamps.StreamStamps`.
        """
        began = time.perf_counter()
        arrival_ns = time.time_ns() if arrival_ns is None else arrival_ns

        def settle(stamp_ns: int) -> int:
            return self._stamps.settled(stamp_ns, arrival_ns, self._decaf.config.window.jump_back_s)

        try:
            max_mpx = self._decaf.config.node.max_image_mpx
            frame = frame_from_message(message, self.statistics.used, self._warn_once, settle, max_mpx, self._convert)
        except Exception as error:  # a driver may send anything, and a decoder raise anything: the frame is counted
            if not isinstance(error, ValueError):
                _log.debug("decoding failed", exc_info=error)
                error = ValueError(f"unexpected error: {error!r}")
            self.reject_image(error, arrival_ns)
            return
        self._time_waiting(arrival_ns)
        self.statistics.used += 1
        self._frame_began = time.perf_counter()
        self.statistics.average("decode_ms", self._frame_began - began)
        if self.space is not None:
            self.space.begin(frame)
        self._online.observe(frame)
        self.check_patience()

    def note_ready(self) -> None:
        """Notes how much of the window is prepared for a question."""
        self.statistics.ready = self._online.ready_share

    def reject_image(self, error: ValueError, arrival_ns: int | None = None) -> None:
        """Counts and reports an image that cannot be used. arrival_ns: see `on_image`."""
        self.statistics.rejected += 1
        arrival_ns = time.time_ns() if arrival_ns is None else arrival_ns
        self._time_waiting(arrival_ns, str(error))
        # The kind is the expectation in the error text, without numbers and the part that was received.
        self.report(Notice("warn", f"image rejected: {error}"), kind=re.sub(r"[,;].*|\d+", "", str(error)))
        self.check_patience()

    def check_patience(self) -> None:
        """Answers queries with FAILED that have waited for key frames longer than `window.patience_s`. To be called now
        and then if no image comes."""
        window = self._decaf.config.window
        for query in self._online.queries.waiting:
            patience = self._patience[query.id]
            if patience.is_over(window.patience_s):
                reason = (
                    f"expected {window.min_frames} key frames within {window.patience_s:g} s (window.patience_s), got "
                    f"{self._online.buffer.keyframe_count}: {patience.missing}"
                )
                self._online.fail(query, reason)

    def _time_waiting(self, arrival_ns: int, rejected: str = "") -> None:
        """An image came. rejected: why it could not be used."""
        waiting = {query.id for query in self._online.queries.waiting}
        for query_id, patience in self._patience.items():
            patience.image(arrival_ns, query_id in waiting, rejected)

    def on_query(self, query: Query) -> None:
        """Passes a query to the core. An empty text ends the current ones. The answer is published on `status`. A query
        that has ended before (`Ledger.close`) changes nothing."""
        self.statistics.queries += 1
        self._log("info", f"query {query.id}: {shortened(query.text)!r}")
        if self.ledger.take(query):
            self._online.ask(query)
            self._note_queries()

    def settle(self) -> None:
        """Brings core and ledger in line: ends queries in the core that have ended already, and answers those that the
        core has lost in an error."""
        for query_id in self.ledger.closed:
            self.cancel(query_id, "it has ended")
            self.ledger.forget(query_id)
            self._note_queries()
        for query_id in self.ledger.lost([live.query.id for live in self._online.queries]):
            try:
                self.ledger.close(query_id, QueryState.FAILED, "its answer was lost in an unexpected error")
            finally:
                self.ledger.forget(query_id)

    def cancel(self, query_id: str, reason: str) -> list[str]:
        """Ends a current query, or all if the id is empty. Returns the ids of those that it ended."""
        if query_id and query_id not in self._online.queries:
            return []
        return self._online.cancel(query_id, reason)

    def cancel_unanswered(self, reason: str) -> None:
        """Ends the queries that have no answer yet, so that they are answered with CANCELLED."""
        for query_id in self.ledger.unanswered():
            self.cancel(query_id, reason)

    def stop(self, reason: str) -> None:
        """Ends the stream intentionally, without a warning: ends the current queries, clears frames and targets."""
        self._stopping = True
        try:
            if self._online.query is not None:
                self.cancel("", reason)
            if self._online.buffer.newest is not None:
                self._online.reset(reason)
        finally:
            self._stopping = False
        if self.space is not None:
            self.space.publish_ready(is_end=True)
        self.statistics.targets = 0

    def _note_queries(self) -> None:
        """Notes the last events of the current queries."""
        events = self.ledger.events
        self.statistics.live = events
        if events:
            self.statistics.event = events[-1]

    def report(self, notice: Notice, kind: str) -> None:
        """Reports a notice in the diagnostics and, throttled by kind, in the log."""
        self.statistics.note(notice)
        if line := self._throttle.filter(kind, notice.text, time.monotonic()):
            self._log(notice.level, line)

    def _on_output(self, output: Output) -> None:
        if isinstance(output, FrameResult):
            output = self._publish_result(output)
        elif isinstance(output, QueryEvent):
            self._publish_event(output)
            return  # the ledger has shown it to the watcher
        elif isinstance(output, Heatmap):
            if self._is_wanted("heatmaps"):
                self._publish_all(output)
        elif isinstance(output, StageEvent):
            self.statistics.stage = output
        elif not self._stopping:  # `stop` is intentional, so its notices are no problem
            kind, _, reason = output.text.partition(": ")
            if kind == RESET_NOTICE:
                for patience in self._patience.values():
                    patience.reset(reason)
            self.report(output, kind=kind)
        self._watch(output)

    def _warn_once(self, text: str) -> None:
        """Reports something about the camera that stays as it is."""
        if text not in self._warned and len(self._warned) < _MAX_KINDS:
            self._warned.add(text)
            self.report(Notice("warn", text), kind=text)

    def _publish_event(self, event: QueryEvent) -> None:
        """Publishes an event of the core, unless its query has ended already."""
        if event.state == QueryState.RECEIVED:
            self._patience[event.query.id] = Patience()
        elif event.state.is_answer:
            self._patience.pop(event.query.id, None)
        if self.ledger.publish(event):
            self.statistics.stage_ms = event.stage_ms or self.statistics.stage_ms

    def _on_booked(self, event: QueryEvent, is_first: bool) -> None:
        """Notes an event that is out. From any thread, one at a time."""
        self.statistics.event = None if event.state == QueryState.ENDED else event
        self._note_queries()  # a refused query leaves the current ones unchanged
        failed = event.state == QueryState.FAILED
        # A failed grounding was already reported by a notice. FAILED as the first event is a refused query.
        if is_first or not failed:
            text = f"query {event.query.id}: {event.state.name}{': ' if event.text else ''}{event.text}"
            self._log("warn" if failed else "info", text)
        self._watch(event)

    def _publish_result(self, result: FrameResult) -> FrameResult:
        """Publishes a result. Returns it with the places of its targets, as far as they are known."""
        tracking_ended = time.perf_counter()
        self.statistics.average("track_ms", tracking_ended - self._frame_began)
        for topic, message in mask_messages(self._make, result):
            self._publish(topic, message)
        if result.confidence is not None:
            self._publish("confidence", frame_image(self._make, result.confidence, result.frame))
        if self.space is not None:
            result = self.space.locate(result)
        # `tracklets` is always published, but encoding its masks takes time.
        if self._is_wanted("tracklets"):
            result = self._with_codes(result)
        self._publish("tracklets", tracklet_array(self._make, result))
        self._publish_detections(result)
        if self._is_wanted("overlay"):
            events = self.statistics.events
            states = ", ".join(dict.fromkeys(event.state.name for event in events))
            picture = overlay(result, states, "; ".join(shortened(event.query.text) for event in events))
            self._publish("overlay", frame_image(self._make, picture, result.frame))
        if self.space is not None:
            self.space.publish_ready()
        self.statistics.result_ns = result.frame.stamp_ns
        self.statistics.targets = len(result.targets)
        self.statistics.average("publish_ms", time.perf_counter() - tracking_ended)
        return result

    def _with_codes(self, result: FrameResult) -> FrameResult:
        """The result with the masks that `outputs.tracklet_masks` asks for."""
        config = self._decaf.config.outputs
        result, left_out = with_codes(result, config)
        if left_out:
            text = (
                f"outputs.tracklet_masks: expected masks of at most {config.tracklet_masks_kib} KiB in a message "
                f"(outputs.tracklet_masks_kib), got more: target {', '.join(map(str, left_out))} has none"
            )
            self.report(Notice("warn", text), kind="outputs.tracklet_masks")
        return result

    def _publish_detections(self, result: FrameResult) -> None:
        """Publishes `detections`, and `label_info` when labels change."""
        if self._is_wanted("detections"):
            self._publish("detections", detections(self._make, result))
        names = label_names(result)
        if names != self._label_names and self._is_wanted("label_info"):
            self._label_names = names
            threshold = self._decaf.config.segmentation.tracklet_threshold
            self._publish("label_info", label_info(self._make, result, threshold))

    def _publish_all(self, output: Output) -> None:
        for topic, message in topic_messages(self._make, output):
            self._publish(topic, message)
