"""Mask IoU and optimal assignment, on masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.segmentation.overlap import assign, mask_iou


def _mask(*cells: int) -> np.ndarray:
    mask = np.zeros((2, 4), bool)
    mask.flat[list(cells)] = True
    return mask


def test_mask_iou():
    assert mask_iou(_mask(0, 1, 2), _mask(1, 2, 3)) == pytest.approx(2 / 4)
    assert mask_iou(_mask(0, 1), _mask(0, 1)) == 1.0
    assert mask_iou(_mask(0), _mask(7)) == 0.0
    assert mask_iou(_mask(), _mask()) == 0.0


def test_mask_iou_refuses_different_sizes():
    with pytest.raises(ValueError, match=r"one size, got \(2, 4\) and \(4, 2\)"):
        mask_iou(_mask(0), _mask(0).reshape(4, 2))


def test_assignment_is_optimal_not_greedy():
    # Greedy takes 0.9 and then 0.1; 0.8 + 0.7 is more.
    assert assign(np.array([[0.9, 0.8], [0.7, 0.1]]), 0.05) == [(0, 1), (1, 0)]


def test_threshold_is_inclusive_and_applies_before_the_sum():
    assert assign(np.array([[0.5, 0.49]]), 0.5) == [(0, 0)]
    # Without the threshold the sum 0.45 + 0.45 would beat the one admissible pair.
    assert assign(np.array([[0.6, 0.45], [0.45, 0.0]]), 0.5) == [(0, 0)]


def test_no_overlap_never_matches():
    assert assign(np.zeros((2, 3)), 0.0) == []


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_nothing_to_match(shape):
    assert assign(np.zeros(shape), 0.5) == []
