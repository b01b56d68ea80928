"""Answers queries about a live stream: buffer frames, ground a query on past key frames, catch up, track.

The life of a query, from top to bottom of `OnlineSegmenter`: `ask` receives it. `_ground` grounds it on the window as
soon as that has enough key frames, catches up with the stream and answers. `_follow` tracks the targets on every frame.
`_ground` repeats periodically and keeps target ids. Another query, `cancel` or an empty query ends it.

A grounding is a task of bounded units (`decaf_ros.stages.Steps`). A live stream calls `advance` for each, and goes on
between them. The outputs depend only on the order of calls; the clock is read only to measure stage times. This module
uses neither ROS nor threads.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from decaf_ros.answers import absence, first_line, heatmaps, left_out_text, pixel_keypoints, tracking_text
from decaf_ros.config import POLICIES, DecafConfig
from decaf_ros.io.sizes import at_camera_size, bounded
from decaf_ros.online.ahead import Ahead
from decaf_ros.online.anchors import anchored, choose_anchors
from decaf_ros.online.catch_up import apart_from, catch_up
from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate, LivingTarget
from decaf_ros.online.window import FrameBuffer
from decaf_ros.pipeline import STAGES, Decaf, even_if_absent
from decaf_ros.segmentation.scoring import PER_OBJECT
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import Frame, Notice, Output, Query, QueryEvent, QueryState, Segmentation, StageEvent, Window

_log = logging.getLogger(__name__)
RESET_NOTICE = "stream reset"
# Most strides between two groundings that search for the same targets.
_MOST_STRIDES = 4
_STAGES = (*(stage for stage in STAGES if stage != "dense"), "catch_up")


@dataclass(eq=False)
class _Current:
    """The current query.

    Attributes:
        answered: answered with TRACKING (any other answer ends the query).
        fresh: not grounded yet on this stream.
        due_in: key frames until the next grounding may begin.
        sought: ids of the targets that the last grounding did not find.
        rest: key frames until these alone are a reason for the next one.
        fruitless: groundings in a row that found none of the targets they sought.
        anchors: key frames of the answer, which later groundings see too.
    """

    query: Query
    answered: bool = False
    fresh: bool = True
    due_in: int = 0
    sought: frozenset[int] = frozenset()
    rest: int = 0
    fruitless: int = 0
    anchors: tuple[Frame, ...] = ()


class OnlineSegmenter:
    """One camera stream with at most one query at a time. Call all methods from one thread.

    `decaf.config` is read at each use, so it may change at any time.

    Args:
        emit: called with every output, in order.
        live: a grounding begins in `observe` or `ask` and goes on in `advance`. Otherwise it ends within the call that
            began it, as if it took no time.
        want_heatmaps: called after each grounding; whether to emit heatmaps.
        target_ids: supply of target ids. Share one between several segmenters with one consumer, so ids stay unique.
    """

    def __init__(
        self,
        decaf: Decaf,
        emit: Callable[[Output], None],
        live: bool = False,
        want_heatmaps: Callable[[], bool] = lambda: True,
        target_ids: Iterator[int] | None = None,
    ) -> None:
        self.buffer = FrameBuffer()
        self._decaf = decaf
        self._emit = emit
        self._live = live
        self._want_heatmaps = want_heatmaps
        self._current: _Current | None = None
        self._targets = Targets(target_ids)
        self._tracker = StreamingTracker(decaf.sam2)
        self._keys = itertools.count()
        self._ahead = Ahead(decaf)
        self._task: Steps[None] | None = None
        self._in_unit = False
        self._warned_about_stamps = False

    @property
    def query(self) -> Query | None:
        """The current query: waiting, being grounded or tracked."""
        return self._current.query if self._current else None

    @property
    def waiting(self) -> Query | None:
        """The current query if it has no answer and there are too few key frames to ground it."""
        current = self._current
        too_few = self.buffer.keyframe_count < self._config.window.min_frames
        return current.query if current and not current.answered and too_few and self._task is None else None

    # Inputs

    def observe(self, frame: Frame) -> None:
        """Adds the next frame of the stream: emits exactly one FrameResult, then grounds the query if that is due.

        Another image size, or a stamp that jumps back by `window.jump_back_s` or more, resets the stream. A frame with
        an equal or slightly earlier stamp is tracked as usual, but is never a key frame. A smaller copy of an image
        larger than `window.max_side` is kept; its result is on `frame` itself.
        """
        camera_frame, frame = frame, bounded(frame, self._config.window.max_side)
        if reason := self.buffer.break_before(frame, self._config.window):
            self.reset(reason)
        newest = self.buffer.newest
        if newest is not None and frame.stamp_ns <= newest.stamp_ns and not self._warned_about_stamps:
            self._warned_about_stamps = True
            text = f"stamp {frame.stamp_ns} ns comes after {newest.stamp_ns} ns: only frames in order can be key frames"
            self._emit(Notice("warn", text))
        is_keyframe = self.buffer.push(frame, self._config.window)
        if is_keyframe:
            # The next grounding reuses the image embeddings that tracking computes now.
            self._decaf.sam2.hold(self, (*self.buffer.window().frames, *self._anchors()))
            if self._current:
                self._current.due_in = max(0, self._current.due_in - 1)
                self._current.rest = max(0, self._current.rest - 1)
        self._follow(frame, is_keyframe, camera_frame)
        self._begin_if_due()

    def ask(self, query: Query) -> None:
        """Starts a new query and ends the current one. Grounds it at once if there are enough key frames, else later.

        An empty text only ends the current query. A text over `node.max_query_chars` or an unknown policy is answered
        with FAILED and changes nothing. Raises ValueError for the id of the current query.
        """
        if query.id == (self.query and self.query.id):
            raise ValueError(f"query id: expected a new one, got {query.id!r}, the current query's")
        text, max_chars = query.text.strip(), self._config.node.max_query_chars
        if len(text) > max_chars:
            self._emit_event(
                query, QueryState.FAILED, f"query: expected at most {max_chars} characters, got {len(text)}"
            )
            return
        if query.policy not in ("", *POLICIES):
            expected = f"expected one of {', '.join(POLICIES)}, or nothing"
            self._emit_event(query, QueryState.FAILED, f"policy: {expected}, got {query.policy!r}")
            return
        if not text:
            self._end_current(QueryState.CANCELLED, "cleared by an empty query")
            self._emit_event(query, QueryState.CANCELLED, "the query was empty: targets cleared")
            return
        self._end_current(QueryState.SUPERSEDED, f"superseded by query {query.id}")
        self._current = _Current(query)
        count, needed = self.buffer.keyframe_count, self._config.window.min_frames
        waiting = f"waiting for key frames: {count} of {needed}" if count < needed else ""
        self._emit_event(query, QueryState.RECEIVED, waiting)
        self._begin_if_due()

    def cancel(self, query_id: str, reason: str = "cancelled on request") -> None:
        """Ends the current query. If it was already answered, tracking stops with a notice and without a second answer.

        Raises ValueError if `query_id` is not the id of the current query.
        """
        current = self._current
        if current is None or query_id != current.query.id:
            expected = repr(current.query.id) if current else "no query is current"
            raise ValueError(f"query id: expected that of the current query ({expected}), got {query_id!r}")
        if current.answered:
            self._emit(Notice("warn", f"query {query_id}: tracking stopped: {reason}"))
        self._end_current(QueryState.CANCELLED, reason)

    def fail_waiting(self, reason: str) -> None:
        """Answers the current query with FAILED if it waits for key frames; else does nothing."""
        if self.waiting:
            self._end_current(QueryState.FAILED, reason)

    def reset(self, reason: str) -> None:
        """Restarts the stream: clears window, buffer and targets. The query stays and is grounded on the new window."""
        self._emit(Notice("warn", f"{RESET_NOTICE}: {reason}"))
        self.buffer.clear()
        self._ahead.stop()
        self._decaf.sam2.hold(self, ())
        self._warned_about_stamps = False
        self._lose_all_targets()
        self._targets.forget_missing()
        self._abandon()
        if self._current:
            self._current.fresh, self._current.due_in, self._current.anchors = True, 0, ()

    # Grounding

    def advance(self) -> bool:
        """Runs the next unit of the grounding, if one is running. Returns whether there is another."""
        task = self._task
        if task is None or self._in_unit:
            return False
        self._in_unit = True
        try:
            next(task)
        except BaseException as end:
            self._task = None if self._task is task else self._task
            if not isinstance(end, StopIteration):
                raise
        finally:
            self._in_unit = False
        if self._task is not task:
            task.close()  # an output of the unit made it obsolete, or it has ended
            # A query that arrived in the unit. Other groundings wait for the next key frame.
            if (current := self._due_query()) and current.fresh:
                self._task = self._ground(current)
        return self._task is not None

    def prepare(self) -> bool:
        """Runs a unit of work that the next question will need, if any is left and its time has come. To be called
        while nothing else is due. Returns whether it ran one."""
        if self._task is not None or self._in_unit or not self.buffer.keyframe_count:
            return False
        return self._ahead.advance(self.buffer.window(), self._config)

    @property
    def ready_share(self) -> float:
        """How much of the window is prepared for a question, in [0, 1]."""
        if not self.buffer.keyframe_count:
            return 0.0
        return self._decaf.grounder.ready_share(self.buffer.window(), self._config)

    def _begin_if_due(self) -> None:
        """Begins a grounding if one is due and none is running."""
        if self._task is not None or self._in_unit:
            return
        if (current := self._due_query()) is not None:
            self._ahead.stop()
            self._task = self._ground(current)
            while not self._live and self.advance():
                pass

    def _abandon(self) -> None:
        """Abandons the running grounding. Its caller has emitted the event that made it obsolete."""
        task, self._task = self._task, None
        if task is not None and not self._in_unit:
            task.close()

    def _due_query(self) -> _Current | None:
        """The current query if its grounding is due and there are enough key frames."""
        config, current = self._config, self._current
        if current is None or self.buffer.keyframe_count < config.window.min_frames:
            return None
        regrounding, newest = config.regrounding, self.buffer.newest
        if current.due_in > 0 or newest is None:
            return None
        if current.fresh:
            return current
        if regrounding.policy != "hold":
            return current if regrounding.policy == "refresh" else None
        sought = self._targets.sought(newest, regrounding.search_after_s)
        current.sought &= sought
        if not current.sought:
            current.rest = current.fruitless = 0
        is_wanted = bool(sought) and (current.rest == 0 or not sought <= current.sought)
        return current if is_wanted else None

    def _anchors(self) -> tuple[Frame, ...]:
        """Older key frames that a later grounding of the current query sees besides the newest ones."""
        current = self._current
        if current is None or not current.answered or self._config.regrounding.policy == "off":
            return ()
        return (*current.anchors, *self._targets.last_key_frames)

    def _ground(self, current: _Current) -> Steps[None]:
        """Grounds the query on the window, catches up with the stream, and answers the query or updates its targets."""
        config = self._config
        window = anchored(self.buffer.window(), self._anchors(), config.window.min_frames)
        was_fresh, known = current.fresh, self._targets.key_masks
        may_join = was_fresh or config.regrounding.policy == "refresh"
        current.fresh, current.due_in = False, config.regrounding.stride
        if not current.answered:
            short = f" (window.size is {config.window.size})" if len(window) < config.window.size else ""
            text = f"looking back over {len(window)} key frames{short}"
            self._emit_event(current.query, QueryState.GROUNDING, text, window)
        clock = StageClock(_STAGES, partial(self._report_stage, current.query))
        tracker = StreamingTracker(self._decaf.sam2)
        failed = out_of_memory = False
        try:
            # The stream's window moves on meanwhile; the catch-up still needs the key frames of this one.
            with self._decaf.sam2.holding(window.frames):
                found = yield from self._decaf.steps(
                    window, current.query.text.strip(), progress=partial(self._report_stage, current.query)
                )
                if self._want_heatmaps():
                    for heatmap in heatmaps(found, current.query):
                        self._emit(heatmap)
                missing = absence(found, config)
                if not may_join:
                    found = even_if_absent(found, config)
                is_over = bool(missing) and may_join
                candidates = (
                    [] if is_over else (yield from self._catch_up(tracker, found, clock, [] if may_join else known))
                )
        except Exception as error:  # any model error, including out of memory: the stream continues
            self._fail(current, error, was_fresh)
            failed, out_of_memory = True, isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # after the except block: its error references the tensors of the failed work
            self._decaf.release()
        if failed:
            return
        if current is not self._current or current.fresh:
            return  # an output of this unit ended the query, or reset the stream
        # No frame can arrive from here on, so both trackers are at the newest frame.
        newest = self.buffer.newest
        assert newest is not None
        means_one, category = found.grounding.means_several is False, found.grounding.category
        sought = self._targets.sought(newest, config.regrounding.search_after_s)
        matched = self._targets.merge(candidates, current.query, category, newest, self._config, may_join, means_one)
        self._rest(current, sought, matched)
        self._forget_untracked(self._tracker)
        self._forget_untracked(tracker)
        self._tracker.absorb(tracker)
        # Key frames during the grounding do not count, or a slow grounding would always be due again at once.
        current.due_in = config.regrounding.stride
        if not current.answered:
            self._answer(found, missing, (*found.stage_ms, *clock.stage_ms))
        elif was_fresh:  # after a reset: without targets there is nothing to hold or to search for
            current.fresh = not self._targets.living

    def _rest(self, current: _Current, sought: frozenset[int], matched: set[int]) -> None:
        """Sets when to look again for targets that the grounding has `sought` in vain: they may be gone for long."""
        current.sought = sought - matched
        current.fruitless = current.fruitless + 1 if sought and current.sought == sought else 0
        current.rest = self._config.regrounding.stride * min(2 ** max(current.fruitless - 1, 0), _MOST_STRIDES)

    def _catch_up(
        self,
        tracker: StreamingTracker,
        found: Segmentation,
        clock: StageClock,
        known: Sequence[tuple[LivingTarget, Frame, np.ndarray]],
    ) -> Steps[list[Candidate]]:
        """Propagates the selected tracklets with `tracker` from their source key frames to the newest frame, without
        those on a `known` target that is surely seen now (`Targets.key_masks`, as the grounding began)."""
        config, frames, newest = self._config, found.window.frames, self.buffer.newest
        settled = [(frame, mask) for target, frame, mask in known if target.sure_frame is newest]
        selected = apart_from(found.selected, frames, settled, config.regrounding.match_iou)
        selected = selected[: config.tracking.max_targets * PER_OBJECT]
        candidates = [Candidate(next(self._keys), tracklet, frames) for tracklet in selected]
        if candidates:
            steps = catch_up(tracker, candidates, found.window, self.buffer, config.tracking, self._last_seen_frames)
            yield from clock.run("catch_up", steps)
        return candidates

    def _report_stage(self, query: Query, stage: str, progress: float) -> None:
        self._emit(StageEvent(query, stage, progress))

    def _last_seen_frames(self) -> set[Frame]:
        return {target.sure_frame for target in self._targets.living}

    def _answer(self, found: Segmentation, missing: str, stage_ms: tuple[tuple[str, float], ...]) -> None:
        """Answers after the first grounding: NOT_FOUND with the reason `missing`, or TRACKING if that is empty."""
        current, category = self._current, found.grounding.category
        assert current is not None
        query = current.query
        ids = tuple(target.id for target in self._targets.living)
        if missing:
            self._current = None
        else:
            current.answered = True
            current.anchors = choose_anchors(found, self._config.regrounding.anchors)
        self._emit_event(
            query,
            QueryState.NOT_FOUND if missing else QueryState.TRACKING,
            (missing or tracking_text(len(ids), category)) + left_out_text(found.points),
            found.window,
            category=category,
            presence=found.presence,
            stage_ms=stage_ms,
            target_ids=ids,
            keypoints=tuple(pixel_keypoints(found)),
        )

    def _fail(self, current: _Current, error: Exception, was_fresh: bool) -> None:
        _log.debug("grounding failed", exc_info=error)
        if current is not self._current:
            return
        current.fresh, current.due_in = was_fresh, self._config.regrounding.stride
        self._emit(Notice("error", f"grounding of query {current.query.id} failed: {first_line(error)}"))
        if current is self._current and not current.answered:
            self._end_current(QueryState.FAILED, first_line(error))

    # Tracking

    def _follow(self, frame: Frame, is_keyframe: bool, camera_frame: Frame) -> None:
        """Tracks the targets on `frame` and emits the result on `camera_frame`. If the tracker raises, all are lost."""
        had_targets, out_of_memory = bool(self._targets.living), False
        if self._tracker.ids or self._targets.missing:
            try:
                rejected = self._targets.update(frame, self._tracker.step(frame), self._config, is_keyframe)
                self._tracker.reject(rejected)
                if is_keyframe:
                    self._targets.search(frame, self._tracker, self._keys, self._config)
            except Exception as error:  # as in _ground
                _log.debug("tracking failed", exc_info=error)
                self._emit(Notice("error", f"tracking failed, all targets are lost: {first_line(error)}"))
                self._lose_all_targets()
                out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if out_of_memory:  # after the except block, as in _ground
                self._decaf.release()
            self._forget_untracked(self._tracker)
        current = self._current
        if had_targets and not self._targets.living:
            assert current is not None
            current.due_in = min(current.due_in, 1)
        tracked_query = current.query if current and current.answered else None
        self._emit(at_camera_size(self._targets.publish(frame, tracked_query), camera_frame))

    def _lose_all_targets(self) -> None:
        self._targets.lose_all()
        self._tracker = StreamingTracker(self._decaf.sam2)

    def _forget_untracked(self, tracker: StreamingTracker) -> None:
        keys = self._targets.tracker_keys
        tracker.remove([key for key in tracker.ids if key not in keys])

    # Outputs

    def _end_current(self, state: QueryState, text: str) -> None:
        """Ends the current query, if any: drops its targets and emits `state` unless it was already answered."""
        ended, self._current = self._current, None
        self._abandon()
        self._targets.clear()
        self._tracker = StreamingTracker(self._decaf.sam2)
        if ended and not ended.answered:
            self._emit_event(ended.query, state, text)

    def _emit_event(
        self, query: Query, state: QueryState, text: str, window: Window | None = None, **details: Any
    ) -> None:
        """Emits a QueryEvent with the stamp and frame_id of the newest frame. details: further fields of it."""
        newest = self.buffer.newest
        self._emit(
            QueryEvent(
                query,
                state,
                text,
                stamp_ns=newest.stamp_ns if newest else 0,
                frame_id=newest.frame_id if newest else "",
                window_start_ns=window.frames[0].stamp_ns if window else 0,
                window_end_ns=window.frames[-1].stamp_ns if window else 0,
                **details,
            )
        )

    @property
    def _config(self) -> DecafConfig:
        """The configuration, with the policy of the current query."""
        config, policy = self._decaf.config, self.query.policy if self.query else ""
        if policy in ("", config.regrounding.policy):
            return config
        return dataclasses.replace(config, regrounding=dataclasses.replace(config.regrounding, policy=policy))
