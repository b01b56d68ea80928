"""How the image moves when the camera turns."""

from __future__ import annotations

import cv2
import numpy as np

from decaf_ros.types import Frame

# Rows of the images that are compared.
_ROWS = 120
# A peak of the phase correlation below this says nothing: it is noise, as after a cut.
_LEAST_PEAK = 0.15
# Grey levels: as different as this is the same pixel, or another one.
_SAME, _OTHER = 6, 12
# So large a share of the pixels that tell may have stayed where it was: between the shares for a camera that turns and
# for objects that move.
_MOST_STAYED = 0.25
# Blur in pixels: a shift that is found is up to half a pixel off.
_BLUR = 1.0


def image_shift(before: Frame, after: Frame) -> np.ndarray:
    """(2,) float64 pixels, x right, y down: how most of the image moved between two frames of equal size, by phase
    correlation (Kuglin and Hines, 1975). Zero if no shift explains the difference, or only that of a part: on a plain
    table an object that moves is most of what can be seen to move, but what stands still stays."""
    rows, columns = before.size_hw
    scale = max(rows / _ROWS, 1.0)
    size = (round(columns / scale), round(rows / scale))
    if min(size) < 2:
        return np.zeros(2)
    first, second = (_grey(frame.image, size) for frame in (before, after))
    # Copies: for some sizes OpenCV multiplies its arguments by the window.
    (x, y), peak = cv2.phaseCorrelate(first.copy(), second.copy(), cv2.createHanningWindow(size, cv2.CV_32F))
    is_shift = peak >= _LEAST_PEAK and (round(x) or round(y)) and _moves_all(first, second, x, y)
    return np.array([x, y]) * scale if is_shift else np.zeros(2)


def _moves_all(before: np.ndarray, after: np.ndarray, x: float, y: float) -> bool:
    """Whether hardly any pixel of two grey images is explained by standing still and not by the shift."""
    size = before.shape[::-1]
    before, after = (cv2.GaussianBlur(image, (0, 0), _BLUR) for image in (before, after))
    there = np.array([[1, 0, x], [0, 1, y]])
    moved = cv2.warpAffine(before, there, size)
    is_inside = cv2.warpAffine(np.ones_like(before), there, size) == 1
    by_shift, by_rest = np.abs(after - moved), np.abs(after - before)
    stayed = np.count_nonzero(is_inside & (by_rest < _SAME) & (by_shift > _OTHER))
    went = np.count_nonzero(is_inside & (by_shift < _SAME) & (by_rest > _OTHER))
    return bool(stayed < _MOST_STAYED * (stayed + went))


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
