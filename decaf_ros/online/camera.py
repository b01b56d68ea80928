"""How the image moves when the camera turns."""

from __future__ import annotations

import cv2
import numpy as np

from decaf_ros.types import Frame

# Rows of the images that are compared.
_ROWS = 120
# A peak of the phase correlation below this says nothing: it is noise, as after a cut.
_LEAST_PEAK = 0.15


def image_shift(before: Frame, after: Frame) -> np.ndarray:
    """(2,) float64 pixels, x right, y down: how most of the image moved between two frames of equal size, by phase
    correlation (Kuglin and Hines, 1975). Zero if no shift explains the difference."""
    rows, columns = before.size_hw
    scale = max(rows / _ROWS, 1.0)
    size = (round(columns / scale), round(rows / scale))
    if min(size) < 2:
        return np.zeros(2)
    first, second = (_grey(frame.image, size) for frame in (before, after))
    (x, y), peak = cv2.phaseCorrelate(first, second, cv2.createHanningWindow(size, cv2.CV_32F))
    return np.array([x, y]) * scale if peak >= _LEAST_PEAK else np.zeros(2)


def shifted(mask: np.ndarray, shift_xy: np.ndarray) -> np.ndarray:
    """A (H, W) bool mask moved by whole pixels, x right, y down; what leaves the image is gone."""
    columns, rows = np.round(shift_xy).astype(int).tolist()
    if not (rows or columns):
        return mask
    moved = np.zeros_like(mask)
    height, width = mask.shape
    if abs(rows) < height and abs(columns) < width:
        to_rows, from_rows = _overlap(rows, height)
        to_columns, from_columns = _overlap(columns, width)
        moved[to_rows, to_columns] = mask[from_rows, from_columns]
    return moved


def _overlap(shift: int, length: int) -> tuple[slice, slice]:
    """Where an axis lies after and before a shift."""
    return slice(max(shift, 0), length + min(shift, 0)), slice(max(-shift, 0), length - max(shift, 0))


def _grey(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
