"""How good masks, maps, ids and decisions are. Fractions in [0, 1]; None where there is nothing to measure.

Masks are (F, H, W) bool, maps (T, h, w) float32 on the token grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.segmentation.overlap import assign, mask_iou

# Of the image diagonal: how far a boundary pixel may lie from its counterpart (DAVIS).
BOUNDARY_TOLERANCE = 0.008
# From which overlap a published mask counts as that of an object.
MATCH_IOU = 0.5
# An object is hidden where less of it is visible than this share of what is at both ends of the clip.
HIDDEN = 0.5


class MaskScore(NamedTuple):
    """j: region similarity. f: boundary F-measure."""

    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        return (self.j + self.f) / 2


def mask_score(found: np.ndarray, truth: np.ndarray) -> MaskScore:
    """J and F of (F, H, W) bool masks, each the mean over all frames (as for DAVIS and MeViS).

    A frame where both masks are empty counts 1, one where only one of them is counts 0.
    Raises ValueError for masks of different shapes or without a frame.
    """
    if found.shape != truth.shape or truth.ndim != 3 or len(truth) == 0:
        raise ValueError(f"mask_score: expected masks of one shape (F, H, W), got {found.shape} and {truth.shape}")
    pairs = list(zip(found, truth))
    return MaskScore(
        float(np.mean([region_similarity(*pair) for pair in pairs])),
        float(np.mean([boundary_f(*pair) for pair in pairs])),
    )


def region_similarity(found: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two (H, W) bool masks; 1 for two empty ones."""
    return mask_iou(found, truth) if found.any() or truth.any() else 1.0


def boundary_f(found: np.ndarray, truth: np.ndarray) -> float:
    """DAVIS's boundary F-measure of two (H, W) bool masks; 1 for two without a boundary, 0 where one has none.

    A boundary pixel is matched where the other mask has one within BOUNDARY_TOLERANCE of the diagonal, rounded up to
    whole pixels; precision and recall are the matched shares of either boundary.
    """
    ours, theirs = _boundary(found), _boundary(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    disc = _disc(math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape)))
    precision = cv2.dilate(theirs, disc)[ours > 0].mean()
    recall = cv2.dilate(ours, disc)[theirs > 0].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8, 1 where a pixel differs from its right, lower or lower right neighbour."""
    boundary = np.zeros(mask.shape, np.uint8)
    boundary[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


@functools.cache
def _disc(radius: int) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


class Pointing(NamedTuple):
    """How well a map points, over the key frames on which a target is visible (any pixel of it).

    hit: share of them whose strongest token is on a target: its centre lies within half a token, across and down, of
    a pixel of the target, so its cell and the target meet. A frame without a single strongest value (a constant map)
    points nowhere and is a miss. window: 1 or 0, whether the strongest token of the whole window is on a target.
    chance: expected hit of a random token, centre: hit of the middle of the image, both with the same tolerance.
    """

    hit: float
    window: float
    chance: float
    centre: float


def pointing(maps: np.ndarray, truth: np.ndarray) -> Pointing | None:
    """maps: (T, h, w) float32. truth: (T, H, W) bool, the targets on the same key frames. None: never visible.

    Raises ValueError for another number of frames.
    """
    if len(maps) != len(truth):
        raise ValueError(f"pointing: expected truth for {len(maps)} key frames, got {len(truth)}")
    visible = truth.any(axis=(1, 2))
    if not visible.any():
        return None
    touched = _touched(truth, maps.shape[1:])
    flat, on_target = maps.reshape(len(maps), -1), touched.reshape(len(maps), -1)
    hits = on_target[np.arange(len(maps)), flat.argmax(axis=1)] & (flat.max(axis=1) > flat.min(axis=1))
    frame, token = np.unravel_index(flat.argmax(), flat.shape)
    middle = np.array([_middle(mask, maps.shape[1:]) for mask in truth])
    return Pointing(
        float(hits[visible].mean()),
        float(on_target[frame, token] and flat.max() > flat.min()),
        float(on_target[visible].mean()),
        float(middle[visible].mean()),
    )


def _touched(truth: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """(T, h, w) bool: the tokens whose cell overlaps a pixel of the mask."""
    return F.adaptive_max_pool2d(torch.from_numpy(truth)[:, None].float(), grid_hw)[:, 0].numpy() > 0


def _middle(mask: np.ndarray, grid_hw: tuple[int, int]) -> bool:
    """Whether a token-sized cell in the middle of the image overlaps a pixel of the (H, W) mask."""
    (height, width), (rows, columns) = mask.shape, grid_hw
    top, bottom = height / 2 - height / rows / 2, height / 2 + height / rows / 2
    left, right = width / 2 - width / columns / 2, width / 2 + width / columns / 2
    return bool(mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)].any())


def hidden(areas: np.ndarray) -> np.ndarray:
    """(F,) bool: where an object is hidden, that is visible before and after. areas: (F,) its visible pixels."""
    return areas < HIDDEN * min(areas[0], areas[-1])


def says(answer: str | None, category: str) -> bool | None:
    """Whether an answer names the category, which an empty one does not; None where no answer was decoded or there is
    no one category."""
    return answer.strip(" .").lower() == category if answer is not None and category else None


class Detection(NamedTuple):
    """precision: of those that were said to be so, how many are. recall: of those that are so, how many were said to
    be."""

    precision: float | None
    recall: float | None


def detection(said: Sequence[bool], true: Sequence[bool]) -> Detection:
    """Precision and recall of a decision; None where nothing was said to be so, and where nothing is."""
    said, true = np.asarray(said, bool), np.asarray(true, bool)
    return Detection(mean(true[said]), mean(said[true]))


def id_switches(frames: Iterable[tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]]) -> int:
    """How often the id under which an object is published changes; with the two of each frame exchanged, how often the
    object changes that is published under an id.

    frames: in order of time, each (objects, published): masks (H, W) bool by the object's and by the published id.
    Per frame objects and published masks are paired one to one by the largest sum of IoUs, each at least MATCH_IOU. A
    frame on which an object is not matched changes nothing: its id before and after are compared.
    """
    last: dict[int, int] = {}
    switches = 0
    for objects, published in frames:
        overlaps = np.array([[mask_iou(mask, other) for other in published.values()] for mask in objects.values()])
        if overlaps.size == 0:
            continue
        for row, column in assign(overlaps, MATCH_IOU):
            one, now = list(objects)[row], list(published)[column]
            switches += last.get(one, now) != now
            last[one] = now
    return switches


class Roc(NamedTuple):
    """Curve of a score that says "yes" from a threshold up. false_yes, true_yes: (N,) shares of the noes and the yesses
    over each threshold, both rising from 0 to 1. thresholds: (N,), falling, the first one infinite. area: under it."""

    false_yes: np.ndarray
    true_yes: np.ndarray
    thresholds: np.ndarray
    area: float


def roc(scores: Sequence[float], yes: Sequence[bool]) -> Roc | None:
    """The curve over all thresholds; None unless there are both yesses and noes."""
    scores, yes = np.asarray(scores, float), np.asarray(yes, bool)
    if not yes.any() or yes.all():
        return None
    order = np.argsort(-scores, kind="stable")
    last_of_its_value = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true_yes = np.append(0.0, np.cumsum(yes[order])[last_of_its_value] / yes.sum())
    false_yes = np.append(0.0, np.cumsum(~yes[order])[last_of_its_value] / (~yes).sum())
    thresholds = np.append(np.inf, scores[order][last_of_its_value])
    area = float(np.sum(np.diff(false_yes) * (true_yes[1:] + true_yes[:-1]) / 2))
    return Roc(false_yes, true_yes, thresholds, area)


def mean(values: Iterable[float | bool | None]) -> float | None:
    """Of those that are not None; None where there are none."""
    there = [float(value) for value in values if value is not None]
    return float(np.mean(there)) if there else None
