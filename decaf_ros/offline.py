"""A whole recorded clip at once: the paper's evaluation protocol, told in the outputs of a live stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from decaf_ros.answers import absence, heatmaps, pixel_keypoints, tracking_text
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


def segment_clip(decaf: Decaf, frames: Sequence[Frame], query: Query, emit: Callable[[Output], None]) -> Segmentation:
    """Answers the query over the whole clip and emits its events, heatmaps and one FrameResult a frame.

    Looks at `window.size` key frames spread over the clip and masks every frame. The dense masks are the union over
    all that was found, so the results have one target with id 1. Raises what `Decaf.segment` raises.
    """
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
        missing or tracking_text(len(found.selected), category),
        category=category,
        presence=found.presence,
        stage_ms=found.stage_ms,
        target_ids=() if missing else (1,),
        keypoints=tuple(pixel_keypoints(found)),
    )
    for frame, mask in zip(frames, found.dense_masks):
        emit(_frame_result(found, query, frame, mask))
    return found


def _frame_result(found: Segmentation, query: Query, frame: Frame, mask: np.ndarray) -> FrameResult:
    if not found.selected:
        return FrameResult(frame, np.zeros(frame.size_hw, np.uint8))
    best = found.selected[0]
    target = Target(
        id=1,
        label=1,
        query_id=query.id,
        category=found.grounding.category,
        state=TargetState.TRACKED if mask.any() else TargetState.OCCLUDED,
        mask=mask,
        scores=best.scores,
        source_stamp_ns=found.window.frames[best.source].stamp_ns,
    )
    return FrameResult(frame, mask.astype(np.uint8), query, (target,))
