"""Propagates the tracklets of a grounding from their source key frames to the newest frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import numpy as np

from decaf_ros.config import TrackingConfig
from decaf_ros.online.tracks import Candidate, is_seen
from decaf_ros.online.window import FrameBuffer
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.tracker import StreamingTracker, TrackStep
from decaf_ros.stages import Steps
from decaf_ros.types import Frame, Tracklet, Window

# A round covers the frames that arrived during the previous round. The last round does not pause, so it ends.
_ROUNDS = 8


def thin(frames: Sequence[Frame], max_count: int) -> list[Frame]:
    """At most `max_count` (>= 1) of the frames, evenly spread and in order, always including the last."""
    count = min(len(frames), max_count)
    return [frames[(index + 1) * len(frames) // count - 1] for index in range(count)]


def apart_from(
    tracklets: Sequence[Tracklet],
    frames: Sequence[Frame],
    settled: Sequence[tuple[Frame, np.ndarray]],
    match_iou: float,
) -> list[Tracklet]:
    """The tracklets over key frames that are on none of the `settled` masks.

    settled: frames with (H, W) bool masks of objects that need no search. One on another frame counts for nothing.
    match_iou: mask IoU above which a tracklet is on the object.
    """
    shown = [(frames.index(frame), mask) for frame, mask in settled if frame in frames]
    return [one for one in tracklets if not any(mask_iou(one.masks[at], mask) > match_iou for at, mask in shown)]


def catch_up(
    tracker: StreamingTracker,
    candidates: Sequence[Candidate],
    window: Window,
    buffer: FrameBuffer,
    config: TrackingConfig,
    comparison_frames: Callable[[], Collection[Frame]],
) -> Steps[None]:
    """Starts each candidate in `tracker` on its source key frame and steps it to the newest frame of `buffer`.

    A mask that cannot be the candidate's object (`Appearance.contradicts`) counts as unseen. The tracker learns only
    from sure masks.

    The first round steps through at most `tracking.catch_up_frames` evenly spread frames, each further one through at
    most half as many, so that steps slower than the camera come to an end; besides through `comparison_frames()`, on
    which each candidate's mask is stored. Key frames of the window that have left the buffer are included. A unit is a
    step. Frames that arrive between two units are covered by the next round; the last round is one unit.
    """
    pending = defaultdict(list)
    for candidate in candidates:
        pending[candidate.source].append(candidate)
    started: list[Candidate] = []

    def start(source: Frame) -> None:
        group = pending.pop(source)
        masks = np.stack([candidate.seen_mask for candidate in group])
        looks = tracker.add([candidate.key for candidate in group], source, masks)
        for candidate, look in zip(group, looks):
            if candidate.seen_mask.any():
                candidate.see(source, TrackStep(candidate.seen_mask, 1.0, look), config)
        started.extend(group)

    first = min(candidate.tracklet.source for candidate in candidates)
    reached = window.frames[first]
    start(reached)
    yield
    remaining = buffer.after(reached)
    buffered = set(remaining)
    remaining = [frame for frame in window.frames[first + 1 :] if frame not in buffered] + remaining
    most = config.catch_up_frames
    for rounds_left in reversed(range(_ROUNDS)):
        compared = set(comparison_frames())
        stepped = set(thin(remaining, most)) | compared.intersection(remaining)
        most = max(most // 2, 1)
        for frame in remaining:
            if frame in stepped:
                _step(tracker, started, frame, frame in compared, config)
            if frame in pending:
                start(frame)
            if frame in stepped and rounds_left:
                yield
            reached = frame
        remaining = buffer.after(reached)
        if not remaining:
            return


def _step(
    tracker: StreamingTracker, candidates: Sequence[Candidate], frame: Frame, keep_masks: bool, config: TrackingConfig
) -> None:
    results = tracker.step(frame)
    rejected = []
    for candidate in candidates:
        step = results[candidate.key]
        if not is_seen(step, config) or candidate.appearance.contradicts(frame, step.mask, step.look, config):
            rejected.append(candidate.key)
            continue
        if not candidate.see(frame, step, config):
            rejected.append(candidate.key)
        if keep_masks:
            candidate.masks[frame] = step.mask
    tracker.reject(rejected)
