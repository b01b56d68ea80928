"""Figures of an answer as the paper draws them (Fig. 1, 5 to 12): one row for each step, one column for each key frame.

All images are (H, W, 3) uint8, RGB.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, min_max
from decaf_ros.io.viz import PALETTE, heat_overlay, target_color
from decaf_ros.types import Frame, Segmentation

MAGENTA = (255, 0, 255)
_COARSE_COLOR = PALETTE[3]
_DARK, _WHITE = (16, 16, 16), (255, 255, 255)
_FONT, _FONT_SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
_GAP, _LABEL_WIDTH, _LINE, _CHAR_WIDTH = 4, 132, 18, 8.2
_MASK_ALPHA = 0.5


class Row(NamedTuple):
    """One step of the method. images: one for each of the T key frames, all of one size."""

    label: str
    images: list[np.ndarray]


def figure_rows(found: Segmentation, dense: Sequence[Frame], tile_width: int, contrasts: bool = False) -> list[Row]:
    """The rows of the paper's figures: frames, video, frame and fused attention, attention mask, points, SAM mask.

    A branch that was not used, and an attention mask that the method does not make, have no row.

    Args:
        found: an answer with dense masks.
        dense: the frames that were masked.
        tile_width: width of the pictures in pixels.
        contrasts: also draw each branch's object and background map (Fig. 1a), each scaled to its own range.

    Raises:
        ValueError: without dense masks.
    """
    if found.dense_labels is None:
        raise ValueError("figure: expected an answer with dense masks, got none")
    tiles = _Tiles(found, tile_width)
    maps = found.grounding.maps
    rows = [Row("frames", tiles.plain())]
    for name, branch, kernel in (("video", maps.video, VIDEO_KERNEL), ("frame", maps.frames, FRAME_KERNEL)):
        if branch is None:
            continue
        per_frame = name == "frame"
        parts = (("object", branch.object), ("background", branch.background)) if contrasts else ()
        for part, values in parts:
            rows.append(Row(f"{name} attention, {part} prompt", tiles.heat(min_max(values, per_frame))))
        rows.append(Row(f"{name} attention", tiles.heat(contrast(branch, kernel, per_frame))))
    rows.append(Row("fused attention", tiles.heat(maps.fused)))
    if found.coarse_masks is not None:
        rows.append(Row("attention mask", tiles.masked(found.coarse_masks)))
    rows.append(Row(f"query points ({len(found.points)})", tiles.pointed()))
    rows.append(Row("SAM mask", tiles.segmented(dense)))
    return rows


def method_rows(name: str, found: Segmentation, dense: Sequence[Frame], tile_width: int) -> list[Row]:
    """The rows of another method beside DecAF's: its map with its points, its attention mask, its SAM mask.

    name: of the method. Else as `figure_rows`.
    """
    tiles = _Tiles(found, tile_width)
    heat = tiles.heat(found.grounding.maps.fused)
    rows = [Row(f"{name}: attention, query points ({len(found.points)})", tiles.pointed(heat))]
    chosen = [row for row in figure_rows(found, dense, tile_width) if row.label in ("attention mask", "SAM mask")]
    return rows + [Row(f"{name}: {label}", images) for label, images in chosen]


def figure(rows: Sequence[Row], columns: Sequence[int], times_s: Sequence[float], caption: str) -> np.ndarray:
    """One picture of all rows.

    Args:
        rows: each with an image for every key frame.
        columns: indices of the key frames to show.
        times_s: of all key frames, written above the columns.
        caption: text above the picture; may be long.
    """
    height, width = rows[0].images[0].shape[:2]
    total = _LABEL_WIDTH + len(columns) * (width + _GAP)
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, int(total / _CHAR_WIDTH))]
    top = _LINE * (len(lines) + 1) + 2 * _GAP
    picture = np.full((top + len(rows) * (height + _GAP), total, 3), _WHITE, np.uint8)
    for place, line in enumerate(lines):
        _write(picture, line, (_GAP, _LINE * (place + 1) - 4))
    for place, column in enumerate(columns):
        left = _LABEL_WIDTH + place * (width + _GAP)
        _write(picture, f"{times_s[column]:.2f} s", (left, top - _GAP - 2))
        for number, row in enumerate(rows):
            upper = top + number * (height + _GAP)
            picture[upper : upper + height, left : left + width] = row.images[column]
    for number, row in enumerate(rows):
        label = textwrap.wrap(row.label, int(_LABEL_WIDTH / _CHAR_WIDTH))
        first = top + number * (height + _GAP) + (height - _LINE * (len(label) - 1)) // 2
        for place, line in enumerate(label):
            _write(picture, line, (_GAP, first + _LINE * place + 4))
    return picture


def spread(count: int, columns: int) -> list[int]:
    """Indices of at most `columns` of `count` key frames, spread evenly; 0: all."""
    if not columns or columns >= count:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, columns).tolist()})


class _Tiles:
    """Pictures of the key frames of one answer, at the width of a tile."""

    def __init__(self, found: Segmentation, width: int) -> None:
        self._found = found
        height, full_width = found.window.size_hw
        self._size = (width, max(1, round(height * width / full_width)))
        self._images = [self._sized(frame.image) for frame in found.window.frames]

    def plain(self) -> list[np.ndarray]:
        return [image.copy() for image in self._images]

    def heat(self, maps: np.ndarray) -> list[np.ndarray]:
        """maps: (T', h, w) float32 in [0, 1]; a map of several frames is repeated for each of them."""
        repeated = np.repeat(maps, -(-len(self._images) // len(maps)), axis=0)
        return [
            heat_overlay(image, cv2.resize(values, self._size, interpolation=cv2.INTER_LINEAR))
            for image, values in zip(self._images, repeated)
        ]

    def masked(self, masks: np.ndarray) -> list[np.ndarray]:
        """The key frames with masks (T, H, W) bool."""
        images = self.plain()
        for image, mask in zip(images, masks):
            self._paint(image, mask, _COARSE_COLOR)
        return images

    def pointed(self, images: Sequence[np.ndarray] = ()) -> list[np.ndarray]:
        """The key frames, or other images of them, with the points that prompt SAM 2."""
        drawn, points = [image.copy() for image in images or self._images], self._found.points
        radius = max(2, round(self._size[0] / 60))
        for frame, xy in zip(points.frame, points.xy):
            centre = tuple(int(value) for value in np.minimum(xy * self._size, np.array(self._size) - 1))
            cv2.circle(drawn[frame], centre, radius + 1, _WHITE, cv2.FILLED, cv2.LINE_AA)
            cv2.circle(drawn[frame], centre, radius, MAGENTA, cv2.FILLED, cv2.LINE_AA)
        return drawn

    def segmented(self, dense: Sequence[Frame]) -> list[np.ndarray]:
        """The key frames with the targets' masks."""
        labels = self._found.dense_labels
        assert labels is not None
        places = {frame.stamp_ns: place for place, frame in enumerate(dense)}
        images = []
        for image, frame in zip(self.plain(), self._found.window.frames):
            shown = labels[places[frame.stamp_ns]]
            for label in np.unique(shown[shown > 0]).tolist():
                self._paint(image, shown == label, target_color(label))
            images.append(image)
        return images

    def _paint(self, image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
        sized = cv2.resize(mask.astype(np.uint8), self._size, interpolation=cv2.INTER_NEAREST)
        inside = sized > 0
        image[inside] = (image[inside] * (1 - _MASK_ALPHA) + np.array(color) * _MASK_ALPHA).astype(np.uint8)
        contours, _ = cv2.findContours(sized, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, contours, -1, _DARK, 2, cv2.LINE_AA)
        cv2.drawContours(image, contours, -1, color, 1, cv2.LINE_AA)

    def _sized(self, image: np.ndarray) -> np.ndarray:
        smaller = self._size[0] < image.shape[1]
        resized: np.ndarray = cv2.resize(
            image, self._size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )
        return resized


def _write(image: np.ndarray, text: str, xy: tuple[int, int]) -> None:
    cv2.putText(image, text, xy, _FONT, _FONT_SIZE, _DARK, 1, cv2.LINE_AA)
