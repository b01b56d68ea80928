"""Describes what masked objects look like: their colours, and the image features that SAM 2 computes anyway."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.segmentation.sam2 import FrameEmbedding
from decaf_ros.types import Frame

# Bins of luma, blue and red difference. Luma has few: it changes with the light.
_BINS = (5, 16, 16)
BINS = 5 * 16 * 16
# Rows: luma, blue and red difference (ITU-R BT.601) of RGB in [0, 1].
_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)
_OFFSET = np.array([0.0, 0.5, 0.5], np.float32)


def describe(embedding: FrameEmbedding, masks: np.ndarray, frame: Frame) -> np.ndarray:
    """(K, C) float32 descriptors of K masked objects; their dot product is a similarity in [-1, 1].

    The similarity is the mean of two: that of the colours, which tell objects of one kind apart and suffer when a mask
    leaks into another object, and that of the features. Colours: the square root of the histogram, so that its dot
    product is the Bhattacharyya coefficient. Features: per level, the mean inside the mask minus that of the image, as
    a unit vector; the dot product is the mean cosine. All zero for a mask smaller than a cell of the finest level.

    Args:
        embedding: of the frame.
        masks: (K, H, W) bool at the size of the frame.
        frame: the frame.
    """
    device = embedding.position.device
    soft = torch.from_numpy(masks).to(device)[:, None].float()
    parts = []
    large_enough = torch.ones(len(masks), dtype=torch.bool, device=device)
    for number, level in enumerate(embedding.features):
        features = level[0].float()
        weights = F.interpolate(soft, features.shape[-2:], mode="area")[:, 0]
        totals = weights.sum(dim=(1, 2))
        if number == 0:
            large_enough = totals >= 1
        inside = torch.einsum("khw,chw->kc", weights, features) / totals.clamp(min=1e-6)[:, None]
        parts.append(F.normalize(inside - features.mean(dim=(1, 2)), dim=1))
    found = torch.cat(parts, dim=1) / len(parts) ** 0.5
    colours = np.zeros((len(masks), BINS), np.float32)
    for row, mask in zip(colours, masks):
        row[:] = _colours(frame.image[mask])
    both = np.concatenate([found.cpu().numpy(), colours], axis=1) * 0.5**0.5
    return np.asarray(both * large_enough.cpu().numpy()[:, None], np.float32)


def colour_bins(pixels: np.ndarray) -> np.ndarray:
    """(N,) int64: the nearest histogram bin of each of (N, 3) uint8 RGB pixels."""
    return np.asarray(np.ravel_multi_index(tuple(np.rint(_places(pixels)).astype(np.int64).T), _BINS))


def colour_part(look: np.ndarray) -> np.ndarray:
    """(B,) float64: the colour histogram in a descriptor of `describe`; its sum is 1."""
    squared = np.square(look[-BINS:].astype(np.float64))
    return np.asarray(squared / max(squared.sum(), 1e-9))


def _places(pixels: np.ndarray) -> np.ndarray:
    """(N, 3) float: where (N, 3) uint8 RGB pixels lie between the bins."""
    return np.asarray(np.clip(pixels.astype(np.float32) / 255 @ _YCC.T + _OFFSET, 0, 1) * (np.array(_BINS) - 1))


def _colours(pixels: np.ndarray) -> np.ndarray:
    """(B,) float32 unit vector: square root of the colour histogram of (N, 3) uint8 RGB pixels; zero without pixels.

    Each pixel counts for the eight nearest bins, so that a small change of a colour is a small change here.
    """
    places = _places(pixels)
    lower = np.minimum(places.astype(np.int64), np.array(_BINS) - 2)
    upper_weights = places - lower
    histogram = np.zeros(BINS)
    for corner in itertools.product((0, 1), repeat=3):
        weights = np.where(corner, upper_weights, 1 - upper_weights).prod(axis=1)
        bins = np.ravel_multi_index(tuple((lower + corner).T), _BINS)
        histogram += np.bincount(bins, weights, len(histogram))
    return np.asarray(np.sqrt(histogram / max(len(pixels), 1)), np.float32)
