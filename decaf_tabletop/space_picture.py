"""Draws the measured points of a frame: from the front, as the camera sees them, and from above its line of sight."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np

from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.objects import TargetGeometry

_PX_PER_M = 1600
_MARGIN_M = 0.03
_REMOVED, _BOX, _POSITION, _PAPER = (255, 120, 120), (20, 20, 20), (0, 0, 0), (255, 255, 255)
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2


def cloud_picture(
    image: np.ndarray,
    depth_m: np.ndarray,
    masks: Mapping[int, np.ndarray],
    found: Mapping[int, TargetGeometry],
    camera: Camera,
) -> np.ndarray:
    """Two views beside each other, (H, W, 3) uint8 RGB, with boxes, and a cross at each position. Points have the
    image's colours; depths in a mask that do not count are light red.

    image: (H, W, 3) uint8 RGB. depth_m: (H, W) float32, NaN invalid. masks: (H, W) bool by target.
    """
    kept = {key: geometry for key, geometry in found.items() if geometry.box is not None}
    points = np.vstack([geometry.points for geometry in kept.values()])
    colours = np.vstack([image.reshape(-1, 3)[geometry.pixels] for geometry in kept.values()])
    removed = np.any(list(masks.values()), axis=0).ravel() & np.isfinite(depth_m).ravel()
    removed[np.concatenate([geometry.pixels for geometry in kept.values()])] = False
    depth = depth_m.reshape(-1)[removed]
    rest = np.column_stack([pixel_rays(camera).reshape(-1, 2)[removed] * depth[:, None], depth])
    views = []
    for name, axes, signs in (("front: x right, y down", (0, 1), (1, 1)), ("top: x right, z up", (0, 2), (1, -1))):
        flat = points[:, axes] * signs
        corners = np.vstack([_corners(geometry)[:, axes] * signs for geometry in kept.values()])
        both = np.vstack([flat, corners])
        low, high = both.min(axis=0) - _MARGIN_M, both.max(axis=0) + _MARGIN_M
        width, height = np.ceil((high - low) * _PX_PER_M).astype(int)
        view = np.full((height, width, 3), _PAPER, np.uint8)
        _dots(view, (rest[:, axes] * signs - low) * _PX_PER_M, np.broadcast_to(_REMOVED, rest.shape))
        _dots(view, (flat - low) * _PX_PER_M, colours)
        for geometry in kept.values():
            ends = np.rint((_corners(geometry)[:, axes] * signs - low) * _PX_PER_M).astype(int)
            for a in range(8):
                for b in (a ^ 1, a ^ 2, a ^ 4):
                    cv2.line(view, ends[a].tolist(), ends[b].tolist(), _BOX, 1, cv2.LINE_AA)
            place = np.rint((geometry.position[list(axes)] * signs - low) * _PX_PER_M).astype(int)
            cv2.drawMarker(view, place.tolist(), _POSITION, cv2.MARKER_TILTED_CROSS, 14, 2)
        cv2.putText(view, name, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BOX, 1, cv2.LINE_AA)
        views.append(view)
    tall = max(view.shape[0] for view in views)
    padded = [
        cv2.copyMakeBorder(view, 0, tall - view.shape[0], 0, 12, cv2.BORDER_CONSTANT, value=_PAPER) for view in views
    ]
    return np.asarray(np.hstack(padded))


def _corners(geometry: TargetGeometry) -> np.ndarray:
    """(8, 3); corners that differ in one bit of their index share an edge."""
    return geometry.box.centre + (_CORNERS * geometry.box.size) @ geometry.box.axes.T


def _dots(view: np.ndarray, places: np.ndarray, colours: np.ndarray) -> None:
    """Paints (n, 2) places, x and y in pixels, as squares of 3 px."""
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y = np.rint(places).astype(int).T + [[dx], [dy]]
            inside = (x >= 0) & (x < view.shape[1]) & (y >= 0) & (y < view.shape[0])
            view[y[inside], x[inside]] = colours[inside]
