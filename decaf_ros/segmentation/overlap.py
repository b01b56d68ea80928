"""Mask IoU of one pair or of all pairs, and optimal assignment by IoU."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

# Pixels per matrix product; bounds the float32 copies of the masks.
_PIXELS_PER_PRODUCT = 1 << 16
# Minimum share of the smaller mask inside the other one for a part and its whole.
_PART_OVERLAP = 0.5


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU in [0, 1] of two (H, W) bool masks of one size; 0 for two empty masks.

    Raises ValueError for different sizes.
    """
    if first.shape != second.shape:
        raise ValueError(f"mask_iou: expected masks of one size, got {first.shape} and {second.shape}")
    common = np.count_nonzero(first & second)
    return common / np.count_nonzero(first | second) if common else 0.0


def are_apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two non-empty (H, W) bool masks show different objects, not a part and its whole."""
    smaller = min(np.count_nonzero(first), np.count_nonzero(second))
    return bool(np.count_nonzero(first & second) < _PART_OVERLAP * smaller)


def assign(iou: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """One-to-one assignment with the largest sum of IoUs: pairs (row, column), rows ascending.

    iou: (N, M) in [0, 1]. Pairs below `threshold` or without overlap are not allowed.
    """
    allowed = np.where(iou >= threshold, iou, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns) if allowed[row, column] > 0]


def pairwise_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU of all pairs of masks (P, H, W) bool and (Q, H, W) bool: (P, Q) float64; 0 for two empty masks."""
    first, second = first.flatten(1), second.flatten(1)
    areas = [masks.sum(dim=1, dtype=torch.float64) for masks in (first, second)]
    if first.device.type == "cpu":
        # Only pixels that both sides cover can intersect: usually few.
        both = (first.any(dim=0) & second.any(dim=0)).nonzero()[:, 0]
        first, second = first[:, both], second[:, both]
    intersection = torch.zeros((len(first), len(second)), device=first.device)  # float32 counts are exact up to 2^24
    parts = zip(torch.split(first, _PIXELS_PER_PRODUCT, 1), torch.split(second, _PIXELS_PER_PRODUCT, 1))
    for first_part, second_part in parts:
        intersection += first_part.float() @ second_part.float().T
    union = areas[0][:, None] + areas[1] - intersection
    return intersection / union.clamp(min=1)
