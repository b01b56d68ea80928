"""Fills small holes in masks, as SAM2VideoPredictor's CUDA extension does, but on every device and without it."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

FILLED_LOGIT = 0.1  # as in SAM2VideoPredictor
# `small_components` takes one step per pixel of max_px: above this a round trip over the CPU is faster.
_MAX_STEPS = 64


def fill_holes(logits: torch.Tensor, max_px: int) -> torch.Tensor:
    """Turns small holes of mask logits (K, 1, h, w) float32 into foreground.

    A hole is an 8-connected component of the background (logit <= 0) of at most max_px pixels. max_px 0: no change.
    """
    if max_px == 0 or len(logits) == 0:
        return logits
    background = logits <= 0
    if logits.device.type == "cpu" or max_px > _MAX_STEPS:
        holes = small_components_on_cpu(background.cpu(), max_px).to(logits.device)
    else:
        holes = small_components(background, max_px)
    return torch.where(holes, FILLED_LOGIT, logits)


def small_components_on_cpu(masks: torch.Tensor, max_px: int) -> torch.Tensor:
    """Pixels of 8-connected components of at most max_px pixels: (K, 1, h, w) bool, as `masks`."""
    found = np.zeros(tuple(masks.shape), dtype=bool)
    for output, mask in zip(found[:, 0], masks[:, 0].to(torch.uint8).numpy()):
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        small = stats[:, cv2.CC_STAT_AREA] <= max_px
        small[0] = False  # label 0: outside the mask
        output[:] = small[labels]
    return torch.from_numpy(found)


def small_components(masks: torch.Tensor, max_px: int) -> torch.Tensor:
    """As `small_components_on_cpu`, by tensor operations without a device synchronisation.

    Every pixel starts with its own number and takes the largest of its neighbours' numbers, max_px times. Then a
    component of at most max_px pixels has a single number. Larger components may still hold several: a number counts as
    a complete component only if none of its pixels touches another number, so fragments are not mistaken for holes.
    """
    count, _, height, width = masks.shape
    # 1 and up in the mask, 0 outside; float32 is exact up to 2^24.
    numbers = torch.arange(1, height * width + 1, device=masks.device, dtype=torch.float32).view(1, 1, height, width)
    numbers = numbers * masks
    for _ in range(max_px):
        numbers = F.max_pool2d(numbers, 3, stride=1, padding=1) * masks
    outside = float(height * width + 1)  # so that the minimum ignores pixels outside the mask
    lowest = -F.max_pool2d(-torch.where(masks, numbers, outside), 3, stride=1, padding=1)
    highest = F.max_pool2d(numbers, 3, stride=1, padding=1)
    touches_other = masks & ((highest != numbers) | (lowest != numbers))
    bins = numbers.long().flatten(1)
    sizes = torch.zeros(count, height * width + 1, device=masks.device)
    sizes.scatter_add_(1, bins, masks.flatten(1).float() + touches_other.flatten(1).float() * (max_px + 1))
    return (sizes.gather(1, bins) <= max_px).view_as(masks) & masks
