"""From the past to now: a grounding's tracklets, carried from their source key frames to the newest frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import numpy as np

from decaf_ros.config import TrackingConfig
from decaf_ros.online.tracks import Candidate, is_seen
from decaf_ros.online.window import FrameBuffer
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.types import Frame, Window

# Each round covers the frames that came during the one before, so rounds shrink; the last one lets no frame in.
_ROUNDS = 8
_STEPS_BETWEEN_PAUSES = 4


def thin(frames: Sequence[Frame], most: int) -> list[Frame]:
    """At most `most` (>= 1) of the frames, evenly spread, in their order, the last one always among them."""
    count = min(len(frames), most)
    return [frames[(place + 1) * len(frames) // count - 1] for place in range(count)]


def catch_up(
    tracker: StreamingTracker,
    candidates: Sequence[Candidate],
    window: Window,
    buffer: FrameBuffer,
    config: TrackingConfig,
    watched: Callable[[], Collection[Frame]],
    pause: Callable[[], None],
) -> None:
    """Starts every candidate in `tracker` on its source key frame and steps it to the newest frame of `buffer`.

    Steps through at most `tracking.catch_up_frames` frames a round, evenly thinned out, besides those of `watched()`,
    where each candidate's mask is kept for comparison. Key frames of the window that have left the buffer still serve.
    `pause()` is called every few steps. Frames that are pushed there are caught up with in further rounds.
    """
    waiting = defaultdict(list)
    for candidate in candidates:
        waiting[candidate.source].append(candidate)
    started: list[Candidate] = []

    def start(source: Frame) -> None:
        group = waiting.pop(source)
        tracker.add([candidate.key for candidate in group], source, np.stack([one.seen_mask for one in group]))
        started.extend(group)

    first = min(candidate.tracklet.source for candidate in candidates)
    reached = window.frames[first]
    start(reached)
    trail = buffer.after(reached)
    buffered = set(trail)
    trail = [frame for frame in window.frames[first + 1 :] if frame not in buffered] + trail
    for round_left in reversed(range(_ROUNDS)):
        keep = set(watched())
        steps = set(thin(trail, config.catch_up_frames)) | keep.intersection(trail)
        done = 0
        for frame in trail:
            if frame in steps:
                _step(tracker, started, frame, frame in keep, config)
                done += 1
            if frame in waiting:
                start(frame)
            if frame in steps and done % _STEPS_BETWEEN_PAUSES == 0 and round_left:
                pause()
            reached = frame
        trail = buffer.after(reached)
        if not trail:
            return


def _step(
    tracker: StreamingTracker, candidates: Sequence[Candidate], frame: Frame, keep: bool, config: TrackingConfig
) -> None:
    results = tracker.step(frame)
    for candidate in candidates:
        step = results[candidate.key]
        if is_seen(step, config):
            candidate.seen_frame, candidate.seen_mask = frame, step.mask
            if keep:
                candidate.masks[frame] = step.mask
