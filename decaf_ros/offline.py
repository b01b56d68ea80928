"""Segments a whole recorded clip (the paper's evaluation protocol), with the outputs of a live stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from decaf_ros.answers import absence, heatmaps, left_out_text, pixel_keypoints, tracking_text
from decaf_ros.io.sizes import at_camera_size, enlarged
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


def key_frames(frames: Sequence[Frame], count: int, rounding: str = "nearest") -> Window:
    """`count` frames evenly spaced over the clip, including the first and the last; all if there are fewer.

    rounding: of a position between two frames, `nearest` or `down`.

    Raises ValueError for no frame, or frames that do not form a window (one size, increasing stamps).
    """
    positions = np.linspace(0, len(frames) - 1, min(count, len(frames)))
    indices = (positions.round() if rounding == "nearest" else positions).astype(int)
    return Window(tuple(frames[index] for index in indices))


def check_clip(frames: Sequence[Frame]) -> None:
    """Raises ValueError, naming the frame, unless images have one size and stamps increase strictly."""
    first = frames[0]
    for before, frame in zip(frames, frames[1:]):
        if frame.camera_hw != first.camera_hw:
            problem = f"expected {_size(first)} px as before, got {_size(frame)} px"
        elif frame.stamp_ns <= before.stamp_ns:
            problem = f"expected a stamp after {before.stamp_ns} ns, got {frame.stamp_ns} ns"
        else:
            continue
        seconds = (before.stamp_ns - first.stamp_ns) / 1e9
        raise ValueError(
            f"frame {frame.index} (after {seconds:.2f} s): {problem}; select a part of the clip with --start and "
            "--duration, or use --online"
        )


def segment_clip(decaf: Decaf, frames: Sequence[Frame], query: Query, emit: Callable[[Output], None]) -> Segmentation:
    """Answers the query over the whole clip; emits its events, heatmaps and one FrameResult per frame.

    Grounds the query in `window.size` key frames spread over the clip and masks every frame. The k-th selected tracklet
    is the target with id and label k. The results are at the camera's size, on enlarged copies of smaller frames.
    Raises as `check_clip` and `Decaf.segment`.
    """
    check_clip(frames)
    window = key_frames(frames, decaf.config.window.size, decaf.config.window.clip_rounding)
    received = QueryEvent(
        query,
        QueryState.RECEIVED,
        stamp_ns=frames[-1].stamp_ns,
        frame_id=frames[-1].frame_id,
        window_start_ns=window.frames[0].stamp_ns,
        window_end_ns=window.frames[-1].stamp_ns,
    )
    emit(received)
    grounding_text = f"looking at {len(window)} key frames of {len(frames)} frames"
    emit(dataclasses.replace(received, state=QueryState.GROUNDING, text=grounding_text))
    found = decaf.segment(window, query.text, frames, lambda stage, done: emit(StageEvent(query, stage, done)))
    for heatmap in heatmaps(found, query):
        emit(heatmap)
    not_found, category = absence(found, decaf.config), found.grounding.category
    answer = dataclasses.replace(
        received,
        state=QueryState.NOT_FOUND if not_found else QueryState.TRACKING,
        text=(not_found or tracking_text(len(found.selected), category)) + left_out_text(found.points),
        category=category,
        presence=found.presence,
        stage_ms=found.stage_ms,
        target_ids=tuple(range(1, len(found.selected) + 1)),
        keypoints=tuple(pixel_keypoints(found)),
    )
    emit(answer)
    assert found.dense_labels is not None, "frames were given to mask"
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
                query_ids=(query.id,),
                category=found.grounding.category,
                state=TargetState.TRACKED if mask.any() else TargetState.OCCLUDED,
                mask=mask,
                scores=tracklet.scores,
                source_stamp_ns=found.window.frames[tracklet.source].stamp_ns,
            )
        )
    result = FrameResult(frame, labels, (query,) if targets else (), tuple(targets))
    return at_camera_size(result, enlarged(frame))


def _size(frame: Frame) -> str:
    height, width = frame.camera_hw
    return f"{width} x {height}"
