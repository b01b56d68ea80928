"""Small synthetic clips for the segmentation tests."""

from __future__ import annotations

import numpy as np
import torch

from decaf_ros.segmentation.overlap import PackedMasks
from decaf_ros.segmentation.resizing import GridMasks
from decaf_ros.types import Frame


def moving_scene(count: int, size_hw: tuple[int, int] = (120, 200)) -> list[Frame]:
    """A red disc moves right and a blue box moves down, on a shaded background with slight noise."""
    height, width = size_hw
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(count):
        image = np.stack([70 + 40 * np.sin(x / 40), 80 + 40 * np.cos(y / 30), np.full(size_hw, 90.0)], axis=-1)
        image[np.hypot(x - width * 0.3 - 2 * index, y - height * 0.5) < height * 0.18] = (220, 40, 30)
        image[(abs(x - width * 0.75) < width * 0.1) & (abs(y - height * 0.4 - index) < height * 0.15)] = (30, 60, 220)
        image += rng.normal(0, 3, image.shape)
        frames.append(Frame(image.clip(0, 255).astype(np.uint8), 1_000_000_000 + index * 50_000_000, "camera", index))
    return frames


def grid_masks(masks: np.ndarray | torch.Tensor) -> GridMasks:
    """(T, H, W) bool masks, on a grid of their own size."""
    return GridMasks(signed(torch.as_tensor(masks)), tuple(masks.shape[1:]))


def packed(masks: torch.Tensor) -> PackedMasks:
    """(K, H, W) bool masks of one image."""
    return PackedMasks.of(signed(masks), tuple(masks.shape[1:]))


def signed(masks: torch.Tensor) -> torch.Tensor:
    """Logits of bool masks: 1 inside, -1 outside."""
    return masks.float() * 2 - 1


def disc(size_hw: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """(H, W) bool; centre in [0, 1], radius in image heights."""
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width]
    return np.hypot(columns - x * width, rows - y * height) < radius * height
