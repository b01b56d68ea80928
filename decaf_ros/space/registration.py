"""Depth of one camera in the pixels of another one."""

from __future__ import annotations

import numpy as np

from decaf_ros.space.camera import Camera, corner_rays, pixel_rays, project
from decaf_ros.types.checks import quoted

_RIGID = 1e-3
# A depth pixel that covers more pixels of the image on a side is too near to both cameras to be registered.
_WIDEST_PX = 64


def depth_in_camera(
    depth_m: np.ndarray,
    frame_id: str,
    camera: Camera,
    depth_camera: Camera | None = None,
    depth_to_camera: np.ndarray | None = None,
) -> np.ndarray:
    """Depth in the pixels of `camera`, (H, W) float32 in metres, NaN invalid.

    Args:
        depth_m: (h, w) float32 in metres, NaN invalid.
        frame_id: the frame of the depth image.
        depth_camera: the own camera of an unregistered depth image.
        depth_to_camera: (4, 4), takes points from the optical frame of `depth_camera` to that of `camera`, in metres.

    Raises:
        ValueError: a depth image of another size or frame than the camera's, without both arguments; of another size
            than the depth camera's; a transform that is not rigid.
    """
    if depth_camera is not None and depth_to_camera is not None:
        return register(depth_m, depth_camera, camera, depth_to_camera)
    if depth_m.shape != camera.size_hw or frame_id.lstrip("/") != camera.frame_id.lstrip("/"):
        raise ValueError(
            f"depth: expected {camera.width} x {camera.height} px in frame {quoted(camera.frame_id)}, as the image, "
            f"got {depth_m.shape[1]} x {depth_m.shape[0]} in {quoted(frame_id)}; use the registered topic (such as "
            "aligned_depth_to_color), or give the depth camera's info and its transform to the image's camera"
        )
    return depth_m


def register(depth_m: np.ndarray, depth_camera: Camera, camera: Camera, depth_to_camera: np.ndarray) -> np.ndarray:
    """Moves a depth image into another camera. Arguments and errors: `depth_in_camera`.

    Each depth pixel is a patch that faces its camera: it covers the pixels of `camera` whose centres lie in the
    upright rectangle around the projections of its corners, so a finer or rolled image has no gaps. The nearest patch
    wins.
    """
    if depth_m.shape != depth_camera.size_hw:
        raise ValueError(
            f"depth: expected {depth_camera.width} x {depth_camera.height} px, as its camera info, got "
            f"{depth_m.shape[1]} x {depth_m.shape[0]}"
        )
    transform = _rigid(depth_to_camera)
    rows, columns = np.nonzero(np.isfinite(depth_m) & (depth_m > 0))
    depth = depth_m[rows, columns].astype(np.float64)
    corners = corner_rays(depth_camera)
    sides = [
        project(camera, _moved(corners[rows + down, columns + right], depth, transform))
        for down in (0, 1)
        for right in (0, 1)
    ]
    moved_z = _moved(pixel_rays(depth_camera)[rows, columns], depth, transform)[:, 2]
    with np.errstate(invalid="ignore"):
        first = np.ceil(np.min(sides, axis=0))
        count = np.ceil(np.max(sides, axis=0)) - first
        seen = (count > 0).all(axis=1) & (count <= _WIDEST_PX).all(axis=1) & (moved_z > 0)
        seen &= (first < camera.size_hw[::-1]).all(axis=1) & (first > -_WIDEST_PX).all(axis=1)
    first, count, near = first[seen].astype(np.int64), count[seen].astype(np.int64), moved_z[seen].astype(np.float32)
    found = np.full(camera.height * camera.width, np.inf, np.float32)
    tall = np.arange(len(first))
    for down in range(count[:, 1].max(initial=0)):
        tall = tall[count[tall, 1] > down]
        wide = tall
        for right in range(count[tall, 0].max(initial=0)):
            wide = wide[count[wide, 0] > right]
            x, y = first[wide, 0] + right, first[wide, 1] + down
            hit = (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
            np.minimum.at(found, y[hit] * camera.width + x[hit], near[wide[hit]])
    found[np.isinf(found)] = np.nan
    return found.reshape(camera.size_hw)


def _moved(rays: np.ndarray, depth: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """(n, 3): points of (n, 2) rays at (n,) depths, transformed."""
    points = np.column_stack([rays * depth[:, None], depth])
    return np.asarray(points @ transform[:3, :3].T + transform[:3, 3])


def _rigid(transform: np.ndarray) -> np.ndarray:
    matrix = np.asarray(transform, np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"extrinsics: expected a matrix of shape (4, 4), got {matrix.shape}")
    rotation = matrix[:3, :3]
    straight = np.abs(rotation @ rotation.T - np.eye(3)).max() < _RIGID and np.linalg.det(rotation) > 0
    if not (np.isfinite(matrix).all() and straight and np.array_equal(matrix[3], [0, 0, 0, 1])):
        raise ValueError(f"extrinsics: expected a rotation and translation, last row 0 0 0 1, got {matrix.tolist()}")
    return matrix
