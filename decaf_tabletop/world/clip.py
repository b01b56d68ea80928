"""What the tabletop simulator makes: clips with everything that is true about them.

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


@dataclass(frozen=True)
class TabletopObject:
    """One thing on the table. radius_m: of the smallest upright cylinder around it; height_m: of that cylinder."""

    category: str
    color: str
    size: str
    radius_m: float
    height_m: float


@dataclass(frozen=True, eq=False)
class TabletopClip:
    """F frames of one scene with n objects.

    images: (F, H, W, 3) uint8, RGB. depth_m: (F, H, W) float32, along the optical axis, or None where it was not kept.
    labels: (F, H, W) uint8, what is visible: 0 the surroundings, k the object `objects[k - 1]`.
    stamps_ns: (F,) int64. poses: (F, n, 7) float64, of each object's centre in the world frame: x, y, z in metres and
    the quaternion w, x, y, z. camera_poses: (F, 7) float64, of the optical frame in the world frame, the same way.
    intrinsics: (3, 3) float64, pixels. surface: what the table is covered with, one of SURFACES.
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
        """(F, H, W) bool, where any of `objects[i] for i in targets` is visible."""
        return np.isin(self.labels, np.asarray(targets, np.uint8) + 1) if targets else np.zeros_like(self.labels, bool)

    def frames(self) -> tuple[Frame, ...]:
        """As the pipeline takes them."""
        return tuple(
            Frame(image, int(stamp), "camera_optical", index)
            for index, (image, stamp) in enumerate(zip(self.images, self.stamps_ns))
        )


# Graded: by name, by one property, by what happens, by comparison, by place, more than one, by what happened when.
KINDS = ("explicit", "attribute", "motion", "size", "relation", "several", "temporal", "absent")


@dataclass(frozen=True)
class Expression:
    """A referring expression, and what it means. kind: one of KINDS. targets: indices into `TabletopClip.objects`;
    none for kind `absent`. category: that of all targets; empty where they differ or there is none. asked_s: seconds of
    the clip after which it is asked, since it is about what was just seen; None: it is about the whole clip."""

    text: str
    kind: str
    targets: tuple[int, ...]
    category: str
    asked_s: float | None = None
