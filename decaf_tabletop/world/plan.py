"""The growing plan of a long scene: objects, routes and camera moves so far, and checks that a next event fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from decaf_tabletop.world.camera import CameraPath, CameraTour, View, project
from decaf_tabletop.world.clip import IMAGE_HW
from decaf_tabletop.world.layout import GAP_M, PlacedObject, overlap
from decaf_tabletop.world.routes import AWAY_M, Leg, Route
from decaf_tabletop.world.shapes import mesh

Point = tuple[float, float, float]
TABLE_M = (0.85, 0.62)
_BORDER_PX, _CLEAR_PX, _EDGE_M = 4.0, 6.0, 0.1
_CHECK_S = 0.05


class Plan:
    """The plan up to `time_s`.

    Attributes:
        objects: With their places at the start.
        routes: The motion of each object so far.
        away: When each object that is out of view is due back.
        view: Where the camera rests now.
        moves: As in CameraTour.
    """

    def __init__(self, objects: Sequence[PlacedObject], routes: Sequence[Route], view: View) -> None:
        self.objects = list(objects)
        self.routes = list(routes)
        self.away: dict[int, float] = {}
        self.start_view = self.view = view
        self.moves: list[tuple[float, float, View]] = []
        self.time_s = 0.0

    @property
    def tour(self) -> CameraTour:
        return CameraTour(self.start_view, tuple(self.moves))

    @property
    def on_table(self) -> list[int]:
        """Objects that rest in view."""
        return [index for index in range(len(self.objects)) if index not in self.away]

    def place(self, index: int) -> np.ndarray:
        """(2,) x and y of the object's place after its last leg."""
        return np.array(self.routes[index].end_m[:2])

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The directions to the right and away along the table in the current view, (2,) each."""
        azimuth = math.radians(self.view.azimuth_deg)
        return np.array([math.cos(azimuth), math.sin(azimuth)]), np.array([-math.sin(azimuth), math.cos(azimuth)])

    def reach(self, first: int, second: int) -> float:
        return self.objects[first].thing.radius_m + self.objects[second].thing.radius_m

    def box(self, index: int, point: Point, view: View | None = None) -> np.ndarray:
        """(4,) left, top, right, bottom in pixels of the upright cylinder; far outside if behind the camera."""
        thing = self.objects[index].thing
        angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        ring = thing.radius_m * np.stack([np.cos(angles), np.sin(angles)], axis=1) + point[:2]
        points = np.concatenate(
            [np.column_stack([ring, np.full(12, z)]) for z in (point[2], point[2] + thing.height_m)]
        )
        pixels = project(points, *_pose(view or self.view))
        if (pixels[:, 2] < 0.05).any():
            return np.full(4, -1e4)
        return np.concatenate([pixels[:, :2].min(axis=0), pixels[:, :2].max(axis=0)])

    def in_view(self, index: int, xy: np.ndarray, view: View | None = None) -> bool:
        """Whether an object that stands there is wholly in the image."""
        left, top, right, bottom = self.box(index, (*xy.tolist(), 0.0), view)
        height, width = IMAGE_HW
        inside = left >= _BORDER_PX and top >= _BORDER_PX and right < width - _BORDER_PX
        return bool(inside and bottom < height - _BORDER_PX)

    def out_of_view(self, index: int, point: Point, view: View | None = None) -> bool:
        """Whether no part of the object is in the image."""
        left, top, right, bottom = self.box(index, point, view)
        height, width = IMAGE_HW
        return bool(right < -_CLEAR_PX or bottom < -_CLEAR_PX or left > width + _CLEAR_PX or top > height + _CLEAR_PX)

    def on_top(self, xy: np.ndarray) -> bool:
        """Whether a place is on the table, clear of its edge."""
        return bool(abs(xy[0]) < TABLE_M[0] - _EDGE_M and abs(xy[1]) < TABLE_M[1] - _EDGE_M)

    def can_rest(self, index: int, xy: np.ndarray, others: Sequence[int] | None = None) -> bool:
        """Whether the object can stand there: in view, apart from the others, and not hidden by them or hiding them."""
        if not (self.in_view(index, xy) and self.on_top(xy)):
            return False
        box = self.box(index, (*xy.tolist(), 0.0))
        for other in self.on_table if others is None else others:
            if other == index:
                continue
            place = self.place(other)
            if np.linalg.norm(place - xy) < self.reach(index, other) + 1.5 * GAP_M:
                return False
            if overlap(box, self.box(other, (*place.tolist(), 0.0))) > 0.2:
                return False
        return True

    def is_free(self, changed: Mapping[int, Route], end_s: float, touching: frozenset[int] = frozenset()) -> bool:
        """Whether no two objects collide until `end_s` if some have these routes. touching: a pair that may touch."""
        times = np.arange(self.time_s, end_s + _CHECK_S, _CHECK_S)
        paths = {index: changed.get(index, route).at(times) for index, route in enumerate(self.routes)}
        for first in changed:
            for second in range(len(self.objects)):
                if second == first:
                    continue
                a, b = paths[first], paths[second]
                gaps = np.linalg.norm(a[:, :2] - b[:, :2], axis=1) - self.reach(first, second)
                # Objects that touch since a push may part again.
                near = gaps < (0.0 if {first, second} <= touching else min(GAP_M, 0.9 * gaps[0]))
                heights = self.objects[first].thing.height_m, self.objects[second].thing.height_m
                beside = (a[:, 2] < b[:, 2] + heights[1] + GAP_M) & (b[:, 2] < a[:, 2] + heights[0] + GAP_M)
                if (near & beside).any():
                    return False
        return True

    def visible_share(self, back: int, back_xy: np.ndarray, front: int, front_xy: np.ndarray) -> float:
        """Share of `back` that `front` leaves visible if both stand there."""
        hidden = self._silhouette(front, front_xy)
        seen = self._silhouette(back, back_xy)
        return float((seen & ~hidden).sum() / max(seen.sum(), 1))

    def _silhouette(self, index: int, xy: np.ndarray) -> np.ndarray:
        """(H, W) bool"""
        placed = self.objects[index]
        shape = mesh(placed.thing.category)
        cos, sin = math.cos(placed.yaw_rad), math.sin(placed.yaw_rad)
        points = placed.nominal_m * shape.vertices @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
        pixels = project(points + [*xy, placed.thing.height_m / 2], *_pose(self.view))[:, :2].round().astype(np.int32)
        mask = np.zeros(IMAGE_HW, np.uint8)
        for triangle in pixels[shape.faces]:
            cv2.fillConvexPoly(mask, triangle, 1)
        return mask > 0

    def commit(self, routes: Mapping[int, Route], end_s: float) -> None:
        """Takes an event into the plan, which then ends at `end_s`."""
        for index, route in routes.items():
            self.routes[index] = route
        self.time_s = end_s

    def follow(self, view: View, start_s: float, end_s: float) -> None:
        """Moves the camera."""
        self.moves.append((start_s, end_s, view))
        self.view = view

    def camera_may_rest_at(self, view: View) -> bool:
        """Whether all objects on the table are then in view, and those that are away are not."""
        return all(
            self.out_of_view(index, route.end_m, view)
            if index in self.away
            else self.in_view(index, np.array(route.end_m[:2]), view)
            for index, route in enumerate(self.routes)
        )


def held_route(xy: np.ndarray) -> Route:
    """The route of an object that hangs above the image at first."""
    return Route((float(xy[0]), float(xy[1]), AWAY_M))


def slide(start_s: float, end_s: float, xy: np.ndarray) -> Leg:
    return Leg("slide", start_s, end_s, (float(xy[0]), float(xy[1]), 0.0))


def _pose(view: View) -> tuple[np.ndarray, np.ndarray]:
    return CameraPath(view, view).at(0.0)
