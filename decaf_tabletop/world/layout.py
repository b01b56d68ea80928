"""Placed objects with their planned motion, and checks that they fit on the table and in the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from decaf_tabletop.world.camera import DURATION_S, CameraPath, project
from decaf_tabletop.world.clip import FRAME_PERIOD_S, FRAMES, IMAGE_HW, TabletopObject

GAP_M = 0.012
_BORDER_PX = 3.0
_RAMP_S = 0.12
_TIMES = np.arange(FRAMES) * FRAME_PERIOD_S


@dataclass(frozen=True)
class Event:
    """The motion of an object.

    kind: "slide" (a ball rolls), "stop" (a slide that already moves in the first frame) or "drop" (released at start_s,
    lands at end_s; velocity_m_s is (0, 0)).
    """

    kind: str
    start_s: float
    end_s: float
    velocity_m_s: tuple[float, float]

    def speed_factor(self, times_s: float | np.ndarray) -> np.ndarray:
        """Planned share of `velocity_m_s` at the given times: a ramp up (not for "stop"), 1, a ramp down."""
        rising = 1.0 if self.kind == "stop" else (times_s - self.start_s) / _RAMP_S
        return np.clip(np.minimum(rising, (self.end_s - times_s) / _RAMP_S), 0.0, 1.0)

    def displacement(self) -> np.ndarray:
        """(F, 2) planned metres from the starting place at each frame."""
        fine = np.arange(0, DURATION_S + 0.02, 0.01)
        factors = self.speed_factor(fine)
        moving_s = np.concatenate([[0.0], np.cumsum((factors[1:] + factors[:-1]) / 2 * 0.01)])
        displacement: np.ndarray = np.interp(_TIMES, fine, moving_s)[:, None] * np.array(self.velocity_m_s)
        return displacement


@dataclass(frozen=True)
class PlacedObject:
    """An object with its pose, appearance and motion.

    Attributes:
        nominal_m: The length unit of its mesh.
        place_m: Where it first stands (or lands) on the table, x and y in the world.
        pattern: See `textures.object_texture`.
    """

    thing: TabletopObject
    nominal_m: float
    place_m: tuple[float, float]
    yaw_rad: float
    pattern: str
    event: Event | None

    @cached_property
    def path(self) -> np.ndarray:
        """(F, 2) metres: its planned place on the table at each frame."""
        displacement = self.event.displacement() if self.event else np.zeros((FRAMES, 2))
        path: np.ndarray = np.array(self.place_m) + displacement
        return path


def boxes(camera: CameraPath, placed: PlacedObject) -> np.ndarray:
    """(F, 4) left, top, right, bottom in pixels: bounding boxes of the object's upright cylinder on the table."""
    angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    ring = placed.thing.radius_m * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.zeros((FRAMES, 2, len(angles), 3))
    points[..., :2] = placed.path[:, None, None] + ring
    points[:, 1, :, 2] = placed.thing.height_m
    pixels = project(points.reshape(FRAMES, -1, 3), *camera.frames)[..., :2]
    return np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)


def in_view(boxes_px: np.ndarray) -> bool:
    """Whether the (F, 4) boxes are within the image, and the first one clear of its border."""
    height, width = IMAGE_HW
    inside = (boxes_px[:, :2] >= 0).all() and (boxes_px[:, 2] < width).all() and (boxes_px[:, 3] < height).all()
    first = boxes_px[0]
    return bool(
        inside and (first[:2] >= _BORDER_PX).all() and first[2] < width - _BORDER_PX and first[3] < height - _BORDER_PX
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection area of two boxes over the area of the smaller one."""
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def apart(a: PlacedObject, b: PlacedObject) -> bool:
    """Whether the cylinders of two objects keep more than GAP_M apart at all frames."""
    distances = np.linalg.norm(a.path - b.path, axis=1)
    return bool(distances.min() > a.thing.radius_m + b.thing.radius_m + GAP_M)
