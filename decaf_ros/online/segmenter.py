"""Questions about a live stream: watch, look back when asked, catch up, follow.

The life of a query, from top to bottom of `OnlineSegmenter`: `ask` receives it; `_ground` looks back over the window as
soon as that has enough key frames, catches up with the stream and answers; `_follow` tracks the targets on every
frame; `_ground` asks again from time to time, and ids are kept; another query, `cancel` or an empty query ends it.

Nothing here reads a clock, except to measure stages: the same frames and queries in the same order give the same
outputs. Nothing here knows ROS or threads.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from decaf_ros.answers import absence, first_line, heatmaps, left_out_text, pixel_keypoints, tracking_text
from decaf_ros.config import DecafConfig
from decaf_ros.online.catch_up import catch_up
from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate
from decaf_ros.online.window import FrameBuffer
from decaf_ros.pipeline import STAGES, Decaf
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.stages import StageClock
from decaf_ros.types import Frame, Notice, Output, Query, QueryEvent, QueryState, Segmentation, StageEvent, Window

_log = logging.getLogger(__name__)
_STAGES = (*(stage for stage in STAGES if stage != "dense"), "catch_up")


class _AbandonedError(Exception):
    """The running grounding has become pointless; whoever made it so has said what there is to say."""


@dataclass(eq=False)
class _Current:
    """The query that is being worked on. answered: it is tracked (any other answer ends it).

    fresh: not grounded yet on this stream. due_in: key frames until the next grounding.
    """

    query: Query
    answered: bool = False
    fresh: bool = True
    due_in: int = 0


class OnlineSegmenter:
    """One camera stream and at most one query at a time. All methods belong to one thread.

    `emit` gets every output in order. `between_stages` is called between the stages of a grounding and every few steps
    of the catch-up; it may call observe, ask, cancel and reset, which then take effect at once: frames go on being
    tracked, and a grounding that has become pointless is abandoned. An exception that it raises counts as a failure of
    the grounding. `want_heatmaps` says after each grounding whether heatmaps are worth making.
    `target_ids` gives targets their ids; whoever makes several of these for one consumer hands the same one to all, so
    that no id comes twice. `decaf.config` is read at each use.
    """

    def __init__(
        self,
        decaf: Decaf,
        emit: Callable[[Output], None],
        between_stages: Callable[[], None] = lambda: None,
        want_heatmaps: Callable[[], bool] = lambda: True,
        target_ids: Iterator[int] | None = None,
    ) -> None:
        self.buffer = FrameBuffer()
        self._decaf = decaf
        self._emit = emit
        self._between_stages = between_stages
        self._want_heatmaps = want_heatmaps
        self._current: _Current | None = None
        self._targets = Targets(target_ids)
        self._tracker = StreamingTracker(decaf.sam2)
        self._keys = itertools.count()
        self._grounding = False
        self._abandoned = False
        self._warned_of_stamps = False

    @property
    def query(self) -> Query | None:
        """The query that waits, is being grounded or is tracked."""
        return self._current.query if self._current else None

    # What comes in

    def observe(self, frame: Frame) -> None:
        """Takes the next frame of the stream: emits its one FrameResult, then grounds the query if that is due.

        Another image size, or a stamp that jumps back by `window.jump_back_s` or more, starts the stream anew. A frame
        that is a little late, or has the stamp of the one before, is tracked like any other, but is no key frame.
        """
        if reason := self.buffer.break_before(frame, self._config.window):
            self.reset(reason)
        newest = self.buffer.newest
        if newest is not None and frame.stamp_ns <= newest.stamp_ns and not self._warned_of_stamps:
            self._warned_of_stamps = True
            text = f"stamp {frame.stamp_ns} ns comes after {newest.stamp_ns} ns: only frames in order can be key frames"
            self._emit(Notice("warn", text))
        is_keyframe = self.buffer.push(frame, self._config.window)
        if is_keyframe:
            # What tracking makes of them now the next grounding need not make again.
            self._decaf.sam2.hold(self.buffer.window().frames)
            if self._current:
                self._current.due_in = max(0, self._current.due_in - 1)
        self._follow(frame, is_keyframe)
        self._ground_if_due()

    def ask(self, query: Query) -> None:
        """Takes a new query, which ends the one before. It is grounded at once if the window suffices, else later.

        An empty text only ends the one before. A text over `node.max_query_chars` is refused and changes nothing.
        Raises ValueError for the id of the current query.
        """
        if query.id == (self.query and self.query.id):
            raise ValueError(f"query id: expected a new one, got {query.id!r}, the current query's")
        text, most = query.text.strip(), self._config.node.max_query_chars
        if len(text) > most:
            self._tell(query, QueryState.FAILED, f"query: expected at most {most} characters, got {len(text)}")
            return
        if not text:
            self._end_current(QueryState.CANCELLED, "cleared by an empty query")
            self._tell(query, QueryState.CANCELLED, "the query was empty: targets cleared")
            return
        self._end_current(QueryState.SUPERSEDED, f"superseded by query {query.id}")
        self._current = _Current(query)
        have, need = self.buffer.keyframe_count, self._config.window.min_frames
        waiting = f"waiting for key frames: {have} of {need}" if have < need else ""
        self._tell(query, QueryState.RECEIVED, waiting)
        self._ground_if_due()

    def cancel(self, query_id: str, reason: str = "cancelled on request") -> None:
        """Ends the current query. If it was answered already, tracking stops with a notice and no second answer.

        Raises ValueError if `query_id` is not the current query's.
        """
        known = repr(self.query.id) if self.query else "no query is current"
        if self.query is None or query_id != self.query.id:
            raise ValueError(f"query id: expected that of the current query ({known}), got {query_id!r}")
        if self._current.answered:
            self._emit(Notice("warn", f"query {query_id}: tracking stopped: {reason}"))
        self._end_current(QueryState.CANCELLED, reason)

    def reset(self, reason: str) -> None:
        """Starts the stream anew: window, buffer and targets go, the query stays and is grounded on the new window."""
        self._emit(Notice("warn", f"the stream starts anew: {reason}"))
        self.buffer.clear()
        self._decaf.sam2.hold(())
        self._warned_of_stamps = False
        self._lose_all_targets()
        self._abandoned = True
        if self._current:
            self._current.fresh, self._current.due_in = True, 0

    # Looking back

    def _ground_if_due(self) -> None:
        """Grounds the query if that is due, and then any that came meanwhile. Called during a grounding it leaves the
        new query to the call that grounds."""
        if self._grounding or not self._is_due():
            return
        self._grounding = True
        try:
            self._ground()
            while self._is_due() and self._current.fresh:
                self._ground()
        finally:
            self._grounding = False

    def _is_due(self) -> bool:
        config, current = self._config, self._current
        if current is None or self.buffer.keyframe_count < config.window.min_frames:
            return False
        return current.fresh or (config.regrounding.enabled and current.due_in == 0)

    def _ground(self) -> None:
        """Looks back over the window, catches up with the stream, and answers the query or renews its targets."""
        current, config, window = self._current, self._config, self.buffer.window()
        current.fresh, current.due_in = False, config.regrounding.stride
        self._abandoned = False
        if not current.answered:
            short = f" (window.size is {config.window.size})" if len(window) < config.window.size else ""
            text = f"looking back over {len(window)} key frames{short}"
            self._tell(current.query, QueryState.GROUNDING, text, window)
        clock = StageClock(_STAGES, self._checkpoint)
        tracker = StreamingTracker(self._decaf.sam2)
        failed = out_of_memory = False
        try:
            found = self._decaf.segment(window, current.query.text.strip(), progress=self._checkpoint)
            if self._want_heatmaps():
                for heatmap in heatmaps(found, current.query):
                    self._emit(heatmap)
            missing = absence(found, config)
            candidates = [] if missing else self._catch_up(tracker, found, clock)
        except _AbandonedError:
            return
        except Exception as error:  # whatever a model may raise, out of memory included: the stream goes on
            self._fail(current, error)
            failed, out_of_memory = True, isinstance(error, torch.OutOfMemoryError)
        if out_of_memory:  # only here: the error keeps what the failed work has made
            self._decaf.release()
        if failed:
            return
        # From here to the end no frame can come in: the new tracker stands where the old one does.
        self._targets.take_in(candidates, current.query, found.grounding.category, self.buffer.newest, self._config)
        self._forget_untracked(self._tracker)
        self._forget_untracked(tracker)
        self._tracker.absorb(tracker)
        # Key frames that came during the grounding do not count: a slow one would be due again at once, for ever.
        current.due_in = config.regrounding.stride
        if not current.answered:
            self._answer(found, missing, (*found.stage_ms, *clock.stage_ms))

    def _checkpoint(self, stage: str, progress: float) -> None:
        """Between two stages: lets the caller in, and abandons the grounding if that has made it pointless."""
        self._emit(StageEvent(self._current.query, stage, progress))
        self._between_stages()
        if self._abandoned:
            raise _AbandonedError

    def _catch_up(self, tracker: StreamingTracker, found: Segmentation, clock: StageClock) -> list[Candidate]:
        """The selected tracklets, carried by `tracker` from their source key frames to the newest frame."""
        clock.start("catch_up")
        config = self._config.tracking
        selected = found.selected[: config.max_targets]
        candidates = [Candidate(next(self._keys), one, found.window.frames) for one in selected]
        catch_up(tracker, candidates, found.window, self.buffer, config, self._last_seen_frames, clock.tick)
        clock.pause()
        return candidates

    def _last_seen_frames(self) -> set[Frame]:
        return {target.seen_frame for target in self._targets.living}

    def _answer(self, found: Segmentation, missing: str, stage_ms: tuple[tuple[str, float], ...]) -> None:
        """The first grounding's answer: TRACKING, or NOT_FOUND because of what is `missing`."""
        query, category = self._current.query, found.grounding.category
        ids = tuple(target.id for target in self._targets.living)
        if missing:
            self._current = None
        else:
            self._current.answered = True
        self._tell(
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

    def _fail(self, current: _Current, error: Exception) -> None:
        _log.debug("grounding failed", exc_info=error)
        current.due_in = self._config.regrounding.stride
        self._emit(Notice("error", f"grounding of query {current.query.id} failed: {first_line(error)}"))
        if current is self._current and not current.answered:
            self._end_current(QueryState.FAILED, first_line(error))

    # Following

    def _follow(self, frame: Frame, is_keyframe: bool) -> None:
        """Tracks the targets on `frame` and emits its FrameResult. A tracker that raises loses all targets."""
        had_targets, out_of_memory = bool(self._targets.living), False
        if had_targets:
            try:
                self._targets.update(frame, self._tracker.step(frame), self._config, is_keyframe)
            except Exception as error:  # as in _ground
                _log.debug("tracking failed", exc_info=error)
                self._emit(Notice("error", f"tracking failed, all targets are lost: {first_line(error)}"))
                self._lose_all_targets()
                out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if out_of_memory:  # only here, as in _ground
                self._decaf.release()
            self._forget_untracked(self._tracker)
        if had_targets and not self._targets.living:
            self._current.due_in = min(self._current.due_in, 1)
        tracked = self._current.query if self._current and self._current.answered else None
        self._emit(self._targets.publish(frame, tracked))

    def _lose_all_targets(self) -> None:
        self._targets.lose_all()
        self._tracker = StreamingTracker(self._decaf.sam2)

    def _forget_untracked(self, tracker: StreamingTracker) -> None:
        keys = {target.key for target in self._targets.living}
        tracker.remove([key for key in tracker.ids if key not in keys])

    # What goes out

    def _end_current(self, state: QueryState, text: str) -> None:
        """Ends the current query, if there is one: answers it unless it was answered, drops its targets."""
        ended, self._current = self._current, None
        self._abandoned = True
        self._targets.clear()
        self._tracker = StreamingTracker(self._decaf.sam2)
        if ended and not ended.answered:
            self._tell(ended.query, state, text)

    def _tell(self, query: Query, state: QueryState, text: str, window: Window | None = None, **details: Any) -> None:
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
        return self._decaf.config
