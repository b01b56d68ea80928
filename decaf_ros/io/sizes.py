"""Camera images that are larger than the models use: smaller copies for the models, results at the camera's size."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from decaf_ros.types import Frame, FrameResult


def bounded(frame: Frame, max_side: int) -> Frame:
    """The frame, or a smaller copy (averaged areas) if a side of its image is longer than max_side; 0: no bound."""
    height, width = frame.size_hw
    if not 0 < max_side < max(height, width):
        return frame
    scale = max_side / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return replace(frame, image=cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA))


def enlarged(frame: Frame) -> Frame:
    """The frame, or a copy at the camera's size if it is a smaller one; interpolated bilinearly."""
    if frame.size_hw == frame.camera_hw:
        return frame
    return replace(frame, image=cv2.resize(frame.image, frame.camera_hw[::-1], interpolation=cv2.INTER_LINEAR))


def at_camera_size(result: FrameResult, frame: Frame) -> FrameResult:
    """The result on `frame`, of which `result.frame` is a copy: masks and the geometry of targets in its pixels."""
    if frame is result.frame:
        return result
    targets = tuple(replace(target, mask=nearest(target.mask, frame.size_hw)) for target in result.targets)
    confidence = None if result.confidence is None else nearest(result.confidence, frame.size_hw)
    labels = nearest(result.labels, frame.size_hw)
    return replace(result, frame=frame, labels=labels, targets=targets, confidence=confidence)


def nearest(values: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A mask or label image, bool or uint8, at another size: each pixel takes the value at its centre."""
    if values.shape == size_hw:
        return values
    sized = cv2.resize(values.view(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return sized.view(values.dtype)
