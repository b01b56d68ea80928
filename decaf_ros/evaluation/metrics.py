"""Metrics for masks, attention maps, ids and decisions. Fractions in [0, 1]; None if nothing was measured.

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

# Largest distance between matching boundary pixels, as a share of the image diagonal (DAVIS).
BOUNDARY_TOLERANCE = 0.008
# Smallest IoU at which a published mask matches an object.
MATCH_IOU = 0.5
# PP@K counts the K strongest tokens. A token hits if a target is within this distance of its centre, in pixels.
POINT_COUNTS = (1, 5, 10, 50, 100)
POINT_TOLERANCE_PX = 14
# Occluded: visible area below this share of the smaller of the first- and last-frame areas.
OCCLUDED_SHARE = 0.5


class MaskScore(NamedTuple):
    """j: region similarity. f: boundary F-measure."""

    j: float
    f: float

    @property
    def j_and_f(self) -> float:
        return (self.j + self.f) / 2


def mask_score(predicted: np.ndarray, truth: np.ndarray) -> MaskScore:
    """J and F of (F, H, W) bool masks, each averaged over all frames (as in DAVIS and MeViS).

    A frame counts 1 if both masks are empty, 0 if only one is.
    Raises ValueError for masks of different shapes or without frames.
    """
    if predicted.shape != truth.shape or truth.ndim != 3 or len(truth) == 0:
        raise ValueError(f"mask_score: expected masks of one shape (F, H, W), got {predicted.shape} and {truth.shape}")
    pairs = list(zip(predicted, truth))
    return MaskScore(
        float(np.mean([region_similarity(*pair) for pair in pairs])),
        float(np.mean([boundary_f(*pair) for pair in pairs])),
    )


def region_similarity(predicted: np.ndarray, truth: np.ndarray) -> float:
    """IoU of two (H, W) bool masks; 1 if both are empty."""
    return mask_iou(predicted, truth) if predicted.any() or truth.any() else 1.0


def boundary_f(predicted: np.ndarray, truth: np.ndarray) -> float:
    """The boundary F-measure of DAVIS for two (H, W) bool masks; 1 if neither has a boundary, 0 if only one has.

    A boundary pixel matches if the other mask has one within BOUNDARY_TOLERANCE of the diagonal, rounded up to whole
    pixels. Precision and recall are the matched shares of the predicted and the true boundary.
    """
    predicted_edge, true_edge = _boundary(predicted), _boundary(truth)
    if not predicted_edge.any() or not true_edge.any():
        return float(predicted_edge.any() == true_edge.any())
    disc = _disc(math.ceil(BOUNDARY_TOLERANCE * math.hypot(*truth.shape)))
    precision = cv2.dilate(true_edge, disc)[predicted_edge > 0].mean()
    recall = cv2.dilate(predicted_edge, disc)[true_edge > 0].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint8: 1 where a pixel differs from its right, lower or lower right neighbour."""
    boundary = np.zeros(mask.shape, np.uint8)
    boundary[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    boundary[:-1] |= mask[:-1] ^ mask[1:]
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


@functools.cache
def _disc(radius: int) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(rows**2 + columns**2 <= radius**2, np.uint8)


def robustness(predicted: np.ndarray, truth: np.ndarray, foreground: np.ndarray) -> float:
    """The robustness score of ReVOS: the mean over frames of 1 - |predicted outside truth| / |foreground|, at least 0.

    predicted, truth, foreground: (F, H, W) bool; foreground: all annotated objects. On a frame without foreground the
    score is 1 without a wrong pixel, else 0. Raises ValueError for different shapes.
    """
    if not predicted.shape == truth.shape == foreground.shape or not len(truth):
        shapes = ", ".join(str(masks.shape) for masks in (predicted, truth, foreground))
        raise ValueError(f"robustness: expected masks of one shape (F, H, W), got {shapes}")
    wrong = np.count_nonzero(predicted & ~truth, axis=(1, 2))
    # The published constant, which decides the frames without foreground.
    share = wrong / (np.count_nonzero(foreground, axis=(1, 2)) + 1e-6)
    return float(np.maximum(1 - share, 0).mean())


def point_precision(maps: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """PP@K of the paper's published implementation: the share of the K strongest tokens of a clip that hit a target.

    A token hits if the square around the pixel at its centre has a pixel of a target. The square reaches
    POINT_TOLERANCE_PX up and left, one less down and right, and never the last row or column, as published. Among equal
    tokens the first counts. Returns the share by K, for every K of POINT_COUNTS up to the number of tokens.

    maps: (T, h, w) float32, T at least 1. truth: (T, H, W) bool, the targets on the same key frames.
    Raises ValueError if the numbers of frames differ.
    """
    if len(maps) != len(truth):
        raise ValueError(f"point_precision: expected truth for {len(maps)} key frames, got {len(truth)}")
    (rows, columns), (height, width) = maps.shape[1:], truth.shape[1:]
    strongest = np.argsort(-maps.reshape(-1), kind="stable")[: max(POINT_COUNTS)]
    hits = []
    for frame, row, column in zip(*np.unravel_index(strongest, maps.shape)):
        y, x = int((row + 0.5) / rows * height), int((column + 0.5) / columns * width)
        top, left = max(y - POINT_TOLERANCE_PX, 0), max(x - POINT_TOLERANCE_PX, 0)
        bottom, right = min(y + POINT_TOLERANCE_PX, height - 1), min(x + POINT_TOLERANCE_PX, width - 1)
        hits.append(bool(truth[frame, top:bottom, left:right].any()))
    return {count: float(np.mean(hits[:count])) for count in POINT_COUNTS if count <= len(hits)}


class Pointing(NamedTuple):
    """Pointing accuracy of a map over the key frames on which a target is visible (at least one pixel).

    A token hits if its cell overlaps a pixel of a target. A constant map has no strongest token and misses.

    Attributes:
        hit: share of these frames whose strongest token hits.
        window: 1 if the strongest token of the whole window hits, else 0.
        chance: expected hit rate of a random token.
        centre: hit rate of a token-sized cell in the middle of the image.
    """

    hit: float
    window: float
    chance: float
    centre: float


def pointing(maps: np.ndarray, truth: np.ndarray) -> Pointing | None:
    """Pointing accuracy; None if no target is visible on any key frame.

    maps: (T, h, w) float32. truth: (T, H, W) bool, the targets on the same key frames.
    Raises ValueError if the numbers of frames differ.
    """
    if len(maps) != len(truth):
        raise ValueError(f"pointing: expected truth for {len(maps)} key frames, got {len(truth)}")
    visible = truth.any(axis=(1, 2))
    if not visible.any():
        return None
    rows, columns = maps.shape[1:]
    touched = _touched_tokens(truth, (rows, columns))
    flat, on_target = maps.reshape(len(maps), -1), touched.reshape(len(maps), -1)
    hits = on_target[np.arange(len(maps)), flat.argmax(axis=1)] & (flat.max(axis=1) > flat.min(axis=1))
    frame, token = np.unravel_index(flat.argmax(), flat.shape)
    centre_hits = np.array([_centre_hits(mask, (rows, columns)) for mask in truth])
    return Pointing(
        float(hits[visible].mean()),
        float(on_target[frame, token] and flat.max() > flat.min()),
        float(on_target[visible].mean()),
        float(centre_hits[visible].mean()),
    )


def _touched_tokens(truth: np.ndarray, grid_hw: tuple[int, int]) -> np.ndarray:
    """(T, h, w) bool: the tokens whose cell overlaps a pixel of the mask."""
    touched: np.ndarray = F.adaptive_max_pool2d(torch.from_numpy(truth)[:, None].float(), grid_hw)[:, 0].numpy()
    return touched > 0


def _centre_hits(mask: np.ndarray, grid_hw: tuple[int, int]) -> bool:
    """Whether a token-sized cell in the middle of the image overlaps a pixel of the (H, W) mask."""
    (height, width), (rows, columns) = mask.shape, grid_hw
    top, bottom = height / 2 - height / rows / 2, height / 2 + height / rows / 2
    left, right = width / 2 - width / columns / 2, width / 2 + width / columns / 2
    return bool(mask[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)].any())


def occluded_frames(areas: np.ndarray) -> np.ndarray:
    """(F,) bool: frames on which an object is occluded. areas: (F,) its visible pixels."""
    return np.asarray(areas < OCCLUDED_SHARE * min(areas[0], areas[-1]))


def names_category(answer: str | None, category: str) -> bool | None:
    """Whether an answer names the category (an empty answer does not); None without an answer or a known category."""
    return answer.strip(" .").lower() == category.lower() if answer is not None and category else None


class PrecisionRecall(NamedTuple):
    """precision: TP / predicted positives. recall: TP / actual positives. None if the denominator is 0."""

    precision: float | None
    recall: float | None


def precision_recall(predicted: Sequence[bool] | np.ndarray, actual: Sequence[bool] | np.ndarray) -> PrecisionRecall:
    """Precision and recall of a binary decision. predicted, actual: (N,) bool."""
    is_predicted, is_actual = np.asarray(predicted, bool), np.asarray(actual, bool)
    return PrecisionRecall(mean(is_actual[is_predicted]), mean(is_predicted[is_actual]))


def id_switches(frames: Iterable[tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]]) -> int:
    """Number of id switches: how often the published id of an object changes.

    With the two mappings of each frame exchanged: how often a published id moves to another object.

    Each frame's objects and published masks are matched one to one by the largest sum of IoUs, each at least MATCH_IOU.
    A frame on which an object is not matched is skipped: its ids before and after are compared.

    Args:
        frames: (objects, published) in order of time: (H, W) bool masks by object and by published id.
    """
    counter = IdSwitches()
    return sum(counter.add(objects, published) for objects, published in frames)


class IdSwitches:
    """Counts id switches frame by frame, as `id_switches`."""

    def __init__(self) -> None:
        self._last_ids: dict[int, int] = {}

    def add(self, objects: Mapping[int, np.ndarray], published: Mapping[int, np.ndarray]) -> int:
        """The number of id switches on the next frame."""
        overlaps = np.array([[mask_iou(mask, other) for other in published.values()] for mask in objects.values()])
        if overlaps.size == 0:
            return 0
        switches = 0
        for row, column in assign(overlaps, MATCH_IOU):
            key, new_id = list(objects)[row], list(published)[column]
            switches += self._last_ids.get(key, new_id) != new_id
            self._last_ids[key] = new_id
        return switches


class Roc(NamedTuple):
    """ROC curve of a score; scores at or above a threshold are positive.

    Attributes:
        false_positive_rate: (N,) float64, rising from 0 to 1.
        true_positive_rate: (N,) float64, rising from 0 to 1.
        thresholds: (N,) float64, falling; the first is infinite.
        area: area under the curve.
    """

    false_positive_rate: np.ndarray
    true_positive_rate: np.ndarray
    thresholds: np.ndarray
    area: float


def roc(scores: Sequence[float] | np.ndarray, positive: Sequence[bool] | np.ndarray) -> Roc | None:
    """ROC curve over all thresholds; None unless there are both positives and negatives.

    scores: (N,) float. positive: (N,) bool, the truth.
    """
    values, is_positive = np.asarray(scores, float), np.asarray(positive, bool)
    if not is_positive.any() or is_positive.all():
        return None
    order = np.argsort(-values, kind="stable")
    # Equal scores share one point of the curve.
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    true_rate = np.append(0.0, np.cumsum(is_positive[order])[ends] / is_positive.sum())
    false_rate = np.append(0.0, np.cumsum(~is_positive[order])[ends] / (~is_positive).sum())
    thresholds = np.append(np.inf, values[order][ends])
    area = float(np.sum(np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2))
    return Roc(false_rate, true_rate, thresholds, area)


def mean(values: Iterable[float | bool | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None
