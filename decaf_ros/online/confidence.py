"""How sure SAM 2 is of each pixel of the published masks, as an image.

Bytes, because viewers show a mono8 image as it is: rqt_image_view scales 32FC1 to a range of metres.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import torch

from decaf_ros.types import FrameResult

# Masks were interpolated by other code; closer to 0, it may have found another sign.
_ROUNDING = 0.01


def confidence_image(result: FrameResult, logits: Mapping[int, torch.Tensor]) -> np.ndarray:
    """255 times the probability that a pixel belongs to the target that `labels` has there, by SAM 2.

    Where `labels` has none: the highest one of all visible targets, and 0 where all that had more than 0.5 lost the
    pixel afterwards (pieces apart from the object, `tracking.edges`). Overlaps count for the target of the label.

    logits: (h, w) float32 on the mask grid by id, of each visible target. Returns (H, W) uint8, rounded.
    """
    height, width = result.frame.size_hw
    highest = np.full((height, width), -np.inf, np.float32)
    labelled = []
    for target in result.targets:
        if not target.area_px:
            continue
        # As the masks are made of them: bilinear, without aligned corners.
        score = cv2.resize(logits[target.id].cpu().numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
        own = result.labels == target.label
        labelled.append((own, score[own]))
        score[(score > _ROUNDING) & ~target.mask] = -np.inf
        np.maximum(highest, score, out=highest)
    for own, score in labelled:
        highest[own] = score
    return np.rint(255 / (1 + np.exp(-np.clip(highest, -30, 30)))).astype(np.uint8)
