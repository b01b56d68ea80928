"""Point prompts (Eq. 5), box prompts and keypoints from the fused attention map."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.hulls import hull_boxes
from decaf_ros.types import PointPrompts

# Share of a token that a mask covers, from which it is inside.
_INSIDE = 0.5


def attention_points(fused: np.ndarray, config: SegmentationConfig, means_several: bool | None = None) -> PointPrompts:
    """Point prompts for SAM 2 (Eq. 5): centres of strong tokens, each point a separate object.

    With config.points `threshold`, every token with value >= point_threshold; with `top_k`, each frame's top_k
    strongest tokens above 0. Beyond max_points only the strongest are kept; ties go to the earlier token.
    Peaks (`_peaks`) are points too, if means_several with value >= several_attention, with config.verify with value
    >= verify_attention: the map is scaled to the strongest object. Not all tokens: each point costs a propagation over
    the window.

    Args:
        fused: (T, h, w) float32 in [0, 1].

    Returns:
        Points sorted by frame, row, column; possibly none.

    Raises:
        TypeError: not a float32 array.
        ValueError: another shape, NaN or infinity.
    """
    _check_map(fused)
    if config.points == "threshold":
        is_point = fused >= np.float32(config.point_threshold)
        floors = [config.several_attention] * bool(means_several) + [config.verify_attention] * config.verify
        if floors:
            is_point |= _peaks(fused) & (fused >= np.float32(min(floors)))
        chosen = np.flatnonzero(is_point)
    else:
        tokens = fused.reshape(len(fused), -1)
        strongest = np.argsort(-tokens, axis=1, kind="stable")[:, : config.top_k]
        chosen = np.sort((strongest + np.arange(len(tokens))[:, None] * tokens.shape[1]).ravel())
        chosen = chosen[fused.ravel()[chosen] > 0]
    left_out = max(0, len(chosen) - config.max_points)
    if left_out:
        strongest = np.argsort(-fused.ravel()[chosen], kind="stable")[: config.max_points]
        chosen = chosen[np.sort(strongest)]
    return dataclasses.replace(_points(fused, chosen), left_out=left_out)


def attention_boxes(fused: np.ndarray, size_hw: tuple[int, int]) -> PointPrompts:
    """Box prompts for SAM 2 as in Loc-Head: at most one per frame, the box of the largest convex hull (`hull_boxes`).

    fused: (T, h, w) float32 in [0, 1]. size_hw: image size in pixels. The value of a box is the largest of the tokens
    that it touches. Raises as `attention_points`.
    """
    _check_map(fused)
    frames, boxes = hull_boxes(fused, size_hw)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    values = []
    for frame, (left, top, right, bottom) in zip(frames, boxes):
        rows, columns = (
            slice(math.floor(low * count), math.ceil(high * count))
            for low, high, count in ((top, bottom, fused.shape[1]), (left, right, fused.shape[2]))
        )
        values.append(fused[frame, rows, columns].max())
    return PointPrompts(frames, centres, np.array(values, np.float32), box=boxes)


def keypoints(fused: np.ndarray, config: SegmentationConfig, size_hw: tuple[int, int]) -> PointPrompts:
    """The window's top_k strongest separate peaks, for display and grasping; strongest first.

    Peaks (`_peaks`) are taken greedily by value, ties by order.
    A peak closer than keypoint_distance (in image diagonals) to a stronger one of any frame is dropped, so a spot is
    reported once, on the frame where it is strongest.

    fused: (T, h, w) float32 in [0, 1]. size_hw: image size in pixels. Raises as `attention_points`.
    """
    _check_map(fused)
    peaks = np.flatnonzero(_peaks(fused))
    peaks = peaks[np.argsort(-fused.ravel()[peaks], kind="stable")]
    height, width = size_hw
    position = _points(fused, peaks).xy * np.array((width, height), np.float32) / np.float32(math.hypot(height, width))
    kept: list[int] = []
    free = np.ones(len(peaks), dtype=bool)
    while free.any() and len(kept) < config.top_k:
        best = int(np.argmax(free))
        kept.append(best)
        free &= np.hypot(*(position - position[best]).T) >= config.keypoint_distance
        free[best] = False
    return _points(fused, peaks[kept])


def negative_points(attention: np.ndarray, mask: np.ndarray, config: SegmentationConfig) -> np.ndarray:
    """Negative points for a mask that covers more than what is attended to (App. I, as future work): centres of the
    weakest tokens inside, at most negative_points, of at most negative_attention. Ties go to the earlier token.

    A token is inside if at least half of it is. So a mask of the part that is meant hardly gets any.

    Args:
        attention: (h, w) float32 in [0, 1], the fused map of the mask's frame.
        mask: (H, W) bool.
        config: the two options.

    Returns:
        (N, 2) float32 in [0, 1], x right, y down.
    """
    pixels = torch.from_numpy(mask)[None, None].float()
    covered = F.adaptive_avg_pool2d(pixels, attention.shape)[0, 0].numpy() >= _INSIDE
    possible = np.flatnonzero(covered & (attention <= np.float32(config.negative_attention)))
    weakest = np.argsort(attention.ravel()[possible], kind="stable")[: config.negative_points]
    return _points(attention[None], np.sort(possible[weakest])).xy


def _peaks(fused: np.ndarray) -> np.ndarray:
    """(T, h, w) bool: the tokens above 0 that no neighbour in their frame exceeds."""
    neighbourhood_max = F.max_pool2d(torch.from_numpy(fused)[:, None], kernel_size=3, stride=1, padding=1)[:, 0]
    peaks: np.ndarray = (fused >= neighbourhood_max.numpy()) & (fused > 0)
    return peaks


def _points(fused: np.ndarray, tokens: np.ndarray) -> PointPrompts:
    """Points at the centres of tokens, given as indices into the flattened (T, h, w) map."""
    frame, row, column = np.unravel_index(tokens, fused.shape)
    xy = np.stack([(column + 0.5) / fused.shape[2], (row + 0.5) / fused.shape[1]], axis=1)
    return PointPrompts(frame.astype(np.int64), xy.astype(np.float32), fused[frame, row, column])


def _check_map(fused: np.ndarray) -> None:
    if not isinstance(fused, np.ndarray) or fused.dtype != np.float32:
        got = fused.dtype if isinstance(fused, np.ndarray) else type(fused).__name__
        raise TypeError(f"fused: expected a numpy array of float32, got {got}")
    if fused.ndim != 3 or 0 in fused.shape:
        raise ValueError(f"fused: expected shape (T, h, w), none of them 0, got {fused.shape}")
    if not np.isfinite(fused).all():
        raise ValueError("fused: expected finite values, got NaN or infinity")
