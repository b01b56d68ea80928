from __future__ import annotations

import numpy as np
import pytest
import torch

from decaf_ros.segmentation.holes import FILLED_LOGIT, fill_holes, small_components, small_components_on_cpu


@pytest.mark.parametrize("density", [0.1, 0.35, 0.5, 0.7])
@pytest.mark.parametrize("max_px", [1, 3, 8])
def test_both_implementations_find_the_same_components(density, max_px):
    """Noise has components of every size and shape, very irregular ones near the percolation density."""
    rng = np.random.default_rng(int(100 * density) + max_px)
    masks = torch.from_numpy(rng.random((3, 1, 64, 80)) < density)
    expected = small_components_on_cpu(masks, max_px)
    assert torch.equal(small_components(masks, max_px), expected)
    assert expected.any() and not expected.all()


def test_a_long_line_is_no_small_component():
    """Its ends are farther apart than max_px steps: its fragments are not holes."""
    masks = torch.zeros(1, 1, 5, 60, dtype=torch.bool)
    masks[0, 0, 2] = True
    assert not small_components(masks, 8).any() and not small_components_on_cpu(masks, 8).any()
    masks[0, 0, 2, 8:] = False
    assert small_components(masks, 8).sum() == 8 == small_components_on_cpu(masks, 8).sum()


def test_holes_become_foreground():
    logits = torch.full((1, 1, 20, 20), 2.0)
    logits[0, 0, 3:5, 3:7] = -1.0
    logits[0, 0, 10:13, 10:13] = -1.0
    filled = fill_holes(logits, 8)
    assert (filled[0, 0, 3:5, 3:7] == FILLED_LOGIT).all() and (filled[0, 0, 10:13, 10:13] == -1.0).all()
    assert torch.equal(fill_holes(logits, 0), logits) and len(fill_holes(logits[:0], 8)) == 0
