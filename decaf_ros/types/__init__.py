"""The data passed between stages: small frozen dataclasses that check their shapes on construction.

Axis order is always (time, height, width[, channel]). Points are (x, y). Times are nanoseconds since the epoch.
Token-grid coordinates are in [0, 1] over the whole image, independent of the image size.

Modules: `frames` (images), `method` (from attention maps to a window's masks), `stream` (queries, targets, events).
"""

from decaf_ros.types.frames import Frame, Window
from decaf_ros.types.method import (
    AnswerCount,
    AttentionMaps,
    BranchMaps,
    Grounding,
    PointPrompts,
    Presence,
    Segmentation,
    Tracklet,
    TrackletScores,
)
from decaf_ros.types.stream import (
    FrameResult,
    Heatmap,
    Keypoint,
    MaskCode,
    Notice,
    Output,
    Place,
    Query,
    QueryEvent,
    QueryState,
    StageEvent,
    Target,
    TargetState,
)

__all__ = [
    "AnswerCount",
    "AttentionMaps",
    "BranchMaps",
    "Frame",
    "FrameResult",
    "Grounding",
    "Heatmap",
    "Keypoint",
    "MaskCode",
    "Notice",
    "Output",
    "Place",
    "PointPrompts",
    "Presence",
    "Query",
    "QueryEvent",
    "QueryState",
    "Segmentation",
    "StageEvent",
    "Target",
    "TargetState",
    "Tracklet",
    "TrackletScores",
    "Window",
]
