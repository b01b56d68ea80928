"""The plane around the targets: mostly the table that they stand on. Its normal is the upright axis of their boxes."""

from __future__ import annotations

import numpy as np

_POINTS = 1500
_TRIES, _LAST_TRIES = 64, 16
# A point lies on the plane within 1 cm at 1 m, two to three times the noise of stereo depth, and farther away by the
# square of the distance, as that noise; within 0.5 cm at least, for a table that is not flat.
_TOLERANCE, _LEAST_TOLERANCE_M = 0.01, 0.005
# Fewer points, or a smaller share of them on the plane, are no support.
_LEAST_POINTS, _LEAST_SHARE = 50, 0.5
# A plane that was there on the last frame stays with fewer, so that the boxes of a cluttered table do not tumble.
_KEPT_SHARE = 0.3


def support_normal(points: np.ndarray, last: np.ndarray | None = None) -> np.ndarray | None:
    """The unit normal, towards the camera, of the plane that holds at least half of the points; None if none does.

    The best of 64 planes through three points (RANSAC with a fixed seed), fitted to the points within 1 cm of
    it at 1 m, 4 cm at 2 m.

    Args:
        points: (n, 3) metres in the optical frame.
        last: (3,) the normal on the last frame. Planes with it need 30 % of the points only.
    """
    points = points[:: max(len(points) // _POINTS, 1)].astype(np.float64)
    if len(points) < _LEAST_POINTS:
        return None
    rng = np.random.default_rng(0)
    a, b, c = points[rng.integers(len(points), size=(3, _TRIES))]
    normals = np.cross(b - a, c - a)
    lengths = np.linalg.norm(normals, axis=1)
    normals, a = normals[lengths > 1e-9] / lengths[lengths > 1e-9, None], a[lengths > 1e-9]
    is_last = np.zeros(len(normals), bool)
    if last is not None:
        through = points[np.argsort(points @ last)[len(points) // _LAST_TRIES // 2 :: len(points) // _LAST_TRIES]]
        normals, a = np.vstack([normals, np.tile(last, (len(through), 1))]), np.vstack([a, through])
        is_last = np.append(is_last, np.ones(len(through), bool))
    if not len(normals):
        return None
    tolerance = np.maximum(_TOLERANCE * points[:, 2] ** 2, _LEAST_TOLERANCE_M)
    offsets = np.einsum("ij,ij->i", normals, a)
    counts = (np.abs(points @ normals.T - offsets) < tolerance[:, None]).sum(axis=0)
    # The last frame's plane needs a smaller share than a new one.
    counts = counts / np.where(is_last, _KEPT_SHARE, _LEAST_SHARE)
    best = int(counts.argmax())
    least = _KEPT_SHARE if is_last[best] else _LEAST_SHARE
    for _ in range(2):
        on = np.abs(points @ normals[best] - offsets[best]) < tolerance
        if on.mean() < least:
            return None
        centre = points[on].mean(axis=0)
        normals[best] = np.linalg.eigh(np.cov((points[on] - centre).T))[1][:, 0]
        offsets[best] = normals[best] @ centre
    normal = normals[best]
    return np.asarray(normal if normal @ points.mean(axis=0) < 0 else -normal)
