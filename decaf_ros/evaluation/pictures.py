"""Pictures of an evaluation: cases with their ground truth, and ROC curves. All images are (H, W, 3) uint8, RGB."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from decaf_ros.evaluation.metrics import Roc
from decaf_ros.io.viz import PALETTE, contact_sheet, heat_overlay
from decaf_ros.types import Segmentation

TRUTH_COLOR, FOUND_COLOR = PALETTE[6], PALETTE[1]
_TILES, _TILE_WIDTH = 4, 256
_DARK, _GREY, _WHITE = (16, 16, 16), (170, 170, 170), (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def case_strip(found: Segmentation, truth: np.ndarray) -> np.ndarray:
    """Up to four evenly spaced key frames: outlines of truth and result above, the fused attention map below.

    truth: (T, H, W) bool on the key frames. Without dense masks, the masks of the selected tracklets are drawn.
    """
    window = found.window
    indices = np.unique(np.linspace(0, len(window) - 1, _TILES).round().astype(int))
    outlined, heats = [], []
    for index in indices:
        frame = window.frames[index]
        image = enlarged(frame.image)
        outline(image, truth[index], TRUTH_COLOR, 3)
        outline(image, _published_mask(found, index), FOUND_COLOR, 2)
        outlined.append(image)
        heat = cv2.resize(found.grounding.maps.fused[index], frame.size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        heats.append(enlarged(heat_overlay(frame.image, heat)))
    legend(outlined[0])
    return contact_sheet([*outlined, *heats], len(indices), tile_width=_TILE_WIDTH)


def _published_mask(found: Segmentation, index: int) -> np.ndarray:
    """(H, W) bool: the union of the targets on the index-th key frame."""
    if found.dense_labels is not None:
        return np.asarray(found.dense_labels[found.window.frames[index].index] > 0)
    masks = [tracklet.masks[index] for tracklet in found.selected]
    return np.asarray(np.any(masks, axis=0)) if masks else np.zeros(found.window.size_hw, bool)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Resizes to the width of a tile, so that line widths are the same in all pictures."""
    height, width = image.shape[:2]
    return cv2.resize(image, (_TILE_WIDTH, round(height * _TILE_WIDTH / width)), interpolation=cv2.INTER_AREA)


def outline(image: np.ndarray, mask: np.ndarray, color: tuple[int, int, int], width: int) -> None:
    """Draws the outline of a mask, resized to the image, with a dark rim for contrast."""
    sized = cv2.resize(mask.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(sized, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, _DARK, width + 2)
    cv2.drawContours(image, contours, -1, color, width)


def legend(image: np.ndarray) -> None:
    image[:20] = (image[:20] * 0.35).astype(np.uint8)
    for x, text, color in ((6, "truth", TRUTH_COLOR), (66, "found", FOUND_COLOR)):
        cv2.putText(image, text, (x, 14), _FONT, 0.45, color, 1, cv2.LINE_AA)


def roc_picture(curve: Roc, threshold: float, title: str) -> np.ndarray:
    """Draws a ROC curve and marks the point of a threshold."""
    side, left, top = 480, 70, 50
    image = np.full((side + top + 70, side + left + 30, 3), _WHITE, np.uint8)

    def at(false_positive_rate: float, true_positive_rate: float) -> tuple[int, int]:
        return round(left + false_positive_rate * side), round(top + (1 - true_positive_rate) * side)

    def write(text: str, x: int, y: int, size: float = 0.45) -> None:
        cv2.putText(image, text, (x, y), _FONT, size, _DARK, 1, cv2.LINE_AA)

    for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
        cv2.line(image, at(share, 0), at(share, 1), _GREY, 1)
        cv2.line(image, at(0, share), at(1, share), _GREY, 1)
        write(f"{share:.1f}", at(share, 0)[0] - 10, top + side + 18)
        write(f"{share:.1f}", left - 34, at(0, share)[1] + 5)
    cv2.line(image, at(0, 0), at(1, 1), _GREY, 1, cv2.LINE_AA)
    line = np.array([at(*point) for point in zip(curve.false_positive_rate, curve.true_positive_rate)], np.int32)
    cv2.polylines(image, [line], False, PALETTE[0], 2, cv2.LINE_AA)
    # The last point whose scores reach the threshold.
    index = int(np.flatnonzero(curve.thresholds >= threshold)[-1])
    marked = at(curve.false_positive_rate[index], curve.true_positive_rate[index])
    cv2.circle(image, marked, 6, FOUND_COLOR, cv2.FILLED, cv2.LINE_AA)
    write(title, left, 22, 0.5)
    write(f"area under the curve {curve.area:.3f}; dot: threshold {threshold:.2f}", left, 42)
    write("false positive rate (absent targets)", left + 110, top + side + 44)
    label = np.full((20, side, 3), _WHITE, np.uint8)
    cv2.putText(label, "true positive rate (present targets)", (110, 14), _FONT, 0.45, _DARK, 1, cv2.LINE_AA)
    image[top : top + side, 6:26] = cv2.rotate(label, cv2.ROTATE_90_COUNTERCLOCKWISE)
    return image


def best_and_worst(rows: Sequence[Sequence[tuple[np.ndarray, str]]]) -> np.ndarray:
    """Arranges (strip, caption) pairs in rows, the best on the left, the worst on the right.

    Raises ValueError for no rows.
    """
    strips = [strip for row in rows for strip in row]
    columns = max((len(row) for row in rows), default=0)
    width = max((picture.shape[1] for picture, _ in strips), default=0)
    return contact_sheet([picture for picture, _ in strips], columns, [caption for _, caption in strips], width)
