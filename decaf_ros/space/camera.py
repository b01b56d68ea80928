"""Cameras as sensor_msgs/CameraInfo describes them: pixels to rays and points to pixels.

The pinhole camera with the distortion models plumb_bob, rational_polynomial and equidistant (a fisheye). A ray is the
point (x, y, 1) of the optical frame, so that ray * depth is the point of a depth pixel. The centre of the first pixel
is at (0, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from decaf_ros.types.checks import quoted

# Numbers of coefficients by model.
MODELS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}
_EXACT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
_BACK_PX = 0.05  # a ray must return to its pixel by this
# OpenCV 4 has another name for the function with criteria.
_undistort = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)


@dataclass(frozen=True)
class Camera:
    """The image of a calibrated camera, after binning and region of interest. Hashable, a key of caches.

    width, height: of the image, in pixels.
    fx, fy, cx, cy: in pixels of the image.
    model: a key of `MODELS`, or "" without distortion.
    coefficients: of the model, in the order of CameraInfo.
    frame_id: the optical frame.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    model: str = ""
    coefficients: tuple[float, ...] = ()
    frame_id: str = ""

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])


def camera_from_info(info: Any, rectified: bool = False) -> Camera:
    """The camera of a sensor_msgs/CameraInfo (any object with its fields).

    rectified: the image is rectified: P describes it, and it has no distortion. Otherwise K and D do.

    Raises ValueError for an empty size, a camera that is not calibrated (a matrix of zeros), a matrix that is no
    pinhole's, an unknown model, a wrong number of coefficients, a region outside the image, or a rectified image of the
    second camera of a stereo pair (P[3], P[7]), whose frame is another one.
    """
    if info.width < 1 or info.height < 1:
        raise ValueError(f"camera info: expected a width and height of at least 1, got {info.width} x {info.height}")
    fx, fy, cx, cy = _pinhole("P" if rectified else "K", info)
    model, coefficients = ("", ()) if rectified else _distortion(info.distortion_model, _floats(info.d))
    left, top, width, height = _region(info)
    # As image_geometry: the region is cut out of the full image, then pixels are binned.
    binning_x, binning_y = max(int(info.binning_x), 1), max(int(info.binning_y), 1)
    width, height = width // binning_x, height // binning_y
    if width < 1 or height < 1:
        raise ValueError(f"camera info: expected a binning within the image, got {binning_x} x {binning_y}")
    return Camera(
        width,
        height,
        fx / binning_x,
        fy / binning_y,
        (cx - left) / binning_x,
        (cy - top) / binning_y,
        model,
        coefficients,
        info.header.frame_id,
    )


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _pinhole(name: str, info: Any) -> tuple[float, float, float, float]:
    values = _floats(info.p if name == "P" else info.k)
    columns = 4 if name == "P" else 3
    if len(values) != 3 * columns:
        raise ValueError(f"camera info: expected {name} of {3 * columns} numbers, got {len(values)}")
    if not any(values):
        raise ValueError(f"camera info: expected a calibrated camera, got {name} of zeros")
    matrix = np.array(values).reshape(3, columns)
    fx, fy, cx, cy = matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]
    expected = np.zeros((3, columns))
    expected[:, :3] = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
    if not (np.isfinite(matrix).all() and fx > 0 and fy > 0 and np.array_equal(matrix, expected)):
        what = "[fx 0 cx; 0 fy cy; 0 0 1]" if columns == 3 else "[fx 0 cx 0; 0 fy cy 0; 0 0 1 0]"
        raise ValueError(f"camera info: expected {name} as {what} with fx, fy above 0, got {values}")
    return float(fx), float(fy), float(cx), float(cy)


def _distortion(model: str, values: tuple[float, ...]) -> tuple[str, tuple[float, ...]]:
    if not np.isfinite(values).all():
        raise ValueError(f"camera info: expected finite distortion coefficients, got {values}")
    # Zeros are no distortion, but for the fisheye, whose image is never that of a pinhole.
    if not any(values) and model in ("", "plumb_bob", "rational_polynomial"):
        return "", ()
    if model not in MODELS:
        raise ValueError(f"camera info: expected one of the models {', '.join(MODELS)}, got {quoted(model)}")
    if len(values) not in MODELS[model]:
        numbers = " or ".join(map(str, MODELS[model]))
        raise ValueError(f"camera info: expected {numbers} coefficients of {model}, got {len(values)}")
    return model, values


def _region(info: Any) -> tuple[int, int, int, int]:
    roi = info.roi
    left, top, width, height = int(roi.x_offset), int(roi.y_offset), int(roi.width), int(roi.height)
    if not (left or top or width or height):
        return 0, 0, int(info.width), int(info.height)
    if width < 1 or height < 1 or left + width > info.width or top + height > info.height:
        raise ValueError(
            f"camera info: expected a region within {info.width} x {info.height} px, got {width} x {height} at "
            f"({left}, {top})"
        )
    return left, top, width, height


def unproject(camera: Camera, pixels: np.ndarray) -> np.ndarray:
    """Rays of pixels. pixels: (..., 2) float, x and y. Returns (..., 2) float64, x and y at z = 1; NaN where no ray in
    front of the camera leads to the pixel, as at the far edge of a fisheye."""
    points = np.ascontiguousarray(pixels, np.float64).reshape(-1, 1, 2)
    if not camera.model:
        return ((points - (camera.cx, camera.cy)) / (camera.fx, camera.fy)).reshape(pixels.shape)
    coefficients = np.array(camera.coefficients)
    if camera.model == "equidistant":
        found = cv2.fisheye.undistortPoints(points, camera.matrix, coefficients, criteria=_EXACT)
    else:
        found = _undistort(points, camera.matrix, coefficients, R=np.eye(3), P=np.eye(3), criteria=_EXACT)
    # The inverse of a polynomial need not exist, and then an iteration ends anywhere.
    rays = np.asarray(found, np.float64).reshape(-1, 2)
    back = _distorted(camera, rays)
    with np.errstate(invalid="ignore"):
        good = np.abs(back - points.reshape(-1, 2)).max(axis=1) < _BACK_PX
    return np.where(good[:, None], rays, np.nan).reshape(pixels.shape)


def project(camera: Camera, points: np.ndarray) -> np.ndarray:
    """Pixels of points. points: (n, 3) metres in the optical frame. Returns (n, 2) float64, x and y; NaN behind the
    camera, and where a distorted camera's polynomial does not hold any more, beyond the corners of its image."""
    points = np.asarray(points, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        rays = points[:, :2] / points[:, 2:]
    front = points[:, 2] > 0
    if not camera.model:
        pixels = rays * (camera.fx, camera.fy) + (camera.cx, camera.cy)
    else:
        front &= np.einsum("ni,ni->n", rays, rays) <= _reach(camera)
        pixels = _distorted(camera, np.where(front[:, None], rays, 0.0))
    return np.where(front[:, None], pixels, np.nan)


def _distorted(camera: Camera, rays: np.ndarray) -> np.ndarray:
    """Pixels of (n, 2) rays of a distorted camera, (n, 2)."""
    zero, coefficients = np.zeros(3), np.array(camera.coefficients)
    if camera.model == "equidistant":
        points = np.ascontiguousarray(rays).reshape(-1, 1, 2)
        return np.asarray(cv2.fisheye.distortPoints(points, camera.matrix, coefficients).reshape(-1, 2))
    points = np.column_stack([rays, np.ones(len(rays))])
    return np.asarray(cv2.projectPoints(points, zero, zero, camera.matrix, coefficients)[0].reshape(-1, 2))


@lru_cache(maxsize=4)
def pixel_rays(camera: Camera) -> np.ndarray:
    """(H, W, 2) float32: the rays of all pixels, see `unproject`. Kept for the last four cameras; read-only."""
    columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = unproject(camera, np.stack([columns, rows], axis=-1)).astype(np.float32)
    rays.flags.writeable = False
    return rays


@lru_cache(maxsize=4)
def corner_rays(camera: Camera) -> np.ndarray:
    """(H + 1, W + 1, 2) float64: the rays of the pixels' corners; [r, c] is the upper left one of pixel (c, r)."""
    columns, rows = np.meshgrid(np.arange(camera.width + 1) - 0.5, np.arange(camera.height + 1) - 0.5)
    rays = unproject(camera, np.stack([columns, rows], axis=-1))
    rays.flags.writeable = False
    return rays


@lru_cache(maxsize=16)
def _reach(camera: Camera) -> float:
    """The largest square of a ray's length among the pixels, with a pixel's margin."""
    rays = corner_rays(camera)
    return float(np.nanmax(np.einsum("hwi,hwi->hw", rays, rays))) * 1.01
