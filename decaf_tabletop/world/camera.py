"""Camera path and projection of the simulated camera, in NumPy alone: scenes are planned without rendering."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decaf_tabletop.world.clip import FRAME_PERIOD_S, FRAMES, IMAGE_HW

FOVY_DEG = 36.0
DURATION_S = (FRAMES - 1) * FRAME_PERIOD_S
# The image is 0.54 m wide at the target point from this distance.
DISTANCE_M = 0.54 * IMAGE_HW[0] / IMAGE_HW[1] / (2 * math.tan(math.radians(FOVY_DEG / 2)))


@dataclass(frozen=True)
class View:
    """Camera position in orbit coordinates about a target point.

    Attributes:
        azimuth_deg: 0 looks along +y; positive moves the camera to the right of the table.
        elevation_deg: Angle above the horizon.
        target_m: x, y, z in the world.
    """

    azimuth_deg: float
    elevation_deg: float
    distance_m: float
    target_m: tuple[float, float, float]


@dataclass(frozen=True)
class CameraPath:
    """Moves from one view to another over DURATION_S with ease-in and ease-out. Equal views: a camera at rest."""

    start: View
    end: View

    def at(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """Pose of the optical frame in the world: (3,) position in metres, (3, 3) rotation with its axes as columns."""
        progress = min(max(time_s / DURATION_S, 0.0), 1.0)
        progress = progress * progress * (3 - 2 * progress)
        values = [np.array([v.azimuth_deg, v.elevation_deg, v.distance_m, *v.target_m]) for v in (self.start, self.end)]
        azimuth, elevation, distance, *target = (1 - progress) * values[0] + progress * values[1]
        azimuth, elevation = math.radians(azimuth), math.radians(elevation)
        outwards = np.array(
            [math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation)]
        )
        right = np.array([math.cos(azimuth), math.sin(azimuth), 0.0])
        return np.array(target) + distance * outwards, np.stack([right, np.cross(-outwards, right), -outwards], axis=1)

    @cached_property
    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """(F, 3) positions and (F, 3, 3) rotations at the clip's frames, as in `at`."""
        positions, rotations = zip(*(self.at(frame * FRAME_PERIOD_S) for frame in range(FRAMES)))
        return np.stack(positions), np.stack(rotations)


@dataclass(frozen=True)
class CameraTour:
    """Stays at `start` and moves to further views, each with ease-in and ease-out.

    moves: (start, end, view) in order of time, in seconds.
    """

    start: View
    moves: tuple[tuple[float, float, View], ...] = ()

    def at(self, time_s: float) -> tuple[np.ndarray, np.ndarray]:
        """The pose of the optical frame, as in `CameraPath.at`."""
        view = self.start
        for start_s, end_s, end in self.moves:
            if time_s < end_s:
                return CameraPath(view, end).at(max(time_s - start_s, 0.0) / (end_s - start_s) * DURATION_S)
            view = end
        return CameraPath(view, view).at(0.0)


def intrinsics() -> np.ndarray:
    """(3, 3) float64 camera matrix in pixels; the centre of the first pixel is at (0, 0)."""
    height, width = IMAGE_HW
    focal = height / 2 / math.tan(math.radians(FOVY_DEG / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def project(points: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Projects world points into the image; pixels are meaningless at depth <= 0 (behind the camera).

    Args:
        points: (..., p, 3) in metres.
        position: (..., 3) of the camera in metres.
        rotation: (..., 3, 3) of the optical frame, axes as columns.

    Returns:
        (..., p, 3): x and y in pixels, depth along the optical axis in metres.
    """
    optical = (points - position[..., None, :]) @ rotation
    depth = optical[..., 2]
    matrix = intrinsics()
    pixels = optical[..., :2] / np.maximum(depth, 1e-6)[..., None] * matrix[[0, 1], [0, 1]] + matrix[:2, 2]
    return np.concatenate([pixels, depth[..., None]], axis=-1)
