"""A whole recorded clip at once: the paper's evaluation protocol, told in the outputs of a live stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from decaf_ros.answers import absence, cut_text, heatmaps, pixel_keypoints, tracking_text
from decaf_ros.pipeline import Decaf
from decaf_ros.types import (
    Frame,
    FrameResult,
    Output,
    Query,
    QueryEvent,
    QueryState,
    Segmentation,
    StageEvent,
    Target,
    TargetState,
    Window,
)


def key_frames(frames: Sequence[Frame], count: int) -> Window:
    """`count` frames evenly over the clip, the first and the last among them; all where there are not more.

    Raises ValueError for no frame, or frames that do not form a window (one size, increasing stamps).
    """
    places = np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)
    return Window(tuple(frames[place] for place in places))


def check_clip(frames: Sequence[Frame]) -> None:
    """Raises ValueError, which names the frame, for images that are not of one size or stamps that do not increase."""
    first = frames[0]
    for before, frame in zip(frames, frames[1:]):
        if frame.size_hw != first.size_hw:
            wrong = f"has {_size(frame)} px where those before have {_size(first)} px"
        elif frame.stamp_ns <= before.stamp_ns:
            wrong = f"has the stamp {frame.stamp_ns} ns, which is not after {before.stamp_ns} ns of the one before"
        else:
            continue
        seconds = (before.stamp_ns - first.stamp_ns) / 1e9
        raise ValueError(
            f"frame {frame.index} {wrong}: a clip is looked at as a whole, in one size and order; choose a part of it "
            f"by --start and --duration (it comes after {seconds:.2f} s), or use --online"
        )


def segment_clip(decaf: Decaf, frames: Sequence[Frame], query: Query, emit: Callable[[Output], None]) -> Segmentation:
    """Answers the query over the whole clip and emits its events, heatmaps and one FrameResult a frame.

    Looks at `window.size` key frames spread over the clip and masks every frame. The k-th selected tracklet is the
    target with id and label k. Raises what `check_clip` and `Decaf.segment` raise.
    """
    check_clip(frames)
    window = key_frames(frames, decaf.config.window.size)
    newest = frames[-1]

    def tell(state: QueryState, text: str, **details: object) -> None:
        emit(
            QueryEvent(
                query,
                state,
                text,
                newest.stamp_ns,
                newest.frame_id,
                window_start_ns=window.frames[0].stamp_ns,
                window_end_ns=window.frames[-1].stamp_ns,
                **details,
            )
        )

    tell(QueryState.RECEIVED, "")
    tell(QueryState.GROUNDING, f"looking at {len(window)} key frames of {len(frames)} frames")
    found = decaf.segment(window, query.text, frames, lambda stage, done: emit(StageEvent(query, stage, done)))
    for heatmap in heatmaps(found, query):
        emit(heatmap)
    missing, category = absence(found, decaf.config), found.grounding.category
    tell(
        QueryState.NOT_FOUND if missing else QueryState.TRACKING,
        (missing or tracking_text(len(found.selected), category)) + cut_text(found.points),
        category=category,
        presence=found.presence,
        stage_ms=found.stage_ms,
        target_ids=tuple(range(1, len(found.selected) + 1)),
        keypoints=tuple(pixel_keypoints(found)),
    )
    for frame, labels in zip(frames, found.dense_labels):
        emit(_frame_result(found, query, frame, labels))
    return found


def _frame_result(found: Segmentation, query: Query, frame: Frame, labels: np.ndarray) -> FrameResult:
    targets = []
    for label, tracklet in enumerate(found.selected, 1):
        mask = labels == label
        targets.append(
            Target(
                id=label,
                label=label,
                query_id=query.id,
                category=found.grounding.category,
                state=TargetState.TRACKED if mask.any() else TargetState.OCCLUDED,
                mask=mask,
                scores=tracklet.scores,
                source_stamp_ns=found.window.frames[tracklet.source].stamp_ns,
            )
        )
    return FrameResult(frame, labels, query if targets else None, tuple(targets))


def _size(frame: Frame) -> str:
    height, width = frame.size_hw
    return f"{width} x {height}"
