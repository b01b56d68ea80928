"""Fills the small holes of masks, as SAM2VideoPredictor's CUDA extension does; here on every device, without one."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

FILLED_LOGIT = 0.1  # of SAM2VideoPredictor
# Tensor operations take a step a pixel: beyond this the way over the CPU is shorter.
_MOST_STEPS = 64


def fill_holes(logits: torch.Tensor, most_px: int) -> torch.Tensor:
    """Mask logits (K, 1, h, w) float32 in which 8-connected parts of the background (logit <= 0) of at most most_px
    pixels have become foreground. most_px 0 changes nothing."""
    if most_px == 0 or len(logits) == 0:
        return logits
    background = logits <= 0
    if logits.device.type == "cpu" or most_px > _MOST_STEPS:
        holes = small_parts_on_cpu(background.cpu(), most_px).to(logits.device)
    else:
        holes = small_parts(background, most_px)
    return torch.where(holes, FILLED_LOGIT, logits)


def small_parts_on_cpu(masks: torch.Tensor, most_px: int) -> torch.Tensor:
    """(K, 1, h, w) bool: pixels of 8-connected parts with at most most_px pixels. masks: of the same shape, bool."""
    found = np.zeros(tuple(masks.shape), dtype=bool)
    for place, mask in zip(found[:, 0], masks[:, 0].to(torch.uint8).numpy()):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] <= most_px
        small[0] = False  # what is not in the mask
        place[:] = small[labels]
    return torch.from_numpy(found)


def small_parts(masks: torch.Tensor, most_px: int) -> torch.Tensor:
    """The same by tensor operations, without a synchronisation.

    Each pixel takes the largest number among its neighbours, most_px times: no pixel of a small part is farther from
    another one, so such a part then has one number. A number belongs to a whole part where none of its pixels has a
    neighbour in the mask with another number; so fragments of large parts are not taken for small ones.
    """
    count, _, height, width = masks.shape
    # Numbers from 1, 0 outside; float32 holds them exactly up to 2^24.
    numbers = torch.arange(1, height * width + 1, device=masks.device, dtype=torch.float32).view(1, 1, height, width)
    numbers = numbers * masks
    for _ in range(most_px):
        numbers = F.max_pool2d(numbers, 3, stride=1, padding=1) * masks
    # The smallest number around, outside counting as the largest.
    outside = float(height * width + 1)
    lowest = -F.max_pool2d(-torch.where(masks, numbers, outside), 3, stride=1, padding=1)
    highest = F.max_pool2d(numbers, 3, stride=1, padding=1)
    torn = masks & ((highest != numbers) | (lowest != numbers))
    places = numbers.long().flatten(1)
    sizes = torch.zeros(count, height * width + 1, device=masks.device)
    sizes.scatter_add_(1, places, masks.flatten(1).float() + torn.flatten(1).float() * (most_px + 1))
    return (sizes.gather(1, places) <= most_px).view_as(masks) & masks
