"""Decomposed attention fusion (paper, Sec. 3.3): contrast within a branch, then the two branches together."""

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
    """Gaussian smoothing with zeros outside. maps: (T, h, w) float32. kernel: odd width in tokens."""
    return smooth_tensor(torch.from_numpy(maps), kernel).numpy()


def smooth_tensor(maps: torch.Tensor, kernel: int) -> torch.Tensor:
    """As `smooth`, of (T, h, w) float32, with gradients."""
    offsets = torch.arange(kernel, dtype=torch.float32) - kernel // 2
    weights = torch.exp(-(offsets**2) / (2 * SMOOTHING_SIGMA**2))
    weights /= weights.sum()
    smoothed = F.conv2d(maps[:, None], weights.view(1, 1, -1, 1), padding=(kernel // 2, 0))
    return F.conv2d(smoothed, weights.view(1, 1, 1, -1), padding=(0, kernel // 2))[:, 0]


def difference(branch: BranchMaps, kernel: int) -> np.ndarray:
    """Object minus background after smoothing, before any clamping: (T', h, w) float32, of either sign."""
    return smooth(branch.object, kernel) - smooth(branch.background, kernel)


def contrast(branch: BranchMaps, kernel: int, per_frame: bool) -> np.ndarray:
    """The contrastive map: the difference clamped to [0, 1], then min-max, per frame or over all frames.

    Returns (T', h, w) float32 in [0, 1]; a constant map becomes 0.
    """
    return min_max(difference(branch, kernel).clip(0, 1), per_frame)


def min_max(maps: np.ndarray, per_frame: bool = False) -> np.ndarray:
    """Scales (T, h, w) to [0, 1], each frame by itself or all together; where all is equal the result is 0."""
    axes = (1, 2) if per_frame else (0, 1, 2)
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    span = high - low
    return np.divide(maps - low, span, out=np.zeros_like(maps), where=span > 0)


def fuse(video: np.ndarray | None, frames: np.ndarray | None, frame_count: int) -> np.ndarray:
    """Both branches' contrastive maps, averaged on the frame branch's grid, then min-max over all.

    video: (T', h, w), repeated along time to the key frames (T' temporal pairs; an odd padded frame falls away) and
    resized bilinearly. frames: (T, h2, w2). One of them may be None: the other one stands alone.
    Returns (frame_count, h, w) float32 in [0, 1].
    """
    if video is not None:
        video = np.repeat(video, -(-frame_count // len(video)), axis=0)[:frame_count]
    if frames is None or video is None:
        alone = video if frames is None else frames
        if alone is None:
            raise ValueError("fuse: expected the maps of at least one branch, got none")
        return min_max(alone)
    if len(frames) != frame_count:
        raise ValueError(f"fuse: expected {frame_count} frame maps, got {len(frames)}")
    resized = F.interpolate(torch.from_numpy(video)[:, None], size=frames.shape[1:], mode="bilinear")[:, 0].numpy()
    return min_max((resized + frames) / 2)


def resize_maps(maps: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(T, h, w) float32 to (T, H, W), bilinear."""
    return F.interpolate(torch.from_numpy(maps)[:, None], size=size_hw, mode="bilinear")[:, 0].numpy()


def coarse_masks(fused: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Masks from the map alone: resized to the image, 8 bit, Otsu's threshold frame by frame. (T, H, W) bool."""
    levels = (resize_maps(fused, size_hw) * 255).astype(np.uint8)
    return np.stack([cv2.threshold(level, 0, 255, cv2.THRESH_OTSU)[1] > 0 for level in levels])
