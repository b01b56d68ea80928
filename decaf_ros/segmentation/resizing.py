"""Mask logits to masks of the image's size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F


def masks_of_size(logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Mask logits (K, h, w) float32 to masks (K, H, W) bool: bilinear (align_corners False), foreground over 0.

    On a CPU only the surroundings of a mask's foreground are computed: among logits of at most 0 nothing else can
    come out, and most masks are small.
    """
    if logits.device.type != "cpu":
        return F.interpolate(logits[:, None], size_hw, mode="bilinear", align_corners=False)[:, 0] > 0
    masks = torch.zeros((len(logits), *size_hw), dtype=torch.bool)
    down, across = (_weights(*sides) for sides in zip(logits.shape[1:], size_hw))
    # Where it is is found by numpy, in which small steps cost less; the products are torch's, with its threads.
    for mask, logit, seen in zip(masks, logits, (logits > 0).numpy()):
        if seen.any():
            (rows, low_rows), (columns, low_columns) = _span(down, seen.any(axis=1)), _span(across, seen.any(axis=0))
            part = down[rows, low_rows] @ logit[low_rows, low_columns] @ across[columns, low_columns].T
            torch.gt(part, 0, out=mask[rows, columns])
    return masks


@lru_cache(maxsize=16)
def _weights(low: int, high: int) -> torch.Tensor:
    """(high, low) float32: bilinear interpolation along one side, as a matrix."""
    return F.interpolate(torch.eye(low)[None], high, mode="linear", align_corners=False)[0].T.contiguous()


def _span(weights: torch.Tensor, seen: np.ndarray) -> tuple[slice, slice]:
    """What the foreground reaches along one side, and all that this depends on. seen: (low,) bool, some of it True."""
    counts = weights.numpy()
    reached = _from_first_to_last(counts[:, _from_first_to_last(seen)].any(axis=1))
    return reached, _from_first_to_last(counts[reached].any(axis=0))


def _from_first_to_last(flags: np.ndarray) -> slice:
    places = np.flatnonzero(flags)
    return slice(places[0], places[-1] + 1) if len(places) else slice(0)
