"""Mask IoU of one pair or of all pairs of packed masks, and optimal assignment by IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from decaf_ros.segmentation.resizing import masks_in_parts

# Bytes (eight pixels each) of every mask per matrix product; bounds the float32 copies of the masks.
_BYTES_PER_PRODUCT = 1 << 13
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


def were_apart(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two (T, h, w) bool tracks show different objects, not a part and its whole, on a frame with both."""
    common, areas = (first & second).sum(dim=(1, 2)), [track.sum(dim=(1, 2)) for track in (first, second)]
    smaller = torch.minimum(*areas)
    return bool(((smaller > 0) & (common < _PART_OVERLAP * smaller)).any())


def assign(iou: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """One-to-one assignment with the largest sum of IoUs: pairs (row, column), rows ascending.

    iou: (N, M) in [0, 1]. Pairs below `threshold` or without overlap are not allowed.
    """
    allowed = np.where(iou >= threshold, iou, 0.0)
    rows, columns = linear_sum_assignment(allowed, maximize=True)
    return [(int(row), int(column)) for row, column in zip(rows, columns) if allowed[row, column] > 0]


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """K masks of one image in an eighth of their memory.

    bits: (K, B) uint8, eight pixels of the flattened mask to a byte.
    area_px: (K,) float64.
    """

    bits: torch.Tensor
    area_px: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, size_hw: tuple[int, int]) -> PackedMasks:
        """The masks of logits (K, h, w) float32 at the size of the image, see `masks_of_size`."""
        bits = np.empty((len(logits), -(-size_hw[0] * size_hw[1] // 8)), np.uint8)
        areas = []
        start = 0
        for part in masks_in_parts(logits, size_hw):
            pixels = part.flatten(1)
            bits[start : start + len(part)] = np.packbits(pixels.cpu().numpy(), axis=1)
            areas.append(pixels.sum(dim=1, dtype=torch.float64))
            start += len(part)
        return cls(torch.from_numpy(bits).to(logits.device), torch.cat(areas))

    def __getitem__(self, chosen: torch.Tensor) -> PackedMasks:
        """Some of the masks, by index or flag."""
        return PackedMasks(self.bits[chosen], self.area_px[chosen])


def pairwise_iou(first: PackedMasks, second: PackedMasks) -> torch.Tensor:
    """IoU of all pairs of P and Q masks of one image: (P, Q) float64; 0 for two empty masks."""
    # Only bytes that both sides cover can intersect: usually few.
    both = (first.bits.any(dim=0) & second.bits.any(dim=0)).nonzero()[:, 0]
    pixels_of_byte = torch.from_numpy(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1))
    pixels_of_byte = pixels_of_byte.to(first.bits.device, torch.float32)
    intersection = torch.zeros((len(first.bits), len(second.bits)), device=first.bits.device)
    for chosen in torch.split(both, _BYTES_PER_PRODUCT):  # float32 counts are exact up to 2^24
        pixels = (F.embedding(masks.bits[:, chosen].int(), pixels_of_byte).flatten(1) for masks in (first, second))
        intersection += next(pixels) @ next(pixels).T
    union = first.area_px[:, None] + second.area_px - intersection
    return intersection / union.clamp(min=1)
