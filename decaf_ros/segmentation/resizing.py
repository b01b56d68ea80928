"""Mask logits to masks of the image's size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


def masks_of_size(logits: torch.Tensor, size_hw: tuple[int, int], at_once: int = 32) -> torch.Tensor:
    """Finite mask logits (K, h, w) float32 to masks (K, H, W) bool: bilinear (align_corners False), foreground over 0.

    at_once: on a GPU, of how many masks logits of the full size are held. On a CPU only the surroundings of a mask's
    foreground are computed: among logits of at most 0 nothing else can come out, and most masks are small.
    """
    if logits.device.type != "cpu":
        masks = torch.empty((len(logits), *size_hw), dtype=torch.bool, device=logits.device)
        for some, part in zip(masks.split(at_once), logits[:, None].split(at_once)):
            torch.gt(F.interpolate(part, size_hw, mode="bilinear", align_corners=False)[:, 0], 0, out=some)
        return masks
    # numpy's zeros take no memory before they are written to.
    masks = np.zeros((len(logits), *size_hw), bool)
    down, across = (_Side.of(*sides) for sides in zip(logits.shape[1:], size_hw))
    # Small steps are numpy's, in which they cost less; the products are torch's, with its threads.
    rows_seen, columns_seen = ((logits.amax(dim) > 0).numpy() for dim in (2, 1))
    spans = zip(down.spans(rows_seen), across.spans(columns_seen))
    with torch.autocast("cpu", enabled=False):  # edges are to lie where they are
        for place, ((rows, low_rows), (columns, low_columns)) in zip(np.flatnonzero(rows_seen.any(axis=1)), spans):
            low = logits[place, low_rows, low_columns]
            part = down.weights[rows, low_rows] @ low @ across.weights[columns, low_columns].T
            np.greater(part.numpy(), 0, out=masks[place, rows, columns])
    return torch.from_numpy(masks)


class _Side(NamedTuple):
    """Bilinear interpolation along one side, as a matrix. weights: (high, low) float32. reached: of each low place the
    first and the last high one that it makes a difference to; needed: of each high place those that make one to it."""

    weights: torch.Tensor
    reached: np.ndarray
    needed: np.ndarray

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, low: int, high: int) -> _Side:
        with torch.inference_mode(False):  # they outlast whoever asks first
            weights = F.interpolate(torch.eye(low)[None], high, mode="linear", align_corners=False)[0].T.contiguous()
        matters = weights.numpy() != 0
        return cls(weights, _first_and_last(matters.T), _first_and_last(matters))

    def spans(self, seen: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """Of each mask that has a foreground, what this reaches, and all that that depends on. seen: (K, low) bool."""
        seen = seen[seen.any(axis=1)]
        first = self.reached[seen.argmax(axis=1), 0]
        last = self.reached[seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1), 1]
        ends = np.stack([first, last, self.needed[first, 0], self.needed[last, 1]], axis=1)
        for start, end, low_start, low_end in ends.tolist():
            yield slice(start, end + 1), slice(low_start, low_end + 1)


def _first_and_last(flags: np.ndarray) -> np.ndarray:
    """(N, 2): of each row, which has one or more, the first and the last True. Where it has none (a picture that
    becomes smaller by more than half), the places of the row before it."""
    found = []
    for row in flags:
        places = np.flatnonzero(row)
        found.append((places[0], places[-1]) if len(places) else found[-1] if found else (0, -1))
    return np.array(found)
