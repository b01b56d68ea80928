"""Marks one object in an image, for a question about it: the rest is darkened, a white line surrounds it.

Both, because neither shows every object: darkness around a black one, or a white line around a white one. Its own
pixels stay as they are, so that questions about its colour can be answered.
"""

from __future__ import annotations

import cv2
import numpy as np

# Brightness of the rest, and width of the line as a share of the image's shorter side.
DIMMED, LINE_SHARE = 0.35, 1 / 120


def marked_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with an object marked: (H, W, 3) uint8, RGB. Without any pixel of the object all of it is dark.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) bool, the object.

    Raises:
        ValueError: a mask of another size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask: expected the size of the image {image.shape[:2]}, got {mask.shape}")
    marked = np.where(mask[..., None], image, (image * np.float32(DIMMED)).astype(np.uint8))
    width = max(1, round(min(mask.shape) * LINE_SHARE))
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    around = cv2.dilate(mask.astype(np.uint8), element) > 0
    marked[around & ~mask] = 255
    return marked
