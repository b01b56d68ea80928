"""Masks and boxes from an attention map as Loc-Head makes them (Kang et al., 2025): the largest convex hull."""

from __future__ import annotations

import cv2
import numpy as np

from decaf_ros.grounding.fusion import resize_maps


def hull_masks(fused: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The largest convex hull of the regions above the map's mean, filled, per frame: (T, H, W) bool.

    fused: (T, h, w) float32, resized bilinearly first. A constant map has an empty mask.
    """
    masks = np.zeros((len(fused), *size_hw), np.uint8)
    for mask, hull in zip(masks, _hulls(fused, size_hw)):
        if hull is not None:
            cv2.fillConvexPoly(mask, hull, 1)
    return masks.astype(bool)


def hull_boxes(fused: np.ndarray, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of these hulls: indices of the frames that have one (P,) int64, and the corners (P, 4) float32 in
    [0, 1]: left, top, right, bottom. Arguments as `hull_masks`."""
    frames, boxes = [], []
    for frame, hull in enumerate(_hulls(fused, size_hw)):
        if hull is not None:
            x, y, width, height = cv2.boundingRect(hull)
            frames.append(frame)
            boxes.append((x, y, x + width, y + height))
    scale = np.array((size_hw[1], size_hw[0]) * 2, np.float32)
    return np.array(frames, np.int64), np.array(boxes, np.float32).reshape(-1, 4) / scale


def _hulls(fused: np.ndarray, size_hw: tuple[int, int]) -> list[np.ndarray | None]:
    """The largest hull of each frame, (n, 1, 2) int32 pixels; None for a constant map."""
    found: list[np.ndarray | None] = []
    for level in resize_maps(fused, size_hw):
        # The mean in float64, or rounding may put a constant map above its own mean.
        above = (level > level.mean(dtype=np.float64)).astype(np.uint8)
        above = above if np.ptp(level) > 0 else np.zeros_like(above)
        regions, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        hulls = [cv2.convexHull(region) for region in regions]
        found.append(max(hulls, key=cv2.contourArea, default=None))
    return found
