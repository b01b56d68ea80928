"""Clips of the tabletop simulator with their ground truth.

World frame: metres, z up, the table top at z = 0, x to the camera's right and y away from it in the neutral view.
Camera frames are optical: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaf_ros.types import Frame

CATEGORIES = ("ball", "cube", "can", "bottle", "plate", "cone", "mug")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
SIZES = ("small", "large")
SURFACES = ("wood", "marble", "grass", "sand", "brick", "cloth")

IMAGE_HW = (240, 320)
FRAMES = 32
FRAME_PERIOD_S = 0.1
# Length of long clips.
LEAST_S, MOST_S = 30.0, 600.0


@dataclass(frozen=True)
class TabletopObject:
    """An object on the table. radius_m and height_m describe the smallest upright cylinder around it."""

    category: str
    color: str
    size: str
    radius_m: float
    height_m: float


@dataclass(frozen=True, eq=False)
class TabletopClip:
    """F frames of one scene with n objects.

    Attributes:
        images: (F, H, W, 3) uint8, RGB.
        labels: (F, H, W) uint8, the visible instance: 0 the surroundings, k the object `objects[k - 1]`.
        stamps_ns: (F,) int64.
        poses: (F, n, 7) float64, each object's centre in the world frame: x, y, z in metres, quaternion w, x, y, z.
        camera_poses: (F, 7) float64, the optical frame in the world frame, in the same layout.
        intrinsics: (3, 3) float64, in pixels.
        surface: The table's cover, one of SURFACES.
        depth_m: (F, H, W) float32 along the optical axis; None if not kept.
    """

    seed: int
    images: np.ndarray
    labels: np.ndarray
    stamps_ns: np.ndarray
    objects: tuple[TabletopObject, ...]
    poses: np.ndarray
    camera_poses: np.ndarray
    intrinsics: np.ndarray
    surface: str
    depth_m: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)

    def mask(self, targets: tuple[int, ...]) -> np.ndarray:
        """(F, H, W) bool: pixels where any of `objects[i] for i in targets` is visible."""
        return np.isin(self.labels, np.asarray(targets, np.uint8) + 1) if targets else np.zeros_like(self.labels, bool)

    def frames(self) -> tuple[Frame, ...]:
        """The images as the pipeline's input type."""
        return tuple(
            Frame(image, int(stamp), "camera_optical", index)
            for index, (image, stamp) in enumerate(zip(self.images, self.stamps_ns))
        )


# The target is given by: name, one property, motion, size, place, shared property, event. The last two have no target:
# a thing that is not there, an event that did not happen.
ABSENT_EVENT = "absent event"
KINDS = ("explicit", "attribute", "motion", "size", "relation", "several", "temporal", "absent", ABSENT_EVENT)


@dataclass(frozen=True)
class Expression:
    """A referring expression with its targets.

    Attributes:
        kind: One of KINDS.
        targets: Indices into `TabletopClip.objects`; empty for the kinds without a target.
        category: The category shared by all targets; empty if they differ or there are none.
        asked_s: Clip time in seconds at which it is asked about the frames just before. None: about the whole clip.
    """

    text: str
    kind: str
    targets: tuple[int, ...]
    category: str
    asked_s: float | None = None
