"""Options of targets in space: inputs, and the geometry of targets (`decaf_ros.space`)."""

from __future__ import annotations

from dataclasses import dataclass

from decaf_ros.config.fields import Checked, option
from decaf_ros.config.transports import DEPTH_TRANSPORTS, check_transport


@dataclass(frozen=True)
class SpaceConfig(Checked):
    """Targets in space, from depth images: see docs/space.md."""

    enabled: bool = option(
        False, "subscribe to depth images and camera_info, and publish the places and sizes of targets"
    )
    depth_transport: str = option(
        "raw",
        "subscribe to topic depth (raw) or depth/compressedDepth (compressed: PNG or RVL)",
        choices=tuple(DEPTH_TRANSPORTS),
    )
    rectified: bool = option(
        False, "the image and its depth are rectified: P of camera_info counts, without distortion; false: K and D"
    )
    sync_slop_s: float = option(
        0.03,
        "a frame without a depth image of its exact stamp gets the nearest one within this many seconds",
        0.0,
        10.0,
    )
    depth_wait_s: float = option(
        0.2, "seconds that the 3D outputs of a frame wait for its depth after its masks were published", 0.0, 10.0
    )
    target_frame: str = option(
        "", "frame of the 3D outputs, by TF at the image's stamp (needs tf2_ros); empty: the camera's frame"
    )
    tf_timeout_s: float = option(
        0.1,
        "seconds after which the 3D outputs of a frame without a transform are published in the camera's frame",
        0.0,
        10.0,
    )
    min_m: float = option(0.1, "smaller depths, in metres, are invalid", 0.001, 1000.0, live=True)
    max_m: float = option(10.0, "larger depths, in metres, are invalid", 0.01, 1000.0, live=True)
    erode_px: int = option(
        1, "pixels removed at the edge of a mask, where depth mixes with the background", 0, 50, live=True
    )
    edge_step: float = option(
        0.02,
        "step between neighbouring pixels, as a share of their depth, that is an edge in depth",
        0.001,
        1.0,
        live=True,
    )
    min_points: int = option(30, "a target with fewer points has no position", 3, 1000000, live=True)
    min_share: float = option(
        0.1, "a target with a smaller share of valid depth in its mask has no position", 0.0, 1.0, live=True
    )

    def __post_init__(self) -> None:
        check_transport("SpaceConfig.depth_transport", self.depth_transport, "/camera/depth/image_raw")
        super().__post_init__()
        if self.min_m >= self.max_m:
            raise ValueError(f"SpaceConfig.min_m: expected less than max_m ({self.max_m:g}), got {self.min_m:g}")
