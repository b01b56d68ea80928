"""Queries on a camera stream, and its outputs: states of queries, targets on each frame, heatmaps, notices."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from decaf_ros.types.checks import check_array
from decaf_ros.types.frames import Frame
from decaf_ros.types.method import Presence, TrackletScores


class QueryState(enum.IntEnum):
    """States of a query, with the values of `decaf_ros/msg/QueryStatus`. ENDED follows TRACKING only: the query's
    targets are not tracked any more."""

    RECEIVED = 0
    GROUNDING = 1
    TRACKING = 2
    NOT_FOUND = 3
    FAILED = 4
    CANCELLED = 5
    SUPERSEDED = 6
    ENDED = 7

    @property
    def is_answer(self) -> bool:
        """Whether this state is an answer; every query gets exactly one."""
        return QueryState.TRACKING <= self <= QueryState.SUPERSEDED


class TargetState(enum.IntEnum):
    """States of a tracked target, with the values of `decaf_ros/msg/Tracklet`."""

    TENTATIVE = 0
    TRACKED = 1
    OCCLUDED = 2
    LOST = 3


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


class Place(NamedTuple):
    """Where a target is, by depth: metres, in the camera's optical frame.

    position: (x, y, z), the middle of the visible surface. size: (x, y, z), the sides of the oriented box around it.
    """

    position: tuple[float, float, float]
    size: tuple[float, float, float]


class MaskCode(NamedTuple):
    """A target's mask as bytes. encoding: "rle" or "png", see `decaf_ros.io.mask_codes`."""

    encoding: str
    data: bytes


@dataclass(frozen=True, eq=False)
class Target:
    """One target on one frame.

    id: never reused for another object.
    label: its value in the label image, 1..255.
    query_ids: the queries that mean it, at least one.
    category: the first query's.
    mask: (H, W) bool.
    source_stamp_ns: stamp of the key frame with the point that started it.
    place: None without depth.
    code: the mask as bytes; None unless `outputs.tracklet_masks` asks for it.
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
    place: Place | None = None
    code: MaskCode | None = None
    box_xywh: tuple[int, int, int, int] = field(init=False)
    area_px: int = field(init=False)
    centroid_xy: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        check_array("Target.mask", self.mask, np.bool_, (None, None))
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
    confidence: (H, W) uint8, see `decaf_ros.online.confidence`; None unless somebody wants it.
    """

    frame: Frame
    labels: np.ndarray
    queries: tuple[Query, ...] = ()
    targets: tuple[Target, ...] = ()
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        check_array("FrameResult.labels", self.labels, np.uint8, self.frame.size_hw)
        if self.confidence is not None:
            check_array("FrameResult.confidence", self.confidence, np.uint8, self.frame.size_hw)

    @property
    def query(self) -> Query | None:
        """The newest tracked query, or None."""
        return self.queries[-1] if self.queries else None

    def of(self, query: Query) -> FrameResult:
        """The part of the result that belongs to one query, without the confidence."""
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
        check_array("Heatmap.values", self.values, np.float32, self.frame.size_hw)


Output = QueryEvent | StageEvent | FrameResult | Heatmap | Notice
