"""Masks on SAM 2's mask grid, and at the size of the image where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

# Pixels of the full-size masks that are held at once where they are used one after the other.
_PIXELS_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class GridMasks(Sequence[np.ndarray]):
    """The masks of one object on T frames. `[index]` makes one at the size of the image: (H, W) bool.

    They are kept as logits, which take the same memory for images of every size.

    logits: (T, h, w) float32 on the model's device, > 0 inside.
    size_hw: size of the image.
    """

    logits: torch.Tensor
    size_hw: tuple[int, int]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        return masks_of_size(self.logits[index][None], self.size_hw)[0].cpu().numpy()


def masks_in_parts(logits: torch.Tensor, size_hw: tuple[int, int]) -> Iterator[torch.Tensor]:
    """`masks_of_size` of a few masks at a time, so that never all of them are held at full size."""
    for part in torch.split(logits, max(_PIXELS_AT_ONCE // (size_hw[0] * size_hw[1]), 1)):
        yield masks_of_size(part, size_hw)


def masks_of_size(logits: torch.Tensor, size_hw: tuple[int, int]) -> torch.Tensor:
    """Finite mask logits (K, h, w) float32 to masks (K, H, W) bool: bilinear (align_corners=False), then > 0.

    On a CPU only the surroundings of each mask's foreground are computed: interpolated logits <= 0 stay <= 0, and most
    masks are small.
    """
    if logits.device.type != "cpu":
        masks = torch.empty((len(logits), *size_hw), dtype=torch.bool, device=logits.device)
        at_once = max(_PIXELS_AT_ONCE // (size_hw[0] * size_hw[1]), 1)
        for some_masks, some_logits in zip(torch.split(masks, at_once), torch.split(logits[:, None], at_once)):
            torch.gt(F.interpolate(some_logits, size_hw, mode="bilinear", align_corners=False)[:, 0], 0, out=some_masks)
        return masks
    # numpy's zeros occupy no memory until written.
    output = np.zeros((len(logits), *size_hw), bool)
    vertical, horizontal = (_Axis.of(*sides) for sides in zip(logits.shape[1:], size_hw))
    # Small steps in numpy, which has less overhead; matrix products in torch, which uses its threads.
    rows_seen, columns_seen = ((logits.amax(dim) > 0).numpy() for dim in (2, 1))
    spans = zip(vertical.spans(rows_seen), horizontal.spans(columns_seen))
    with torch.autocast("cpu", enabled=False):  # keep mask edges exact
        for index, ((rows, low_rows), (columns, low_columns)) in zip(np.flatnonzero(rows_seen.any(axis=1)), spans):
            low = logits[index, low_rows, low_columns]
            part = vertical.weights[rows, low_rows] @ low @ horizontal.weights[columns, low_columns].T
            np.greater(part.numpy(), 0, out=output[index, rows, columns])
    return torch.from_numpy(output)


class _Axis(NamedTuple):
    """Bilinear interpolation along one axis, as a matrix.

    weights: (high, low) float32.
    reached: (low, 2), first and last high index that each low index affects.
    needed: (high, 2), first and last low index that each high index depends on.
    """

    weights: torch.Tensor
    reached: np.ndarray
    needed: np.ndarray

    @classmethod
    @lru_cache(maxsize=16)
    def of(cls, low: int, high: int) -> _Axis:
        with torch.inference_mode(False):  # cached, so also used outside the caller's inference mode
            weights = F.interpolate(torch.eye(low)[None], high, mode="linear", align_corners=False)[0].T.contiguous()
        nonzero = weights.numpy() != 0
        return cls(weights, _first_and_last(nonzero.T), _first_and_last(nonzero))

    def spans(self, seen: np.ndarray) -> Iterator[tuple[slice, slice]]:
        """For each mask with foreground: the high indices it reaches, and the low indices these depend on.

        seen: (K, low) bool, where a mask has foreground.
        """
        seen = seen[seen.any(axis=1)]
        first = self.reached[seen.argmax(axis=1), 0]
        last = self.reached[seen.shape[1] - 1 - seen[:, ::-1].argmax(axis=1), 1]
        ends = np.stack([first, last, self.needed[first, 0], self.needed[last, 1]], axis=1)
        for start, end, low_start, low_end in ends.tolist():
            yield slice(start, end + 1), slice(low_start, low_end + 1)


def _first_and_last(flags: np.ndarray) -> np.ndarray:
    """Indices of the first and last True of each row: (N, 2).

    A row without any (when the image shrinks by more than half) gets the previous row's indices.
    """
    bounds: list[tuple[int, int]] = []
    for row in flags:
        indices = np.flatnonzero(row)
        if len(indices):
            bounds.append((int(indices[0]), int(indices[-1])))
        else:
            bounds.append(bounds[-1] if bounds else (0, -1))
    return np.array(bounds)
