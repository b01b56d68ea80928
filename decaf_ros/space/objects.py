"""Place and size of each target, from its mask and a depth image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from decaf_ros.config.space import SpaceConfig
from decaf_ros.space.boxes import Box, fitted_box
from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.support import support_normal
from decaf_ros.space.surface import Surface, find_surface

# The nearest point is the one at this rank: the very nearest one is mostly noise.
_NEAREST_SHARE = 0.01
# Boxes, nearest points and extents are of at most so many points.
_BOX_POINTS = 800
_GOLDEN = 0.6180339887498949
# Pixels between two points of the surroundings, which reach so many of a target's sizes to all sides.
_GRID_PX, _AROUND = 4, 1.0


@dataclass(frozen=True, eq=False)
class TargetGeometry:
    """A target in the camera's optical frame, in metres. Without enough valid depth it has a share only.

    valid_share: valid depths among the pixels of the eroded mask, in [0, 1].
    points: (n, 3) float32, the surface within the eroded mask.
    pixels: (n,) int64, their pixels: row * width + column.
    position: (3,) float64, the mean of the points: the middle of the visible surface. None: no position.
    nearest: (3,) float64, a surface point: its distance to the camera is the first percentile of all.
    extent: (3,) float64, the size of the surface along the camera's axes.
    box: around the surface in the whole mask; the hidden side of the object is not in it.
    """

    valid_share: float
    points: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    position: np.ndarray | None = None
    nearest: np.ndarray | None = None
    extent: np.ndarray | None = None
    box: Box | None = None


class TargetMeasurer:
    """Measures the targets of a stream, frame by frame. It keeps the axes of each target's last box."""

    def __init__(self, config: SpaceConfig | None = None) -> None:
        self.config = config or SpaceConfig()
        self._axes: dict[int, np.ndarray] = {}
        self._up: np.ndarray | None = None

    def measure(
        self, masks: Mapping[int, np.ndarray], depth_m: np.ndarray, camera: Camera
    ) -> dict[int, TargetGeometry]:
        """Measures all targets of a frame.

        Args:
            masks: (H, W) bool by the target's id. The axes of a target that is not in it are forgotten; those of an
                empty mask are kept.
            depth_m: (H, W) float32 in metres, NaN invalid (`depth_in_camera`).
            camera: of the masks and the depth.

        Raises:
            ValueError: a depth image or mask of another size than the camera's image.
        """
        for name, image in (("depth", depth_m), *((f"mask of target {key}", mask) for key, mask in masks.items())):
            if image.shape != camera.size_hw:
                raise ValueError(f"{name}: expected shape {camera.size_hw}, as the camera info, got {image.shape}")
        rays = pixel_rays(camera)
        surfaces = {key: find_surface(mask, depth_m, self.config) for key, mask in masks.items()}
        self._up = support_normal(_surroundings(masks, surfaces, depth_m, rays, self.config), self._up)
        self._axes = {key: axes for key, axes in self._axes.items() if key in masks}
        return {key: self._geometry(key, surface, rays) for key, surface in surfaces.items()}

    def _geometry(self, key: int, surface: Surface | None, rays: np.ndarray) -> TargetGeometry:
        if surface is None:
            return TargetGeometry(0.0)
        seen = ~np.isnan(rays[surface.rows, surface.columns, 0])  # a fisheye's corners may be dark
        core, kept = np.flatnonzero(surface.core & seen), np.flatnonzero(surface.kept & seen)
        if len(core) < self.config.min_points or surface.valid_share < self.config.min_share:
            return TargetGeometry(surface.valid_share)
        pixels = surface.pixels(core, rays.shape[1])
        points = _points(rays.reshape(-1, 2).take(pixels, axis=0), surface.depth.take(core))
        # Noise would enlarge what is measured at the ends of the points.
        some = _even(kept)
        smooth = _points(
            rays.reshape(-1, 2).take(surface.pixels(some, rays.shape[1]), axis=0), surface.smooth_depth().take(some)
        )
        box = fitted_box(smooth.T, self._up, self._axes.get(key))
        self._axes[key] = box.axes
        distances = np.einsum("ij,ij->j", smooth, smooth)
        rank = int(_NEAREST_SHARE * len(distances))
        return TargetGeometry(
            surface.valid_share,
            points.T,
            pixels,
            position=points.mean(axis=1, dtype=np.float64),
            nearest=smooth[:, np.argpartition(distances, rank)[rank]].astype(np.float64),
            extent=np.ptp(smooth, axis=1).astype(np.float64),
            box=box,
        )


def _even(places: np.ndarray) -> np.ndarray:
    """At most `_BOX_POINTS` of (n,) values. Multiples of the golden ratio are even, and no row length divides them."""
    if len(places) <= _BOX_POINTS:
        return places
    return np.asarray(places[(np.arange(_BOX_POINTS) * _GOLDEN % 1 * len(places)).astype(np.int64)])


def _points(rays: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(3, n) float32, rows of coordinates: points of (n, 2) rays at (n,) depths."""
    return np.stack([rays[:, 0] * depth, rays[:, 1] * depth, depth])


def _surroundings(
    masks: Mapping[int, np.ndarray],
    surfaces: Mapping[int, Surface | None],
    depth_m: np.ndarray,
    rays: np.ndarray,
    config: SpaceConfig,
) -> np.ndarray:
    """(n, 3) float32: points around the targets, on none of them."""
    depth = depth_m[::_GRID_PX, ::_GRID_PX]
    near = np.zeros(depth.shape, bool)
    found = {key: surface for key, surface in surfaces.items() if surface is not None}
    for surface in found.values():
        near[_on_grid(surface.rows, _AROUND), _on_grid(surface.columns, _AROUND)] = True
    for key, surface in found.items():
        part = _on_grid(surface.rows), _on_grid(surface.columns)
        near[part] &= ~masks[key][::_GRID_PX, ::_GRID_PX][part]
    near &= (depth >= config.min_m) & (depth <= config.max_m)
    rays = rays[::_GRID_PX, ::_GRID_PX]
    near &= ~np.isnan(rays[..., 0])
    return np.asarray(_points(rays[near], depth[near]).T)


def _on_grid(part: slice, around: float = 0.0) -> slice:
    """Rows or columns with so many of their number before and after them, as rows or columns of the grid."""
    more = int(around * (part.stop - part.start))
    return slice(max(part.start - more, 0) // _GRID_PX, (part.stop + more) // _GRID_PX + 1)
