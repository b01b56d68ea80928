"""Results of a scripted stream in the folder format of `decaf segment`, made by its writer, without models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from decaf_ros.io.results import ResultFolder
from decaf_ros.types import (
    Frame,
    FrameResult,
    Heatmap,
    Presence,
    Query,
    QueryEvent,
    QueryState,
    Target,
    TargetState,
    TrackletScores,
)

SIZE_HW = (120, 160)
FRAMES, START_NS, STEP_NS = 24, 1_700_000_000_000_000_000, 100_000_000
QUERY = Query("cli", "the ball that <script>alert(1)</script> & moves")


def camera_frame(index: int, noise: int = 0) -> Frame:
    image = np.random.default_rng(noise).integers(90, 130, (*SIZE_HW, 3), dtype=np.uint8)
    cv2.circle(image, (30 + 3 * index, 50), 12, (210, 40, 40), -1)
    return Frame(image, START_NS + index * STEP_NS, "camera", index)


def moving_ball(index: int, shift: int = 0) -> dict[int, np.ndarray]:
    """The true mask of target 1, moved by `shift` pixels."""
    mask = np.zeros(SIZE_HW, np.uint8)
    cv2.circle(mask, (30 + 3 * index + shift, 50), 12, 1, -1)
    return {1: mask > 0}


def write_result(
    folder: Path,
    masks: Callable[[int], Mapping[int, np.ndarray]] = moving_ball,
    *,
    output_format: str = "png",
    state: QueryState = QueryState.TRACKING,
    category: str = "ball",
    score: float = 0.8,
    frames: int = FRAMES,
    noise: int = 0,
    query: Query = QUERY,
    **details: object,
) -> Path:
    """masks: of the targets by id on each frame; labels are the places in it, so an id may have any label."""
    with ResultFolder(folder, output_format) as results:
        stamp = {"stamp_ns": START_NS + (frames - 1) * STEP_NS}
        results.write(QueryEvent(query, QueryState.RECEIVED, **stamp))
        for index in range(0, frames, 8):
            heat = cv2.GaussianBlur(moving_ball(index)[1].astype(np.float32), (0, 0), 9)
            results.write(Heatmap(camera_frame(index), query, heat / heat.max()))
        presence, stages = Presence(score, *[score] * 6), (("video_object", 500.0), ("tracklets", 80.5))
        results.write(
            QueryEvent(query, state, "the answer", category=category, presence=presence, stage_ms=stages, **stamp)
        )
        for index in range(frames):
            labels, targets = np.zeros(SIZE_HW, np.uint8), []
            for label, (number, mask) in enumerate(masks(index).items(), 1):
                labels[mask] = label
                known = TargetState.TRACKED if mask.any() else TargetState.OCCLUDED
                scores = TrackletScores(0.8, 0.7, 0.9, 0.8)
                targets.append(Target(number, label, (query.id,), category, known, mask, scores, START_NS))
            results.write(FrameResult(camera_frame(index, noise), labels, (query,) if targets else (), tuple(targets)))
        made = {"query": query.text, "input": "nowhere.mp4", "mode": "offline", "version": "0.1.0", "seconds": 3.5}
        known_details = {"parameters": {"presence.threshold": 0.3, "mllm.checkpoint": "some/model"}}
        results.write_summary(**(made | known_details | details))
    return folder
