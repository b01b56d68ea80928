"""Draws masks with ids over a frame, heatmaps and contact sheets. All images are (H, W, 3) uint8, RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from decaf_ros.types import FrameResult, Target, TargetState

# Okabe and Ito's colour-blind-safe palette without black, ordered so that neighbours also differ in lightness.
PALETTE = (
    (0, 114, 178),
    (86, 180, 233),
    (213, 94, 0),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
)
_STATE_COLOR = PALETTE[3]
# Opacity of masks and of the bar.
_MASK_ALPHA = 0.35
_BAR_ALPHA = 0.65
_MAX_CATEGORY_CHARS = 24
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_DARK, _LIGHT = (16, 16, 16), (250, 250, 250)


def target_color(target_id: int) -> tuple[int, int, int]:
    """The RGB colour of a target id."""
    return PALETTE[target_id % len(PALETTE)]


def overlay(result: FrameResult, state: str = "", query: str = "") -> np.ndarray:
    """Draws targets on a copy of the frame: tinted masks with outlines and tags (id, category, score).

    A bar at the top shows the queries and `state`. Hidden targets are listed at the bottom.

    query: shown in the bar if the result has no query (not tracked yet, or not found).
    """
    image: np.ndarray = result.frame.image.copy()
    for target in result.targets:
        _tint(image, result.labels == target.label, target_color(target.id))
    for target in result.targets:
        _outline(image, target)
    size = _text_size(image)
    bar_height = _bar(image, "; ".join(one.text for one in result.queries) or query or "no query", state, size)
    taken: list[tuple[int, int, int, int]] = []
    for target in result.targets:
        if target.area_px:
            _tag(image, _caption(target), target.box_xywh, target_color(target.id), size, bar_height, taken)
    hidden = [_caption(target) for target in result.targets if not target.area_px]
    if hidden:
        _tag(image, "   ".join(hidden), (0, image.shape[0], 0, 0), _DARK, size, bar_height, taken)
    return image


def heat_overlay(image: np.ndarray, values: np.ndarray, caption: str = "") -> np.ndarray:
    """Blends a viridis heatmap over the image; opacity grows with the value.

    values: (H, W) float32 in [0, 1]. Raises ValueError if its size differs from the image's.
    """
    if values.shape != image.shape[:2]:
        raise ValueError(f"heatmap: expected the image's size {image.shape[:2]}, got {values.shape}")
    heat = np.clip(values, 0.0, 1.0)
    color = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[:, :, ::-1]
    weight = (0.15 + 0.6 * heat)[:, :, None]
    # Grey, so that the image's colours are not mistaken for heat.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
    blended: np.ndarray = (grey * (1 - weight) + color * weight).astype(np.uint8)
    if caption:
        _bar(blended, caption, "", _text_size(blended))
    return blended


def contact_sheet(
    images: Sequence[np.ndarray], columns: int, captions: Sequence[str] = (), tile_width: int = 640
) -> np.ndarray:
    """Lays out the images in rows of `columns` with captions below. Images wider than `tile_width` are shrunk to it.

    All cells have the size of the largest image. Raises ValueError for no image, columns < 1, or a number of captions
    that is neither 0 nor the number of images.
    """
    if not images or columns < 1:
        raise ValueError(f"contact sheet: expected images and columns >= 1, got {len(images)} and {columns}")
    if captions and len(captions) != len(images):
        raise ValueError(f"contact sheet: expected {len(images)} captions, got {len(captions)}")
    tiles = [shrunk(image, tile_width) for image in images]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    gap, strip = 6, 26 if captions else 0
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + strip + gap) + gap, columns * (width + gap) + gap, 3), _LIGHT, np.uint8)
    for index, tile in enumerate(tiles):
        top = gap + index // columns * (height + strip + gap)
        left = gap + index % columns * (width + gap)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        if captions:
            text = _fitted(captions[index], width - 4, 0.5)
            _write(sheet, text, (left + 2, top + height + 18), _DARK, 0.5)
    return sheet


def _tint(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    image[mask] = (image[mask] * (1 - _MASK_ALPHA) + np.asarray(color) * _MASK_ALPHA).astype(np.uint8)


def _outline(image: np.ndarray, target: Target) -> None:
    """Draws a coloured line with a dark rim, visible on any background; thin for a tentative target."""
    mask = np.ascontiguousarray(target.mask).view(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    line = 1 if target.state == TargetState.TENTATIVE else max(2, round(2 * _text_size(image) / 0.5))
    cv2.drawContours(image, contours, -1, _DARK, line + 2, cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, target_color(target.id), line, cv2.LINE_AA)


def _caption(target: Target) -> str:
    """For example "#3 mug 0.87"; includes the state unless it is TRACKED."""
    category = target.category
    if len(category) > _MAX_CATEGORY_CHARS:
        category = f"{category[: _MAX_CATEGORY_CHARS - 3]}..."
    state = "" if target.state == TargetState.TRACKED else target.state.name.lower()
    return " ".join(part for part in (f"#{target.id}", category, state, f"{target.scores.combined:.2f}") if part)


def _bar(image: np.ndarray, text: str, state: str, size: float) -> int:
    """Draws the top bar with `text` on the left and `state` on the right. Returns its height in pixels."""
    height = round(26 * size / 0.5)
    image[:height] = (image[:height] * (1 - _BAR_ALPHA)).astype(np.uint8)
    margin, baseline = round(6 * size / 0.5), round(18 * size / 0.5)
    state_width = _width(state, size) + 2 * margin if state else 0
    _write(image, _fitted(text, image.shape[1] - state_width - 2 * margin, size), (margin, baseline), _LIGHT, size)
    if state:
        _write(image, state, (image.shape[1] - state_width + margin, baseline), _STATE_COLOR, size)
    return height


def _tag(
    image: np.ndarray,
    text: str,
    box_xywh: tuple[int, int, int, int],
    color: tuple[int, int, int],
    size: float,
    top: int,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Draws text on a coloured rectangle above the box, or below it if `top` (height of the bar) leaves no room, or
    else under the bar. Avoids the rectangles (x0, y0, x1, y1) in `taken` and adds its own."""
    text = _fitted(text, image.shape[1] - 8, size)
    width, height = _width(text, size) + 8, round(20 * size / 0.5)
    left, upper, _, box_height = box_xywh
    x = max(min(left, image.shape[1] - width), 0)
    y = upper - height
    if y < top:
        below = upper + box_height + 2
        y = below if top <= below <= image.shape[0] - height else top
    y = min(y, image.shape[0] - height)
    while any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in taken):
        if y + 2 * height > image.shape[0]:
            break
        y += height
    taken.append((x, y, x + width, y + height))
    cv2.rectangle(image, (x, y), (x + width - 1, y + height - 1), color, cv2.FILLED)
    is_light = np.dot(color, (0.299, 0.587, 0.114)) > 110
    _write(image, text, (x + 4, y + round(14 * size / 0.5)), _DARK if is_light else _LIGHT, size)


def _text_size(image: np.ndarray) -> float:
    """OpenCV font scale for the width of an image: readable from 320 px on."""
    return float(np.clip(0.5 * image.shape[1] / 640, 0.4, 2.0))


def _width(text: str, size: float) -> int:
    return cv2.getTextSize(text, _FONT, size, _stroke(size))[0][0]


def _stroke(size: float) -> int:
    return max(1, round(size / 0.8))


def _write(image: np.ndarray, text: str, xy: tuple[int, int], color: tuple[int, int, int], size: float) -> None:
    cv2.putText(image, text, xy, _FONT, size, color, _stroke(size), cv2.LINE_AA)


def _fitted(text: str, width: int, size: float) -> str:
    """`text` on one line, cut with an ellipsis to at most `width` pixels."""
    text = " ".join(text.split())
    if _width(text, size) <= width:
        return text
    keep = len(text)
    while keep and _width(text[:keep] + "...", size) > width:
        keep -= 1
    return text[:keep] + "..."


def shrunk(image: np.ndarray, width: int) -> np.ndarray:
    """Shrinks an image wider than `width` to it, at its aspect ratio."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
