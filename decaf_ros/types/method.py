"""Data between the stages of the method, from attention maps to the segmentation of a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from decaf_ros.types.checks import check_array
from decaf_ros.types.frames import Window


@dataclass(frozen=True, eq=False)
class BranchMaps:
    """Rollout maps of one branch before normalisation: object and background, each (T', h, w) float32, >= 0.

    T' is the number of temporal token rows: frames in the frame branch, temporal pairs in Qwen's video branch.
    """

    object: np.ndarray
    background: np.ndarray

    def __post_init__(self) -> None:
        check_array("BranchMaps.object", self.object, np.float32, (None, None, None))
        check_array("BranchMaps.background", self.background, np.float32, self.object.shape)


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The maps of one grounding. A branch disabled by the configuration is None.

    fused: (T, h, w) float32 in [0, 1], one per key frame, on the frame branch's token grid.
    """

    fused: np.ndarray
    video: BranchMaps | None = None
    frames: BranchMaps | None = None

    def __post_init__(self) -> None:
        check_array("AttentionMaps.fused", self.fused, np.float32, (None, None, None))


class AnswerCount(NamedTuple):
    """Answers of a method that reads points from text: how many were not in the format asked for, and all."""

    malformed: int
    asked: int


@dataclass(frozen=True, eq=False)
class Grounding:
    """Attention and decoded text of the multimodal LLM.

    category: the chosen object category; empty in mode `fast`, which decodes nothing, and if every answer was cut off.
    answers: all candidate categories in decoding order (video first, then frames), in lower case.
    asked: probability of "yes" to the question whether the target is there; None if not asked.
    means_several: whether the query means several objects (True) or one (False), see `grounding.number`; None if any
        number will do.
    malformed: of a method that reads points from text (`decaf_ros.evaluation.baselines.native`); None for the others.
    """

    maps: AttentionMaps
    category: str = ""
    answers: tuple[str, ...] = ()
    asked: float | None = None
    means_several: bool | None = None
    malformed: AnswerCount | None = None


@dataclass(frozen=True, eq=False)
class PointPrompts:
    """P points on key frames.

    frame: (P,) int64, index into the window.
    xy: (P, 2) float32 in [0, 1], x right, y down.
    value: (P,) float32, fused attention at the point.
    left_out: number of weaker points dropped by `segmentation.max_points`.
    box: (P, 4) float32 in [0, 1], left, top, right, bottom: prompts in place of the points, which are their centres.
        None: the points are the prompts.
    """

    frame: np.ndarray
    xy: np.ndarray
    value: np.ndarray
    left_out: int = 0
    box: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.box is not None:
            check_array("PointPrompts.box", self.box, np.float32, (len(self.frame), 4))
        check_array("PointPrompts.frame", self.frame, np.int64, (None,))
        check_array("PointPrompts.xy", self.xy, np.float32, (len(self.frame), 2))
        check_array("PointPrompts.value", self.value, np.float32, (len(self.frame),))

    def __len__(self) -> int:
        return len(self.frame)


class TrackletScores(NamedTuple):
    """attention, iou: in [0, 1]. consistency: <= 1, can be very negative. combined: their mean (Sec. 3.4)."""

    attention: float
    iou: float
    consistency: float
    combined: float


@dataclass(frozen=True, eq=False)
class Tracklet:
    """One candidate of one grounding.

    masks: (H, W) bool on each of the window's T key frames; made at this size when they are looked at.
    source: index of the key frame with the point that created it.
    point_xy: that point, in [0, 1].
    scores: see Sec. 3.4.
    raw_consistency: Eq. 8 before the division by the best.
    density: the numerator of Eq. 8 per covered token, at most 1: mean attention under the masks, in which tokens
        outside the attended region count negatively. 0 without any mask.
    object_score: SAM 2's object-presence logit at the source, > 0: present.
    verified: log-odds of "yes" when the model was asked whether the query means this object; None if it was not
        asked (`decaf_ros.verification`).
    """

    masks: Sequence[np.ndarray]
    source: int
    point_xy: tuple[float, float]
    scores: TrackletScores
    raw_consistency: float
    object_score: float
    density: float = 0.0
    verified: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.source < len(self.masks):
            raise ValueError(f"Tracklet.source: expected an index below {len(self.masks)}, got {self.source}")


@dataclass(frozen=True)
class Presence:
    """The presence score and its parts, all in [0, 1]; defined in `decaf_ros.presence`. asked: None if not asked."""

    score: float
    contrast: float
    separation: float
    consistency: float
    agreement: float
    iou: float
    object_presence: float
    asked: float | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Result of `Decaf.segment`, from maps to masks.

    keypoints: the strongest well-separated peaks of the fused map, strongest first.
    tracklets: all scored candidates, best first.
    selected: the targets, best first; empty: not found.
    coarse_masks: (T, H, W) bool, masks of the fused map alone, by Otsu's threshold; None without dense frames.
    dense_labels: (F, H, W) uint8 over the dense frames, 0 background, k the k-th of `selected` (the better one where
        they overlap); None without dense frames.
    stage_ms: wall time of each stage, in order.
    """

    window: Window
    query: str
    grounding: Grounding
    points: PointPrompts
    keypoints: PointPrompts
    tracklets: tuple[Tracklet, ...]
    selected: tuple[Tracklet, ...]
    presence: Presence
    coarse_masks: np.ndarray | None = None
    dense_labels: np.ndarray | None = None
    stage_ms: tuple[tuple[str, float], ...] = ()
