"""The data passed between stages: small frozen dataclasses that check their shapes on construction.

Axis order is always (time, height, width[, channel]). Points are (x, y). Times are nanoseconds since the epoch.
Token-grid coordinates are in [0, 1] over the whole image, independent of the image size.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import NamedTuple

import numpy as np


class QueryState(enum.IntEnum):
    """States of a query, with the values of `decaf_ros/msg/QueryStatus`."""

    RECEIVED = 0
    GROUNDING = 1
    TRACKING = 2
    NOT_FOUND = 3
    FAILED = 4
    CANCELLED = 5
    SUPERSEDED = 6

    @property
    def is_answer(self) -> bool:
        """Whether this state is an answer; every query gets exactly one."""
        return self >= QueryState.TRACKING


class TargetState(enum.IntEnum):
    """States of a tracked target, with the values of `decaf_ros/msg/Tracklet`."""

    TENTATIVE = 0
    TRACKED = 1
    OCCLUDED = 2
    LOST = 3


def _check_array(name: str, array: np.ndarray, dtype: type, shape: tuple[int | None, ...]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name}: expected a numpy array of {np.dtype(dtype)}, got {got}")
    fits = array.ndim == len(shape) and all(expected in (None, got) for expected, got in zip(shape, array.shape))
    if not fits:
        expected_shape = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({expected_shape}), got {array.shape}")


@dataclass(frozen=True, eq=False)
class Frame:
    """One camera image.

    image: (H, W, 3) uint8, RGB.
    stamp_ns: exposure time, as stamped by the camera driver.
    frame_id: coordinate frame of the camera.
    index: order of arrival, unique within one stream.
    camera_hw: size of the camera's image, of which `image` may be a smaller copy (`decaf_ros.io.sizes`).
    """

    image: np.ndarray
    stamp_ns: int
    frame_id: str = ""
    index: int = 0
    camera_hw: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        _check_array("Frame.image", self.image, np.uint8, (None, None, 3))
        if 0 in self.image.shape:
            raise ValueError(f"Frame.image: expected a non-empty image, got shape {self.image.shape}")
        if not any(self.camera_hw):
            object.__setattr__(self, "camera_hw", self.size_hw)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def digest(self) -> bytes:
        """Hash of the image: a cache key shared by frames with identical pixels."""
        return blake2b(np.ascontiguousarray(self.image).data, digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Window:
    """The T key frames in which a query is grounded: one image size, strictly increasing stamps."""

    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("Window: expected at least one frame, got none")
        sizes = {frame.size_hw for frame in self.frames}
        if len(sizes) > 1:
            raise ValueError(f"Window: expected frames of one size, got {sorted(sizes)}")
        stamps = [frame.stamp_ns for frame in self.frames]
        if any(later <= earlier for earlier, later in zip(stamps, stamps[1:])):
            raise ValueError(f"Window: expected strictly increasing stamps, got {stamps}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.frames[0].size_hw

    @property
    def images(self) -> np.ndarray:
        """(T, H, W, 3) uint8, RGB."""
        return np.stack([frame.image for frame in self.frames])


@dataclass(frozen=True, eq=False)
class BranchMaps:
    """Rollout maps of one branch before normalisation: object and background, each (T', h, w) float32, >= 0.

    T' is the number of temporal token rows: frames in the frame branch, temporal pairs in Qwen's video branch.
    """

    object: np.ndarray
    background: np.ndarray

    def __post_init__(self) -> None:
        _check_array("BranchMaps.object", self.object, np.float32, (None, None, None))
        _check_array("BranchMaps.background", self.background, np.float32, self.object.shape)


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The maps of one grounding. A branch disabled by the configuration is None.

    fused: (T, h, w) float32 in [0, 1], one per key frame, on the frame branch's token grid.
    """

    fused: np.ndarray
    video: BranchMaps | None = None
    frames: BranchMaps | None = None

    def __post_init__(self) -> None:
        _check_array("AttentionMaps.fused", self.fused, np.float32, (None, None, None))


@dataclass(frozen=True, eq=False)
class Grounding:
    """Attention and decoded text of the multimodal LLM.

    category: the chosen object category; empty in mode `fast`, which decodes nothing, and if every answer was cut off.
    answers: all candidate categories in decoding order (video first, then frames), in lower case.
    asked: probability of "yes" to the question whether the target is there; None if not asked.
    means_several: whether the query means several objects (True) or one (False), see `grounding.number`; None if any
        number will do.
    """

    maps: AttentionMaps
    category: str = ""
    answers: tuple[str, ...] = ()
    asked: float | None = None
    means_several: bool | None = None


@dataclass(frozen=True, eq=False)
class PointPrompts:
    """P points on key frames.

    frame: (P,) int64, index into the window.
    xy: (P, 2) float32 in [0, 1], x right, y down.
    value: (P,) float32, fused attention at the point.
    left_out: number of weaker points dropped by `segmentation.max_points`.
    """

    frame: np.ndarray
    xy: np.ndarray
    value: np.ndarray
    left_out: int = 0

    def __post_init__(self) -> None:
        _check_array("PointPrompts.frame", self.frame, np.int64, (None,))
        _check_array("PointPrompts.xy", self.xy, np.float32, (len(self.frame), 2))
        _check_array("PointPrompts.value", self.value, np.float32, (len(self.frame),))

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
    """

    masks: Sequence[np.ndarray]
    source: int
    point_xy: tuple[float, float]
    scores: TrackletScores
    raw_consistency: float
    object_score: float
    density: float = 0.0

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
    coarse_masks: (T, H, W) bool, Otsu masks of the fused map; None without dense frames.
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


@dataclass(frozen=True)
class Query:
    """A user's query. id: unique within one stream. stamp_ns: time of asking (0: unknown). policy: replaces
    `regrounding.policy` for this query, unless it is empty. priority: of several queries, one of higher priority is
    grounded earlier and gives way later."""

    id: str
    text: str
    stamp_ns: int = 0
    policy: str = ""
    priority: int = 0


class Keypoint(NamedTuple):
    """A peak of the fused map. x, y: pixels in the camera's image with this stamp. score: fused attention in [0, 1]."""

    stamp_ns: int
    x: float
    y: float
    score: float


@dataclass(frozen=True)
class QueryEvent:
    """A query's change of state.

    text: the answer as text, or the error.
    stamp_ns, frame_id: newest frame at that time; 0 and "" before the first frame.
    presence: None if not computed.
    window_start_ns, window_end_ns: stamps of the first and last key frame used; 0: none.
    """

    query: Query
    state: QueryState
    text: str = ""
    stamp_ns: int = 0
    frame_id: str = ""
    category: str = ""
    presence: Presence | None = None
    window_start_ns: int = 0
    window_end_ns: int = 0
    stage_ms: tuple[tuple[str, float], ...] = ()
    target_ids: tuple[int, ...] = ()
    keypoints: tuple[Keypoint, ...] = ()


@dataclass(frozen=True)
class StageEvent:
    """A query's grounding reached a stage. progress: in [0, 1]."""

    query: Query
    stage: str
    progress: float


@dataclass(frozen=True)
class Notice:
    """Something went wrong or was corrected; the stream continues. level: "warn" or "error"."""

    level: str
    text: str


@dataclass(frozen=True, eq=False)
class Target:
    """One target on one frame.

    id: never reused for another object.
    label: its value in the label image, 1..255.
    query_ids: the queries that mean it, at least one.
    category: the first query's.
    mask: (H, W) bool.
    source_stamp_ns: stamp of the key frame with the point that started it.
    box_xywh, area_px, centroid_xy: geometry of the mask in pixels; zeros if it is empty.
    """

    id: int
    label: int
    query_ids: tuple[str, ...]
    category: str
    state: TargetState
    mask: np.ndarray
    scores: TrackletScores
    source_stamp_ns: int
    box_xywh: tuple[int, int, int, int] = field(init=False)
    area_px: int = field(init=False)
    centroid_xy: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        _check_array("Target.mask", self.mask, np.bool_, (None, None))
        if not 1 <= self.label <= 255:
            raise ValueError(f"Target.label: expected 1..255, got {self.label}")
        area, box, centroid = _mask_geometry(self.mask)
        object.__setattr__(self, "area_px", area)
        object.__setattr__(self, "box_xywh", box)
        object.__setattr__(self, "centroid_xy", centroid)


def _mask_geometry(mask: np.ndarray) -> tuple[int, tuple[int, int, int, int], tuple[float, float]]:
    """Area in pixels, box (x, y, width, height) and centroid (x, y) of a (H, W) bool mask; zeros if it is empty."""
    columns, rows = mask.sum(axis=0), mask.sum(axis=1)
    area = int(rows.sum())
    if area == 0:
        return 0, (0, 0, 0, 0), (0.0, 0.0)
    xs, ys = np.flatnonzero(columns), np.flatnonzero(rows)
    box = (int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1))
    centroid = (float(columns @ np.arange(mask.shape[1]) / area), float(rows @ np.arange(mask.shape[0]) / area))
    return area, box, centroid


@dataclass(frozen=True, eq=False)
class FrameResult:
    """The targets on one frame; exactly one result per processed frame.

    labels: (H, W) uint8, 0 background, k the target with label k. Where masks overlap, the higher combined score wins.
    queries: the tracked ones, in the order of asking.
    targets: empty if nothing is tracked.
    """

    frame: Frame
    labels: np.ndarray
    queries: tuple[Query, ...] = ()
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        _check_array("FrameResult.labels", self.labels, np.uint8, self.frame.size_hw)

    @property
    def query(self) -> Query | None:
        """The newest tracked query, or None."""
        return self.queries[-1] if self.queries else None

    def of(self, query: Query) -> FrameResult:
        """The part of the result that belongs to one query."""
        targets = tuple(target for target in self.targets if query.id in target.query_ids)
        is_meant = np.isin(self.labels, [target.label for target in targets])
        return FrameResult(self.frame, np.where(is_meant, self.labels, np.uint8(0)), (query,), targets)


@dataclass(frozen=True, eq=False)
class Heatmap:
    """Fused attention of one key frame, (H, W) float32 in [0, 1], resized to its image."""

    frame: Frame
    query: Query
    values: np.ndarray

    def __post_init__(self) -> None:
        _check_array("Heatmap.values", self.values, np.float32, self.frame.size_hw)


Output = QueryEvent | StageEvent | FrameResult | Heatmap | Notice
