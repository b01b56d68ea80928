"""Answers queries about a live stream: buffer frames, ground a query on past key frames, catch up, track.

The life of a query, from top to bottom of `OnlineSegmenter`: `ask` receives it. `_ground` grounds it on the window as
soon as that has enough key frames, catches up with the stream and answers. `_follow` tracks the targets on every frame.
`_ground` repeats periodically and keeps target ids. `cancel`, an empty query or, by `queries.mode`, another query ends
it. The memory of each query: `decaf_ros.online.query`. Whose turn it is, also among several streams:
`decaf_ros.online.turns`.

A grounding is a task of bounded units (`decaf_ros.stages.Steps`), one at a time. A live stream calls `advance` for
each, and goes on between them. The outputs depend only on the order of calls; the clock is read only to measure stage
times. This module uses neither ROS nor threads.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from decaf_ros.answers import absence, first_line, heatmaps, left_out_text, pixel_keypoints, tracking_text
from decaf_ros.io.sizes import at_camera_size, bounded
from decaf_ros.online.anchors import anchored, choose_anchors
from decaf_ros.online.confidence import confidence_image
from decaf_ros.online.edges import ImageEdges
from decaf_ros.online.follower import Follower
from decaf_ros.online.query import LiveQuery, Queries, refusal
from decaf_ros.online.turns import Turns
from decaf_ros.online.window import FrameBuffer
from decaf_ros.pipeline import STAGES, Decaf, even_if_absent
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import Frame, Notice, Output, Query, QueryEvent, QueryState, Segmentation, StageEvent, Window
from decaf_ros.types.checks import quoted

_log = logging.getLogger(__name__)
RESET_NOTICE = "stream reset"
_STAGES = (*(stage for stage in STAGES if stage != "dense"), "catch_up")


class OnlineSegmenter:
    """One camera stream and its queries. Call all methods from one thread; `queries` may be read from any.

    `decaf.config` is read at each use, so it may change at any time.

    Args:
        emit: called with every output, in order.
        live: a grounding begins in `observe` or `ask` and goes on in `advance`. Otherwise it ends within the call that
            began it, as if it took no time.
        want_heatmaps: called after each grounding; whether to emit heatmaps.
        target_ids: supply of target ids. Share one between several segmenters with one consumer, so ids stay unique.
        turns: shared by all segmenters of `decaf`; default: this is the only one.
        want_confidence: called for each frame; whether its result has a confidence image.
    """

    def __init__(
        self,
        decaf: Decaf,
        emit: Callable[[Output], None],
        live: bool = False,
        want_heatmaps: Callable[[], bool] = lambda: True,
        target_ids: Iterator[int] | None = None,
        turns: Turns | None = None,
        want_confidence: Callable[[], bool] = lambda: False,
    ) -> None:
        self.buffer = FrameBuffer()
        self.queries = Queries()
        self._decaf = decaf
        self._emit = emit
        self._live = live
        self._want_heatmaps = want_heatmaps
        self._want_confidence = want_confidence
        self._follower = Follower(decaf.sam2, target_ids)
        self._targets = self._follower.targets
        self._edges = ImageEdges(decaf.sam2)
        self._turns = turns or Turns(decaf)
        self._turns.join(self)
        self._groundings = 0
        self._warned_about_stamps = False

    @property
    def query(self) -> Query | None:
        """The newest current query: waiting, being grounded or tracked."""
        return self.queries.newest

    # Inputs

    def observe(self, frame: Frame) -> None:
        """Adds the next frame of the stream: emits exactly one FrameResult, then grounds the query if that is due.

        Another image size, or a stamp that jumps back by `window.jump_back_s` or more, resets the stream. A frame with
        an equal or slightly earlier stamp is tracked as usual, but is never a key frame. A smaller copy of an image
        larger than `window.max_side` is kept; its result is on `frame` itself.
        """
        camera_frame, frame = frame, bounded(frame, self._decaf.config.window.max_side)
        if reason := self.buffer.break_before(frame, self._decaf.config.window):
            self.reset(reason)
        newest = self.buffer.newest
        if newest is not None and frame.stamp_ns <= newest.stamp_ns and not self._warned_about_stamps:
            self._warned_about_stamps = True
            text = f"stamp {frame.stamp_ns} ns comes after {newest.stamp_ns} ns: only frames in order can be key frames"
            self._emit(Notice("warn", text))
        is_keyframe = self.buffer.push(frame, self._decaf.config.window)
        if is_keyframe:
            # The next groundings reuse what the models make of these frames.
            needed = [key for live in self.queries for key in (*self._anchors(live), *live.window_frames)]
            self._decaf.hold(self, (*self.buffer.window().frames, *needed))
            for live in self.queries:
                live.on_key_frame()
        self._follow(frame, is_keyframe, camera_frame)
        self._begin_if_due()

    def ask(self, query: Query) -> None:
        """Starts a new query. Grounds it at once if there are enough key frames and it is its turn, else later.

        With `queries.mode` replace it ends the current ones; with add, only one if there are more than `queries.most`.
        An empty text only ends all current queries. A text over `node.max_query_chars` or an unknown policy is answered
        with FAILED and changes nothing. Raises ValueError for the id of a current query.
        """
        if query.id in self.queries:
            raise ValueError(f"query id: expected a new one, got {quoted(query.id)}, a current query's")
        text, config = query.text.strip(), self._decaf.config
        if reason := refusal(text, query.policy, config):
            self._emit_event(query, QueryState.FAILED, reason)
            return
        if not text:
            for live in self.queries:
                self._end(live, QueryState.CANCELLED, "cleared by an empty query")
            self._emit_event(query, QueryState.CANCELLED, "the query was empty: targets cleared")
            return
        for live in self.queries if config.queries.mode == "replace" else ():
            self._end(live, QueryState.SUPERSEDED, f"superseded by query {query.id}")
        self._turns.give_way(self)
        self.queries.add(query)
        count, needed = self.buffer.keyframe_count, config.window.min_frames
        waiting = f"waiting for key frames: {count} of {needed}" if count < needed else ""
        self._emit_event(query, QueryState.RECEIVED, waiting)
        while len(self.queries) > config.queries.most:
            reason = f"gave way: at most {config.queries.most} queries at once (queries.most)"
            self._end(self.queries.who_gives_way(), QueryState.SUPERSEDED, reason)
        self._begin_if_due()

    def cancel(self, query_id: str = "", reason: str = "cancelled on request") -> list[str]:
        """Ends a current query, or all of them. Returns their ids.

        A query that was already answered gets no second answer, but the event ENDED. Raises ValueError if `query_id` is
        neither empty nor the id of a current query.
        """
        if query_id and query_id not in self.queries:
            ids = ", ".join(repr(live.query.id) for live in self.queries) or "no query is current"
            raise ValueError(f"query id: expected that of a current query ({ids}), got {quoted(query_id)}")
        ended = [live for live in self.queries if query_id in ("", live.query.id)]
        for live in ended:
            self._end(live, QueryState.CANCELLED, reason)
        self._begin_if_due()
        return [live.query.id for live in ended]

    def fail(self, query: Query, reason: str) -> None:
        """Answers a current query that has no answer yet with FAILED."""
        self._end(self.queries[query.id], QueryState.FAILED, reason)

    def reset(self, reason: str) -> None:
        """Restarts the stream: clears window, buffer and targets. The queries stay and are grounded again."""
        self._emit(Notice("warn", f"{RESET_NOTICE}: {reason}"))
        self.buffer.clear()
        self._decaf.hold(self, ())
        self._warned_about_stamps = False
        self._follower.lose_all()
        self._targets.forget_missing()
        for live in self.queries:
            live.restart()
            self._turns.abandon(live)

    # Grounding

    def advance(self) -> bool:
        """Runs the next unit of the grounding, if one is running. Returns whether there is another. See `Turns`."""
        return self._turns.advance()

    def prepare(self) -> bool:
        """Runs a unit of work that the next question will need. Returns whether it ran one. See `Turns`."""
        return self._turns.prepare()

    @property
    def window(self) -> Window | None:
        """The newest key frames; None without one."""
        return self.buffer.window() if self.buffer.keyframe_count else None

    @property
    def ready_share(self) -> float:
        """How much of the window is prepared for a question, in [0, 1]."""
        window = self.window
        return self._decaf.grounder.ready_share(window, self._decaf.config) if window else 0.0

    def _begin_if_due(self) -> None:
        """Begins a grounding if one is due and it is this stream's turn."""
        if self.buffer.keyframe_count >= self._decaf.config.window.min_frames:
            self.queries.fix_windows(self.buffer.window())
        self._turns.ask(self)
        while not self._live and self._turns.advance():
            pass

    def due(self) -> LiveQuery | None:
        """The query whose grounding is due."""
        config, newest = self._decaf.config, self.buffer.newest
        if newest is None or self.buffer.keyframe_count < config.window.min_frames:
            return None
        search_after_s = config.regrounding.search_after_s

        def is_due(live: LiveQuery) -> bool:
            sought = self._targets.sought(newest, search_after_s, live.query)
            return live.is_due(live.config(config).regrounding.policy, sought)

        return self.queries.whose_turn(is_due)

    def begin(self, live: LiveQuery) -> Steps[None]:
        """The task that grounds this query. For `Turns`."""
        self._groundings += 1
        live.turn = self._groundings
        return self._answering(live)

    def _answering(self, live: LiveQuery) -> Steps[None]:
        """Grounds the query. An error outside the models' work ends it with FAILED before it goes on to the caller."""
        try:
            yield from self._ground(live)
        except Exception as error:
            if live in self.queries and not live.answered:
                self._end(live, QueryState.FAILED, f"unexpected error: {first_line(error)}")
            raise

    def _anchors(self, live: LiveQuery) -> tuple[Frame, ...]:
        """Older key frames that a later grounding of a query sees besides the newest ones."""
        if not live.answered or live.config(self._decaf.config).regrounding.policy == "off":
            return ()
        return (*live.anchors, *self._targets.last_key_frames(live.query))

    def _ground(self, live: LiveQuery) -> Steps[None]:
        """Grounds the query on the window, catches up with the stream, and answers the query or updates its targets."""
        config = live.config(self._decaf.config)
        window = live.window or anchored(self.buffer.window(), self._anchors(live), config.window.min_frames)
        was_fresh = live.fresh
        may_join = was_fresh or config.regrounding.policy == "refresh"
        known = [] if may_join else self._targets.key_masks
        live.fresh, live.window, live.due_in = False, None, config.regrounding.stride
        if not live.answered:
            short = f" (window.size is {config.window.size})" if len(window) < config.window.size else ""
            text = f"looking back over {len(window)} key frames{short}"
            self._emit_event(live.query, QueryState.GROUNDING, text, window)
        clock = StageClock(_STAGES, partial(self._report_stage, live.query))
        failed = out_of_memory = False
        try:
            # The stream's window moves on meanwhile; the catch-up still needs the key frames of this one.
            with self._decaf.sam2.holding(window.frames):
                found = yield from self._decaf.steps(
                    window,
                    live.query.text.strip(),
                    progress=partial(self._report_stage, live.query),
                    others=lambda: self.queries.waiting_for(window, live.query.priority),
                )
                if self._want_heatmaps():
                    for heatmap in heatmaps(found, live.query):
                        self._emit(heatmap)
                missing = absence(found, config)
                if not may_join:
                    found = even_if_absent(found, config)
                if missing and may_join:
                    found = dataclasses.replace(found, selected=())
                caught = yield from self._follower.catch_up(found, self.buffer, config, clock, known)
        except Exception as error:  # any model error, including out of memory: the stream continues
            self._fail(live, error, was_fresh)
            failed, out_of_memory = True, isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # after the except block: its error references the tensors of the failed work
            self._decaf.release()
        if failed or live not in self.queries or live.fresh:
            return  # an output of this unit ended the query, or reset the stream
        # No frame can arrive from here on, so both trackers are at the newest frame.
        newest = self.buffer.newest
        assert newest is not None
        means_one, category = found.grounding.means_several is False, found.grounding.category
        # Read again: live options may have changed.
        config = live.config(self._decaf.config)
        search_after_s, stride = config.regrounding.search_after_s, config.regrounding.stride
        sought = self._targets.sought(newest, search_after_s, live.query)
        matched = self._follower.merge(caught, live.query, category, newest, config, may_join, means_one)
        live.rest_after(sought, sought - matched, stride)
        # Key frames during the grounding do not count, or a slow grounding would always be due again at once.
        live.due_in = stride
        if not live.answered:
            self._answer(live, found, missing, (*found.stage_ms, *clock.stage_ms))
        elif was_fresh:  # after a restart: without targets there is nothing to hold or to search for
            live.fresh = not self._targets.living_of(live.query)
            if not live.fresh:
                live.anchors = choose_anchors(found, config.regrounding.anchors)

    def _report_stage(self, query: Query, stage: str, progress: float) -> None:
        self._emit(StageEvent(query, stage, progress))

    def _answer(
        self, live: LiveQuery, found: Segmentation, missing: str, stage_ms: tuple[tuple[str, float], ...]
    ) -> None:
        """Answers after the first grounding: NOT_FOUND with the reason `missing`, or TRACKING if that is empty."""
        category = found.grounding.category
        ids = tuple(target.id for target in self._targets.living_of(live.query))
        details: dict[str, Any] = {
            "window": found.window,
            "category": category,
            "presence": found.presence,
            "stage_ms": stage_ms,
            "target_ids": ids,
            "keypoints": tuple(pixel_keypoints(found)),
        }
        left_out = left_out_text(found.points)
        if missing:
            self._end(live, QueryState.NOT_FOUND, missing + left_out, **details)
            return
        live.anchors = choose_anchors(found, self._decaf.config.regrounding.anchors)
        text, places = tracking_text(len(ids), category), self._decaf.config.tracking.max_targets
        if not ids and len(self._targets.living) >= places:
            text += f" (all {places} places are taken: tracking.max_targets)"
        live.answered = True  # before the event: what it causes may end the query
        try:
            self._emit_event(live.query, QueryState.TRACKING, text + left_out, **details)
        except BaseException:  # it is not out
            live.answered = False
            raise

    def _fail(self, live: LiveQuery, error: Exception, was_fresh: bool) -> None:
        _log.debug("grounding failed", exc_info=error)
        if live not in self.queries:
            return
        live.fresh, live.due_in = was_fresh, live.config(self._decaf.config).regrounding.stride
        self._emit(Notice("error", f"grounding of query {live.query.id} failed: {first_line(error)}"))
        if live in self.queries and not live.answered:
            self._end(live, QueryState.FAILED, first_line(error))

    # Tracking

    def _follow(self, frame: Frame, is_keyframe: bool, camera_frame: Frame) -> None:
        """Tracks the targets on `frame` and emits the result on `camera_frame`. If the tracker raises, all are lost."""
        tracked, out_of_memory = [live for live in self.queries if self._targets.living_of(live.query)], False
        try:
            self._follower.step(frame, is_keyframe, self._decaf.config)
        except Exception as error:  # as in _ground
            _log.debug("tracking failed", exc_info=error)
            self._emit(Notice("error", f"tracking failed, all targets are lost: {first_line(error)}"))
            self._follower.lose_all()
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # after the except block, as in _ground
            self._decaf.release()
        for live in tracked:
            if not self._targets.living_of(live.query):
                live.due_in = min(live.due_in, 1)
        answered = [live.query for live in self.queries if live.answered]
        evidence, result = self._targets.evidence(frame), self._targets.publish(frame, answered)
        result = self._edges.correct(result, evidence, self._decaf.config.tracking)
        if self._want_confidence():
            logits = self._targets.logits(frame)
            result = dataclasses.replace(result, confidence=confidence_image(result, logits))
        self._emit(at_camera_size(result, camera_frame))

    # Outputs

    def _end(self, live: LiveQuery, state: QueryState, text: str, **details: Any) -> None:
        """Ends a query: drops its targets and emits `state`, or ENDED if it was answered, whatever is raised between.
        details: see below."""
        self.queries.remove(live)
        try:
            self._turns.abandon(live)
            self._follower.drop(live.query)
        finally:
            if live.answered:
                self._emit_event(live.query, QueryState.ENDED, text)
            else:
                self._emit_event(live.query, state, text, **details)

    def _emit_event(
        self, query: Query, state: QueryState, text: str, window: Window | None = None, **details: Any
    ) -> None:
        """Emits a QueryEvent with the stamp and frame_id of the newest frame. details: further fields of it."""
        newest = self.buffer.newest
        event = QueryEvent(
            query,
            state,
            text,
            stamp_ns=newest.stamp_ns if newest else 0,
            frame_id=newest.frame_id if newest else "",
            window_start_ns=window.frames[0].stamp_ns if window else 0,
            window_end_ns=window.frames[-1].stamp_ns if window else 0,
            **details,
        )
        self.queries.note(event)
        self._emit(event)
