"""SAM 2 by itself: the mask of one click, and what is left of it after an object was hidden and came out again."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from decaf_ros.evaluation.datasets.clips import EvaluationClip
from decaf_ros.evaluation.metrics import hidden
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.sam2 import Sam2

CLICK_EVERY = 8
PROPAGATED_FRAMES = 30
# Fewer visible pixels are no object to click on.
LEAST_PX = 20


@dataclass(frozen=True)
class Propagated:
    """One object clicked on in the first frame. iou: PROPAGATED_FRAMES later (or at the end of a shorter clip). mean:
    over all frames between. crossed: it was hidden for the most part in between. from_mask: `iou` where the true mask
    was the prompt instead of the click."""

    iou: float
    mean: float
    from_mask: float
    crossed: bool


@dataclass(frozen=True)
class SegmenterScore:
    """clicks: (true IoU, predicted IoU) of each. propagated: one entry an object that is visible at both ends."""

    clip: str
    clicks: tuple[tuple[float, float], ...]
    propagated: tuple[Propagated, ...]


def score_segmenter(sam2: Sam2, clip: EvaluationClip) -> SegmenterScore:
    """Clicks once on each object of every CLICK_EVERY-th frame, and follows those of the first frame."""
    clicks: list[tuple[float, float]] = []
    for place in range(0, len(clip.frames), CLICK_EVERY):
        truths = _visible(clip.masks_at(place))
        found = _clicked(sam2, clip, place, list(truths.values()))
        clicks += [(mask_iou(mask, truth), iou) for (mask, iou), truth in zip(found, truths.values())]
    return SegmenterScore(clip.name, tuple(clicks), _propagated(sam2, clip))


def middle_point(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) in [0, 1] of the pixel of a (H, W) bool mask that lies farthest from its edge."""
    inside = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(inside.argmax(), mask.shape)
    return (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0]


def _visible(masks: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The (H, W) bool masks with at least LEAST_PX pixels, by object."""
    return {index: mask for index, mask in masks.items() if mask.sum() >= LEAST_PX}


def _clicked(sam2: Sam2, clip: EvaluationClip, place: int, truths: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
    """Mask and predicted IoU of one click in the middle of each."""
    xy = np.array([middle_point(truth) for truth in truths], np.float32).reshape(-1, 2)
    found = sam2.masks_at_points(sam2.embed(clip.frames[place]), xy)
    return list(zip(found.masks.cpu().numpy(), found.iou.tolist()))


def _propagated(sam2: Sam2, clip: EvaluationClip) -> tuple[Propagated, ...]:
    frames = clip.frames[: PROPAGATED_FRAMES + 1]
    first, last = _visible(clip.masks_at(0)), _visible(clip.masks_at(len(frames) - 1))
    followed = [label for label in first if label in last]
    if not followed:
        return ()
    clicked = [mask for mask, _ in _clicked(sam2, clip, 0, [first[label] for label in followed])]
    prompts = np.stack([*clicked, *(first[label] for label in followed)])
    tracks = propagate(sam2, frames, 0, torch.from_numpy(prompts).to(sam2.device)).cpu().numpy()
    from_click, from_mask = np.split(tracks, 2)
    scores = []
    for label, track, other in zip(followed, from_click, from_mask):
        truth = clip.objects[label, : len(frames)]
        areas = truth.sum(axis=(1, 2))
        crossed = bool(hidden(areas).any())
        overlaps = [mask_iou(*pair) for pair, area in zip(zip(track, truth), areas) if area >= LEAST_PX]
        scores.append(Propagated(overlaps[-1], float(np.mean(overlaps)), mask_iou(other[-1], truth[-1]), crossed))
    return tuple(scores)
