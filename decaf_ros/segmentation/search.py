"""Where on an image a lost object may be, by its colours: histogram backprojection (Swain and Ballard, 1991)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from decaf_ros.segmentation.appearance import colour_bins, colour_part
from decaf_ros.types import Frame

_POINTS = 8
# About so many pixels of the image are looked at.
_PIXELS = 20000
# Mean share of a point's neighbourhood that may belong to the object.
_LEAST = 0.02


class Example(NamedTuple):
    """The object to look for. look: (C,) float32 descriptor (`appearance.describe`). area_px: usual size."""

    look: np.ndarray
    area_px: float


def likely_points(frame: Frame, example: Example) -> np.ndarray:
    """(P, 2) float64 in [0, 1], x right, y down: up to 8 separate places with the example's colours, the best first.

    Each pixel weighs as much as the example has of its colour, compared with the whole image: a colour that is common
    in the image says little. Spots of the example's size come before larger areas of its colours, in which many points
    would find one and the same object.
    """
    step = max(round((frame.size_hw[0] * frame.size_hw[1] / _PIXELS) ** 0.5), 1)
    image = frame.image[step // 2 :: step, step // 2 :: step]
    bins = colour_bins(image.reshape(-1, 3))
    wanted = colour_part(example.look) * example.area_px / step**2
    present = np.bincount(bins, minlength=len(wanted))
    weights = np.minimum(wanted / np.maximum(present, 1), 1.0)[bins].reshape(image.shape[:2]).astype(np.float32)
    side = max(example.area_px**0.5 / step, 1.0)
    # Half as large as the object, so that the point lies on it; its surroundings, twice as large, count against it.
    inner, outer = (
        cv2.blur(weights, (round(scale * side) or 1,) * 2, borderType=cv2.BORDER_CONSTANT) for scale in (0.5, 2.0)
    )
    score = np.where(inner >= _LEAST, inner - outer / 2, 0.0)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    points: list[tuple[float, float]] = []
    while len(points) < _POINTS and score.max() > 0:
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        points.append(((column + 0.5) / image.shape[1], (row + 0.5) / image.shape[0]))
        score[(rows - row) ** 2 + (columns - column) ** 2 < side**2] = 0
    return np.array(points).reshape(-1, 2)
