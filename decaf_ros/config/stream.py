"""Options of a camera stream: window, tracking, groundings, queries, and the ROS node."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from decaf_ros.config.fields import Checked, option
from decaf_ros.config.transports import IMAGE_TRANSPORTS, check_transport
from decaf_ros.types.checks import quoted

POLICIES = ("hold", "refresh", "off")
QUERY_MODES = ("replace", "add")
MASK_ENCODINGS = ("rle", "png")

# Names in the node's namespace, which no camera may have.
_TAKEN = (
    *("image", "query", "masks", "target_mask", "tracklets", "heatmaps", "status", "overlay", "confidence"),
    *("depth", "camera_info", "target_pose", "points", "depth_masked", "markers"),
    *("detections", "detections_3d", "label_info"),
    *("segment", "segmenter"),
)
_CAMERA = re.compile(r"[A-Za-z](_?[A-Za-z0-9])*", re.ASCII)


def camera_names(names: Any) -> tuple[str, ...]:
    """Checks the names of cameras. Raises ValueError for another type, a name that ROS or the node's own topics do not
    allow, and a name that comes twice."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"cameras: expected a list of names, got {quoted(names)} ({type(names).__name__})")
    for place, name in enumerate(names):
        if not _CAMERA.fullmatch(name):
            raise ValueError(
                f"cameras: expected names of letters, digits and single _, a letter first, got {quoted(name)}"
            )
        if name in _TAKEN:
            raise ValueError(f"cameras: expected another name than {', '.join(_TAKEN)}, got {quoted(name)}")
        if name in names[:place]:
            raise ValueError(f"cameras: expected each name once, got {', '.join(names)}")
    return tuple(names)


@dataclass(frozen=True)
class WindowConfig(Checked):
    """The recent past that a query is grounded in."""

    size: int = option(16, "max key frames in the window", 1, 256)
    clip_rounding: str = option(
        "nearest", "offline: rounding of a key frame's position between two frames", choices=("nearest", "down")
    )
    keyframe_period_s: float = option(0.5, "seconds between key frames", 0.0, 3600.0, live=True)
    min_frames: int = option(4, "min key frames in the window before a query is grounded", 1, 256, live=True)
    patience_s: float = option(
        30.0,
        "a query that has waited this many seconds for min_frames key frames is answered with FAILED and what is "
        "missing; by the times of arrival of the images (as recorded in a replay), by the wall clock while none comes",
        0.1,
        1e9,
        live=True,
    )
    jump_back_s: float = option(
        0.2, "a stamp at least this many seconds before the last one restarts the stream (a looping bag)", 0.0, 3600.0
    )
    max_side: int = option(
        2304,
        "images with a longer side (px) are kept as smaller copies; results have the camera's size; 0: no bound",
        0,
        65536,
    )
    buffer_frames: int = option(600, "max frames buffered for the catch-up", 1, 100000)
    buffer_mib: float = option(
        512.0, "max MiB of buffered frames and key frames; at least min_frames key frames stay", 1.0, 1048576.0
    )


@dataclass(frozen=True)
class TrackingConfig(Checked):
    """Tracking targets from the window to the newest frame (catch-up) and onwards."""

    catch_up_frames: int = option(
        64, "max frames that the catch-up tracks through; if more are buffered, an even subset", 1, 10000, live=True
    )
    confirm_frames: int = option(
        3, "frames on which a tentative target must be visible to become tracked", 1, 1000, live=True
    )
    lost_after_s: float = option(
        5.0, "seconds without being visible after which a target is lost", 0.0, 3600.0, live=True
    )
    object_score: float = option(
        0.0, "a target is visible if SAM 2's object-presence logit is higher", 0.0, 20.0, live=True
    )
    appearance_margin: float = option(
        0.12, "a mask less similar to its target than usual by this is rejected: occluded; 2: off", 0.0, 2.0, live=True
    )
    max_targets: int = option(16, "max targets at once; the best are kept", 1, 255)
    edges: str = option(
        "model",
        "edges of published masks; model: as SAM 2 gives them; image: moved to where the colours change, near them "
        "(GrabCut), for objects of a few colours",
        choices=("model", "image"),
        live=True,
    )


@dataclass(frozen=True)
class RegroundingConfig(Checked):
    """Grounding the same query again as the window moves on."""

    policy: str = option(
        "hold",
        "hold: keep the answer and ground again only to find hidden or lost targets; refresh: also ground every "
        "stride, so new objects may join; off: never ground again",
        choices=POLICIES,
        live=True,
    )
    search_after_s: float = option(
        1.0, "seconds without being visible after which a target is searched for", 0.0, 3600.0, live=True
    )
    stride: int = option(8, "min key frames between two groundings of a query", 1, 10000, live=True)
    anchors: int = option(
        4, "key frames of the first answer that later groundings see besides the newest ones; 0: none", 0, 64, live=True
    )
    match_iou: float = option(
        0.5, "min mask IoU for a new tracklet to continue an existing target", 0.0, 1.0, live=True
    )
    max_misses: int = option(
        2, "consecutive groundings without a match after which a hidden target is lost", 1, 1000, live=True
    )


@dataclass(frozen=True)
class QueriesConfig(Checked):
    """How many queries a stream has at once."""

    mode: str = option(
        "replace",
        "what a new query does to the present ones; replace: ends them; add: they go on, each with its own answer",
        choices=QUERY_MODES,
        live=True,
    )
    most: int = option(
        8,
        "mode add: most queries at once; beyond it the oldest one of the lowest priority ends",
        1,
        64,
        live=True,
    )


@dataclass(frozen=True)
class OutputsConfig(Checked):
    """Outputs beyond the label image."""

    tracklet_masks: str = option(
        "none",
        "the mask of each target in tracklets, which may overlap others; rle: COCO's compressed counts; png: a file",
        choices=("none", *MASK_ENCODINGS),
        live=True,
    )
    tracklet_masks_kib: int = option(
        256,
        "max KiB of masks in a message on tracklets; targets without room have none, best ones first",
        1,
        65536,
        live=True,
    )


@dataclass(frozen=True)
class NodeConfig(Checked):
    """The ROS node alone."""

    autostart: bool = option(True, "configure and activate at start-up; false: wait for a lifecycle manager")
    image_transport: str = option(
        "raw", "subscribe to topic image (raw) or image/compressed (compressed)", choices=tuple(IMAGE_TRANSPORTS)
    )
    image_backend: str = option(
        "auto",
        "conversion of raw images to RGB; auto: cv_bridge for the encodings for which it gives the pixels of builtin, "
        "if it works; cv_bridge: the same, and an error when the node is configured if it does not",
        choices=("auto", "cv_bridge", "builtin"),
    )
    reliability: str = option(
        "best_effort", "QoS reliability of the image subscription", choices=("best_effort", "reliable")
    )
    drop_frames: bool = option(True, "keep only the newest waiting image; false: queue all, for evaluation only")
    max_image_mpx: float = option(
        50.0,
        "images with more megapixels are rejected, by their header, before they are decoded; also in bags and videos",
        0.001,
        1e6,
        live=True,
    )
    max_query_chars: int = option(1000, "max length of a query in characters; longer ones are refused", 1, 1000000)
    stage_timeout_s: float = option(
        120.0,
        "a query is answered with FAILED and the name of the stage if one call of a model takes longer than these "
        "seconds; the node goes on when the call returns; 0: never",
        0.0,
        1e9,
        live=True,
    )
    diagnostics_period_s: float = option(1.0, "seconds between diagnostics messages", 0.05, 3600.0)

    def __post_init__(self) -> None:
        check_transport("NodeConfig.image_transport", self.image_transport)
        super().__post_init__()
