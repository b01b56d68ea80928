"""Scores SAM 2 by itself: masks of single clicks, and masks propagated through occlusions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from decaf_ros.evaluation.datasets.clips import EvaluationClip
from decaf_ros.evaluation.metrics import occluded_frames
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.resizing import GridMasks
from decaf_ros.segmentation.sam2 import Sam2

CLICK_EVERY = 8
PROPAGATED_FRAMES = 30
# Objects with fewer visible pixels are not clicked on.
MIN_VISIBLE_PX = 20


@dataclass(frozen=True)
class Propagated:
    """Scores of one object, propagated from the first frame over PROPAGATED_FRAMES frames (fewer in a shorter clip).

    Attributes:
        iou: on the last frame, from a click.
        mean: mean IoU over the frames on which the object is visible, from a click.
        from_mask: IoU on the last frame, from the true mask.
        occluded: whether the object is occluded in between.
    """

    iou: float
    mean: float
    from_mask: float
    occluded: bool


@dataclass(frozen=True)
class SegmenterScore:
    """Scores of one clip.

    Attributes:
        clip: name of the clip.
        clicks: (true IoU, predicted IoU) of each click.
        propagated: one entry for each object that is visible on the first and the last frame.
    """

    clip: str
    clicks: tuple[tuple[float, float], ...]
    propagated: tuple[Propagated, ...]


def score_segmenter(sam2: Sam2, clip: EvaluationClip) -> SegmenterScore:
    """Clicks once on each object on every CLICK_EVERY-th frame; propagates the objects of the first frame."""
    clicks: list[tuple[float, float]] = []
    for index in range(0, len(clip.frames), CLICK_EVERY):
        truths = list(_visible(clip.masks_at(index)).values())
        clicked = _click(sam2, clip, index, truths)
        clicks += [(mask_iou(mask, truth), iou) for (mask, iou), truth in zip(clicked, truths)]
    return SegmenterScore(clip.name, tuple(clicks), _propagated(sam2, clip))


def innermost_point(mask: np.ndarray) -> tuple[float, float]:
    """(x, y) in [0, 1] of the pixel of an (H, W) bool mask that is farthest from the mask's edge."""
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0]


def _visible(masks: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """The (H, W) bool masks with at least MIN_VISIBLE_PX pixels, by object."""
    return {index: mask for index, mask in masks.items() if mask.sum() >= MIN_VISIBLE_PX}


def _click(sam2: Sam2, clip: EvaluationClip, index: int, truths: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
    """Mask and predicted IoU of one click at the innermost point of each true mask."""
    xy = np.array([innermost_point(truth) for truth in truths], np.float32).reshape(-1, 2)
    found = sam2.masks_at_points(sam2.embed(clip.frames[index]), xy)
    return list(zip(found.masks.cpu().numpy(), found.iou.tolist()))


def _propagated(sam2: Sam2, clip: EvaluationClip) -> tuple[Propagated, ...]:
    frames = clip.frames[: PROPAGATED_FRAMES + 1]
    first, last = _visible(clip.masks_at(0)), _visible(clip.masks_at(len(frames) - 1))
    objects = [index for index in first if index in last]
    if not objects:
        return ()
    clicked = [mask for mask, _ in _click(sam2, clip, 0, [first[index] for index in objects])]
    prompts = np.stack([*clicked, *(first[index] for index in objects)])
    tracks = propagate(sam2, frames, 0, torch.from_numpy(prompts).to(sam2.device))
    click_tracks, mask_tracks = np.split(np.array([GridMasks(track, prompts.shape[1:]) for track in tracks]), 2)
    scores = []
    for index, click_track, mask_track in zip(objects, click_tracks, mask_tracks):
        truth = clip.mask([index], range(len(frames)))
        areas = truth.sum(axis=(1, 2))
        occluded = bool(occluded_frames(areas).any())
        overlaps = [mask_iou(*pair) for pair, area in zip(zip(click_track, truth), areas) if area >= MIN_VISIBLE_PX]
        from_mask = mask_iou(mask_track[-1], truth[-1])
        scores.append(Propagated(overlaps[-1], float(np.mean(overlaps)), from_mask, occluded))
    return tuple(scores)
