"""Finds pieces of a mask that lie apart from the object: SAM 2 leaks into another object of the same looks."""

from __future__ import annotations

import cv2
import numpy as np

# Gap between two pieces of one object, as a share of the square root of the mask's area: an occluder may split it.
_GAP = 0.5
# Share of the largest part that other parts may have without being strays.
_SPECKLES = 0.05


def without_strays(mask: np.ndarray) -> np.ndarray:
    """The largest part of a (H, W) bool mask; `mask` itself if there is only one. Pieces that are close to each other
    are one part."""
    if not mask.any():
        return mask
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    inner = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    crop = mask[inner].astype(np.uint8)
    count, pieces = cv2.connectedComponents(crop, connectivity=8)
    if count == 2:
        return mask
    side = int(_GAP * np.count_nonzero(crop) ** 0.5) | 1
    count, parts = cv2.connectedComponents(cv2.dilate(crop, np.ones((side, side), np.uint8)), connectivity=8)
    if count == 2:
        return mask
    sizes = np.bincount(parts[crop > 0], minlength=count)
    largest = np.zeros_like(mask)
    largest[inner] = (parts == sizes.argmax()) & (crop > 0)
    return largest


def has_strays(mask: np.ndarray, largest: np.ndarray) -> bool:
    """Whether more than a few speckles of a mask are missing in its largest part."""
    return bool(np.count_nonzero(mask) > (1 + _SPECKLES) * np.count_nonzero(largest))
