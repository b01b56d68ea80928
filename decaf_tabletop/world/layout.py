"""Objects that have their place on the table and may have an event, and whether they fit together in the image."""

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
    """What an object does. kind: "slide" (a ball rolls), "stop" (the same, in motion from the first frame on) or "drop"
    (velocity_m_s is (0, 0); it is let go at start_s and lands at end_s)."""

    kind: str
    start_s: float
    end_s: float
    velocity_m_s: tuple[float, float]

    def speed_at(self, times_s: float | np.ndarray) -> np.ndarray:
        """The part of `velocity_m_s` that it is to have at a time, or at each of several: a ramp up, 1, a ramp down."""
        rising = 1.0 if self.kind == "stop" else (times_s - self.start_s) / _RAMP_S
        return np.clip(np.minimum(rising, (self.end_s - times_s) / _RAMP_S), 0.0, 1.0)

    def moved(self) -> np.ndarray:
        """(F, 2) metres from the place where it began, as planned for each frame."""
        fine = np.arange(0, DURATION_S + 0.02, 0.01)
        speeds = self.speed_at(fine)
        way = np.concatenate([[0.0], np.cumsum((speeds[1:] + speeds[:-1]) / 2 * 0.01)])
        return np.interp(_TIMES, fine, way)[:, None] * np.array(self.velocity_m_s)


@dataclass(frozen=True)
class PlacedObject:
    """An object, where it stands (or lands) first on the table, how it is turned, how it looks and what it does.
    nominal_m: the unit of the shapes; pattern: of `textures.object_texture`."""

    thing: TabletopObject
    nominal_m: float
    place_m: tuple[float, float]
    yaw_rad: float
    pattern: str
    event: Event | None

    @cached_property
    def path(self) -> np.ndarray:
        """(F, 2) metres: where it is planned to be on the table, at each frame."""
        moved = self.event.moved() if self.event else np.zeros((FRAMES, 2))
        return np.array(self.place_m) + moved


def boxes(camera: CameraPath, placed: PlacedObject) -> np.ndarray:
    """(F, 4) left, top, right, bottom in pixels: around the object's upright cylinder, standing on the table."""
    angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    ring = placed.thing.radius_m * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.zeros((FRAMES, 2, len(angles), 3))
    points[..., :2] = placed.path[:, None, None] + ring
    points[:, 1, :, 2] = placed.thing.height_m
    pixels = project(points.reshape(FRAMES, -1, 3), *camera.frames)[..., :2]
    return np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)


def in_view(found: np.ndarray) -> bool:
    """The boxes of all frames are within the image; the first frame's with a margin."""
    height, width = IMAGE_HW
    inside = (found[:, :2] >= 0).all() and (found[:, 2] < width).all() and (found[:, 3] < height).all()
    first = found[0]
    return bool(
        inside and (first[:2] >= _BORDER_PX).all() and first[2] < width - _BORDER_PX and first[3] < height - _BORDER_PX
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The part of the smaller one of two boxes that is in the other."""
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def apart(a: PlacedObject, b: PlacedObject) -> bool:
    distances = np.linalg.norm(a.path - b.path, axis=1)
    return bool(distances.min() > a.thing.radius_m + b.thing.radius_m + GAP_M)
