"""Decomposed attention fusion (paper, Sec. 3.3): contrast within each branch, then fusion of the two branches."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.types import BranchMaps

SMOOTHING_SIGMA = 1.0
VIDEO_KERNEL = 3
FRAME_KERNEL = 7


def smooth(maps: np.ndarray, kernel: int) -> np.ndarray:
    """Gaussian smoothing with zero padding. maps: (T, h, w) float32. kernel: odd width in tokens."""
    smoothed: np.ndarray = smooth_tensor(torch.from_numpy(maps), kernel).numpy()
    return smoothed


def smooth_tensor(maps: torch.Tensor, kernel: int) -> torch.Tensor:
    """As `smooth`, for a tensor (T, h, w) float32; differentiable."""
    offsets = torch.arange(kernel, dtype=torch.float32) - kernel // 2
    weights = torch.exp(-(offsets**2) / (2 * SMOOTHING_SIGMA**2))
    weights /= weights.sum()
    smoothed = F.conv2d(maps[:, None], weights.view(1, 1, -1, 1), padding=(kernel // 2, 0))
    return F.conv2d(smoothed, weights.view(1, 1, 1, -1), padding=(0, kernel // 2))[:, 0]


def difference(branch: BranchMaps, kernel: int) -> np.ndarray:
    """Smoothed object map minus smoothed background map, not clamped: (T', h, w) float32, of either sign."""
    signed: np.ndarray = smooth(branch.object, kernel) - smooth(branch.background, kernel)
    return signed


def contrast(branch: BranchMaps, kernel: int, per_frame: bool) -> np.ndarray:
    """Contrastive map: the difference clamped to [0, 1], then min-max scaled, per frame or over all frames.

    Returns (T', h, w) float32 in [0, 1]; a constant map becomes 0.
    """
    return min_max(difference(branch, kernel).clip(0, 1), per_frame)


def min_max(maps: np.ndarray, per_frame: bool = False) -> np.ndarray:
    """Scales (T, h, w) to [0, 1], per frame or over all frames; constant maps become 0."""
    axes = (1, 2) if per_frame else (0, 1, 2)
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    span = high - low
    scaled: np.ndarray = np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)
    return scaled


def fuse(video: np.ndarray | None, frames: np.ndarray | None, frame_count: int) -> np.ndarray:
    """Mean of both branches' contrastive maps on the frame branch's grid, then min-max scaled over all frames.

    Args:
        video: (T', h, w), or None. Resized bilinearly, and repeated in time to the key frames (T' temporal pairs; the
            padding of an odd last pair is cut off).
        frames: (T, h2, w2), or None. If one branch is None, the other one is used alone.
        frame_count: number of key frames T.

    Returns:
        (frame_count, h, w) float32 in [0, 1].

    Raises:
        ValueError: if both branches are None or `frames` has another length.
    """
    if video is not None:
        video = np.repeat(video, -(-frame_count // len(video)), axis=0)[:frame_count]
    if frames is None or video is None:
        only = video if frames is None else frames
        if only is None:
            raise ValueError("fuse: expected the maps of at least one branch, got none")
        return min_max(only)
    if len(frames) != frame_count:
        raise ValueError(f"fuse: expected {frame_count} frame maps, got {len(frames)}")
    return min_max((resize_maps(video, frames.shape[1:]) + frames) / 2)


def resize_maps(maps: np.ndarray, size_hw: tuple[int, ...]) -> np.ndarray:
    """Bilinear resize of (T, h, w) float32 to (T, H, W)."""
    resized: np.ndarray = F.interpolate(torch.from_numpy(maps)[:, None], size=size_hw, mode="bilinear")[:, 0].numpy()
    return resized


def coarse_masks(fused: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Masks from the map alone: resized to the image, 8 bit, Otsu's threshold per frame. Returns (T, H, W) bool."""
    levels = (resize_maps(fused, size_hw) * 255).astype(np.uint8)
    return np.stack([cv2.threshold(level, 0, 255, cv2.THRESH_OTSU)[1] > 0 for level in levels])
