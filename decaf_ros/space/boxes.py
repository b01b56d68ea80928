"""Oriented boxes around points, with axes that are stable from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import cv2
import numpy as np

# A turned box replaces the last frame's if its volume is this share smaller. A round object then keeps its axes, and
# a square one that turns is at most 5 degrees ahead of its box.
_WORTH = 0.85
# Beyond this percentile along an axis points are noise.
_TRIM = 0.25


def _turns() -> np.ndarray:
    """(24, 3, 3): all rotations that map the axes onto each other."""
    matrices = [
        np.eye(3)[:, list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
    ]
    return np.array([matrix for matrix in matrices if np.linalg.det(matrix) > 0])


_TURNS = _turns()


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box in the camera's optical frame.

    centre: (3,) float64, metres.
    axes: (3, 3) float64, the box's axes as columns: a rotation.
    size: (3,) float64, metres along the axes.
    """

    centre: np.ndarray
    axes: np.ndarray
    size: np.ndarray


def fitted_box(points: np.ndarray, up: np.ndarray | None = None, last: np.ndarray | None = None) -> Box:
    """The box around points, trimmed by 0.25 % at both ends of each axis.

    With `up`, one axis is parallel to it and the box around the others has the least area. Without it, the box has one
    of the points' principal axes, the one with the least volume. Its axes can be named in 24 ways: the one nearest to
    `last` is taken, at first nearest to the camera's axes. `last` is kept, turned onto `up`, unless the new box is 15 %
    smaller.

    Args:
        points: (n, 3) metres, at least 3.
        up: (3,) a unit vector.
        last: (3, 3) the axes of the last frame.
    """
    points = np.ascontiguousarray(np.asarray(points, np.float64).T)  # rows of coordinates: sums along them are fast
    if up is not None:
        candidates = [_least_turned(points, up)]
    else:
        principal = np.linalg.eigh(np.cov(points))[1].T
        candidates = [_least_turned(points, axis) for axis in principal]
    ends = [_ends(points, axes) for axes in candidates]
    volumes = [_volume(low, high) for low, high in ends]
    best = int(np.argmin(volumes))
    axes, (low, high) = candidates[best], ends[best]
    if last is not None:
        kept = last if up is None else _turned_onto(last, up)
        kept_low, kept_high = _ends(points, kept)
        if volumes[best] > _WORTH * _volume(kept_low, kept_high):
            return Box(kept @ (kept_low + kept_high) / 2, kept, kept_high - kept_low)
    named = axes @ _TURNS
    turn = _TURNS[np.einsum("ij,kij->k", np.eye(3) if last is None else last, named).argmax()]
    low, high = low @ turn, high @ turn
    axes = axes @ turn
    return Box(axes @ (low + high) / 2, axes, np.abs(high - low))


def _least_turned(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(3, 3): a rotation with `axis` as its last column, the others along the least rectangle around (3, n) points."""
    side = _cross(axis, np.eye(3)[np.abs(axis).argmin()])
    side /= np.linalg.norm(side)
    other = _cross(axis, side)
    flat = np.stack([side, other]) @ points
    from_middle = ((flat - flat.mean(axis=1, keepdims=True)) ** 2).sum(axis=0)
    inner = points.shape[1] - int(points.shape[1] * _TRIM / 100)
    flat = flat.T[np.argpartition(from_middle, inner - 1)[:inner]]  # one far point would turn the rectangle
    angle = np.radians(cv2.minAreaRect(flat.astype(np.float32))[2])
    first = np.cos(angle) * side + np.sin(angle) * other
    return np.column_stack([first, _cross(axis, first), axis])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """np.cross of two (3,) vectors; that one takes longer than the rest of a box."""
    (x, y, z), (u, v, w) = a.tolist(), b.tolist()
    return np.array([y * w - z * v, z * u - x * w, x * v - y * u])


def _turned_onto(axes: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The axes after the smallest turn that makes one of them parallel to `up`."""
    along = up @ axes
    upright = int(np.abs(along).argmax())
    second = (upright + 1) % 3
    turned = np.empty((3, 3))
    turned[:, upright] = up * np.sign(along[upright])
    level = axes[:, second] - (axes[:, second] @ up) * up
    turned[:, second] = level / np.linalg.norm(level)
    turned[:, (upright + 2) % 3] = _cross(turned[:, upright], turned[:, second])
    return turned


def _ends(points: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3,) each: the trimmed ends of (3, n) points along the axes."""
    along = axes.T @ points
    last = points.shape[1] - 1
    cut = int(points.shape[1] * _TRIM / 100)
    along.partition((cut, last - cut), axis=1)
    return along[:, cut], along[:, last - cut]


def _volume(low: np.ndarray, high: np.ndarray) -> float:
    return float(np.prod(np.maximum(high - low, 1e-4)))  # a flat thing has an area
