"""Which new mask continues which old one: optimal assignment by mask IoU."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


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
