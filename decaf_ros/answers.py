"""Turns a grounding's result into an answer: found or not, heatmaps and keypoints in pixels."""

from __future__ import annotations

from collections.abc import Iterator

import cv2

from decaf_ros.config import DecafConfig
from decaf_ros.presence import absence_reason
from decaf_ros.types import Heatmap, Keypoint, PointPrompts, Query, Segmentation


def absence(found: Segmentation, config: DecafConfig) -> str:
    """Why the target was not found, with the score and its threshold; empty if it was found."""
    reason = absence_reason(found.presence, found.grounding.category, config.presence.threshold)
    if reason:
        return f"not found: {reason}"
    if found.selected:
        return ""
    threshold = config.segmentation.tracklet_threshold
    if not found.tracklets:
        return f"not found: no candidate object at all (segmentation.tracklet_threshold {threshold:.2f})"
    best, count = found.tracklets[0].scores.combined, len(found.tracklets)
    candidates = "the only candidate" if count == 1 else f"the best of {count} candidates"
    return f"not found: {candidates} scores {best:.2f}, not over segmentation.tracklet_threshold {threshold:.2f}"


def tracking_text(target_count: int, category: str) -> str:
    """For example "tracking 2 targets: mug"."""
    targets = "1 target" if target_count == 1 else f"{target_count} targets"
    return f"tracking {targets}: {category}" if category else f"tracking {targets}"


def left_out_text(points: PointPrompts) -> str:
    """Suffix for an answer: weaker points were left out. Empty if none were."""
    if not points.left_out:
        return ""
    used = len(points)
    return f" (segmentation.max_points: the strongest {used} of {used + points.left_out} points were used)"


def heatmaps(found: Segmentation, query: Query) -> Iterator[Heatmap]:
    """The fused map of each key frame, resized bilinearly to the image (half-pixel centres, no antialiasing)."""
    height, width = found.window.size_hw
    for frame, values in zip(found.window.frames, found.grounding.maps.fused):
        yield Heatmap(frame, query, cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR))


def pixel_keypoints(found: Segmentation) -> Iterator[Keypoint]:
    """The keypoints in pixels of the camera's images; (0, 0) is the upper left corner."""
    height, width = found.window.frames[0].camera_hw
    points = found.keypoints
    for index, (x, y), value in zip(points.frame, points.xy, points.value):
        yield Keypoint(found.window.frames[index].stamp_ns, float(x * width), float(y * height), float(value))


def first_line(error: Exception) -> str:
    """An error's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
