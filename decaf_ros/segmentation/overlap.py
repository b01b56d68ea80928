"""Mask IoU, for one pair and for all pairs, and the assignment of masks by IoU."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

# Pixels per matrix product: bounds the float32 copies of the masks.
_PIXELS_AT_ONCE = 1 << 16


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU in [0, 1] of two (H, W) bool masks of one size. Two empty masks have IoU 0: nothing says they are the same.

    Raises ValueError for different sizes.
    """
    if first.shape != second.shape:
        raise ValueError(f"mask_iou: expected masks of one size, got {first.shape} and {second.shape}")
    common = np.count_nonzero(first & second)
    return common / np.count_nonzero(first | second) if common else 0.0


def assign(iou: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs (row, column) with the largest sum of IoUs, each row and column at most once, rows ascending.

    iou: (N, M) in [0, 1]. A pair needs at least `threshold`, and some overlap.
    """
    allowed = np.where(iou >= threshold, iou, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns) if allowed[row, column] > 0]


def pairwise_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of every mask of (P, H, W) bool with every one of (Q, H, W) bool: (P, Q) float64; of two empty ones 0."""
    first, second = first.flatten(1), second.flatten(1)
    areas = [masks.sum(dim=1, dtype=torch.float64) for masks in (first, second)]
    if first.device.type == "cpu":
        # Only where masks of both are is anything shared, and that is a small part of the image.
        used = (first.any(dim=0) & second.any(dim=0)).nonzero()[:, 0]
        first, second = first[:, used], second[:, used]
    shared = torch.zeros((len(first), len(second)), device=first.device)  # counts below 2^24 are exact in float32
    for ours, theirs in zip(first.split(_PIXELS_AT_ONCE, 1), second.split(_PIXELS_AT_ONCE, 1)):
        shared += ours.float() @ theirs.float().T
    union = areas[0][:, None] + areas[1] - shared
    return shared / union.clamp(min=1)
