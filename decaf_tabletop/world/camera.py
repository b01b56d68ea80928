"""Where the simulated camera is, and what it sees of a point: numpy only, so that a scene can be planned unrendered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decaf_tabletop.world.clip import FRAME_PERIOD_S, FRAMES, IMAGE_HW

FOVY_DEG = 36.0
DURATION_S = (FRAMES - 1) * FRAME_PERIOD_S
# From which the image's width spans 0.54 m at the point that is looked at.
DISTANCE_M = 0.54 * IMAGE_HW[0] / IMAGE_HW[1] / (2 * math.tan(math.radians(FOVY_DEG / 2)))


@dataclass(frozen=True)
class View:
    """Orbit coordinates about the point `target_m` (x, y, z in the world). azimuth_deg: 0 looks along +y, positive is
    to the right of the table; elevation_deg: above the horizon."""

    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    target_m: tuple[float, float, float]


@dataclass(frozen=True)
class CameraPath:
    """From one view to another, eased in and out, over the clip; equal views: a camera at rest."""

    start: View
    end: View

    def at(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """(3,) position in metres and (3, 3) rotation of the optical frame (its x, y, z as columns) in the world."""
        part = min(max(time_s / DURATION_S, 0.0), 1.0)
        part = part * part * (3 - 2 * part)
        values = [np.array([v.azimuth_deg, v.elevation_deg, v.distance_m, *v.target_m]) for v in (self.start, self.end)]
        azimuth, elevation, distance, *target = (1 - part) * values[0] + part * values[1]
        azimuth, elevation = math.radians(azimuth), math.radians(elevation)
        outwards = np.array(
            [math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation)]
        )
        right = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
        return np.array(target) + distance * outwards, np.stack([right, np.cross(-outwards, right), -outwards], axis=1)

    @cached_property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """(F, 3) positions and (F, 3, 3) rotations at the clip's frames."""
        positions, rotations = zip(*(self.at(frame * FRAME_PERIOD_S) for frame in range(FRAMES)))
        return np.stack(positions), np.stack(rotations)


def intrinsics() -> np.ndarray:
    """(3, 3) float64; the centre of the first pixel is at (0, 0)."""
    height, width = IMAGE_HW
    focal = height / 2 / math.tan(math.radians(FOVY_DEG / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def project(points: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """(..., p, 3) world points in metres, seen by cameras at (..., 3) with rotations (..., 3, 3) -> (..., p, 3): x and
    y in pixels, and the depth along the optical axis in metres. Of points that are not in front of the camera
    (depth <= 0) the pixels mean nothing."""
    seen = (points - position[..., None, :]) @ rotation
    depth = seen[..., 2]
    matrix = intrinsics()
    pixels = seen[..., :2] / np.maximum(depth, 1e-6)[..., None] * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
    return np.concatenate([pixels, depth[..., None]], axis=-1)
