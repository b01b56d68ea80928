"""Follows the targets of a stream from frame to frame, and takes in what a grounding has found."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.online.catch_up import apart_from, catch_up
from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate, LivingTarget
from decaf_ros.online.window import FrameBuffer
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.scoring import PER_OBJECT
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import Frame, Query, Segmentation


class CaughtUp(NamedTuple):
    """The candidates of one grounding, and the tracker that has followed them to the newest frame."""

    candidates: list[Candidate]
    tracker: StreamingTracker


class Follower:
    """The targets of a stream and their tracker. target_ids: see `Targets`."""

    def __init__(self, sam2: Sam2, target_ids: Iterator[int] | None = None) -> None:
        self.targets = Targets(target_ids)
        self.tracker = StreamingTracker(sam2)
        self._sam2 = sam2
        self._keys = itertools.count()

    def step(self, frame: Frame, is_keyframe: bool, config: DecafConfig) -> None:
        """Tracks the targets on the next frame."""
        if not self.tracker.ids and not self.targets.missing:
            return
        rejected = self.targets.update(frame, self.tracker.step(frame), config, is_keyframe)
        self.tracker.reject(rejected)
        if is_keyframe:
            self.targets.search(frame, self.tracker, self._keys, config)
        self._forget_untracked(self.tracker)

    def lose_all(self) -> None:
        """Loses all living targets."""
        self.targets.lose_all()
        self.tracker = StreamingTracker(self._sam2)

    def drop(self, query: Query) -> None:
        """A query has ended: see `Targets.drop`."""
        self.targets.drop(query)
        self._forget_untracked(self.tracker)

    def catch_up(
        self,
        found: Segmentation,
        buffer: FrameBuffer,
        config: DecafConfig,
        clock: StageClock,
        known: Sequence[tuple[LivingTarget, Frame, np.ndarray]],
    ) -> Steps[CaughtUp]:
        """Propagates the selected tracklets from their source key frames to the newest frame, without those on a
        `known` target that is surely seen now (`Targets.key_masks`, as the grounding began)."""
        caught = CaughtUp([], StreamingTracker(self._sam2))
        frames, newest = found.window.frames, buffer.newest
        settled = [(frame, mask) for target, frame, mask in known if target.sure_frame is newest]
        selected = apart_from(found.selected, frames, settled, config.regrounding.match_iou)
        for tracklet in selected[: config.tracking.max_targets * PER_OBJECT]:
            caught.candidates.append(Candidate(next(self._keys), tracklet, frames))
        if caught.candidates:
            steps = catch_up(
                caught.tracker, caught.candidates, found.window, buffer, config.tracking, self._last_seen_frames
            )
            yield from clock.run("catch_up", steps)
        return caught

    def merge(
        self,
        caught: CaughtUp,
        query: Query,
        category: str,
        newest: Frame,
        config: DecafConfig,
        may_join: bool,
        means_one: bool,
    ) -> set[int]:
        """Merges the candidates into the targets: see `Targets.merge`. Both trackers are at `newest`."""
        found = self.targets.merge(caught.candidates, query, category, newest, config, may_join, means_one)
        self._forget_untracked(self.tracker)
        self._forget_untracked(caught.tracker)
        self.tracker.absorb(caught.tracker)
        return found

    def _last_seen_frames(self) -> set[Frame]:
        return {target.sure_frame for target in self.targets.living}

    def _forget_untracked(self, tracker: StreamingTracker) -> None:
        keys = self.targets.tracker_keys
        tracker.remove([key for key in tracker.ids if key not in keys])
