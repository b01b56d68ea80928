"""Place and size of each target, from its mask and a depth image.

Which pixels of a mask count (`clean_mask`):

1. The mask without `erode_px` at its edge, and depths within `min_m` and `max_m`.
2. No pixel beside an edge in depth: a step to one of its four neighbours that is larger than `edge_step` of its depth,
   and than six times the median step in the mask (noise, or a slope). Flying pixels lie between two surfaces, with a
   step to both.
3. The largest connected region of the rest, and regions of at least 5 % of its size whose median depth is within 3
   standard deviations (1.4826 MAD) and a step of its median: an object behind a post stays whole, the background in
   a gap goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

from decaf_ros.config.space import SpaceConfig
from decaf_ros.space.boxes import Box, fitted_box
from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.support import support_normal

_NOISE_STEPS = 6.0
_REGION_SHARE = 0.05
_DEVIATIONS, _DEVIATION_OF_MAD = 3.0, 1.4826
# The nearest point is the one at this rank: the very nearest is the one with the most noise.
_NEAREST_SHARE = 0.01
# Boxes, extents and nearest points are those of depth averaged over so many pixels: noise would enlarge them.
_SMOOTH_PX = 5
# A box is fitted to at most about this many points; medians take so many values.
_BOX_POINTS, _MEDIAN_OF = 1500, 2000
# Pixels between two points of the surroundings, which reach this share of a target's size around it.
_GRID_PX, _AROUND = 6, 0.5


@dataclass(frozen=True, eq=False)
class TargetGeometry:
    """A target in the camera's optical frame, in metres. Without enough valid points it has no position.

    valid_share: valid depths among the pixels of the eroded mask, in [0, 1].
    points: (n, 3) float32, the surface points.
    pixels: (n,) int64, their pixels: row * width + column.
    position: (3,) float64, the mean of the points: the middle of the visible surface. None: no position.
    nearest: (3,) float64, a surface point: of all distances to the camera, the first percentile.
    extent: (3,) float64, the size of the points along the camera's axes.
    box: around the points; the hidden side of the object is not in it.
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
        """Measures all targets of a frame. Axes of targets that are not in `masks` are forgotten.

        Args:
            masks: (H, W) bool by the target's id.
            depth_m: (H, W) float32 in metres, NaN invalid (`depth_in_camera`).
            camera: of the masks and the depth.

        Raises:
            ValueError: a depth image or mask of another size than the camera's image.
        """
        for name, image in (("depth", depth_m), *((f"mask of target {key}", mask) for key, mask in masks.items())):
            if image.shape != camera.size_hw:
                raise ValueError(f"{name}: expected shape {camera.size_hw}, as the camera info, got {image.shape}")
        rays = pixel_rays(camera)
        config = self.config
        boxes = {key: cv2.boundingRect(mask.view(np.uint8)) for key, mask in masks.items()}
        self._up = support_normal(_surroundings(masks, boxes, depth_m, rays, config), self._up)
        found = {}
        for key, mask in masks.items():
            part, kept, share = clean_mask(mask, boxes[key], depth_m, config)
            found[key] = TargetGeometry(share)
            kept &= ~np.isnan(rays[part][..., 0])  # beyond the field that a fisheye's model describes
            if np.count_nonzero(kept) >= config.min_points:
                found[key] = self._geometry(key, share, part, kept, depth_m[part], camera)
        self._axes = {key: geometry.box.axes for key, geometry in found.items() if geometry.box is not None} | {
            key: axes for key, axes in self._axes.items() if key in masks and found[key].box is None
        }
        return found

    def _geometry(
        self, key: int, share: float, part: tuple[slice, slice], kept: np.ndarray, depth: np.ndarray, camera: Camera
    ) -> TargetGeometry:
        rows, columns = np.nonzero(kept)
        across = pixel_rays(camera)[part][rows, columns]
        raw, smooth = depth[rows, columns], _smoothed(depth, kept)[rows, columns]
        # Rows of coordinates: sums along them are fast.
        points, calm = (np.stack([across[:, 0] * z, across[:, 1] * z, z]) for z in (raw, smooth))
        box = fitted_box(calm[:, :: -(-len(rows) // _BOX_POINTS)].T, self._up, self._axes.get(key))
        distances = np.einsum("ij,ij->j", calm, calm)
        rank = int(_NEAREST_SHARE * len(rows))
        return TargetGeometry(
            share,
            points.T,
            (rows + part[0].start) * camera.width + columns + part[1].start,
            position=points.mean(axis=1, dtype=np.float64),
            nearest=calm[:, np.argpartition(distances, rank)[rank]].astype(np.float64),
            extent=np.ptp(calm, axis=1).astype(np.float64),
            box=_with_rim(box, camera, self.config.erode_px),
        )


def clean_mask(
    mask: np.ndarray, box_xywh: tuple[int, int, int, int], depth_m: np.ndarray, config: SpaceConfig
) -> tuple[tuple[slice, slice], np.ndarray, float]:
    """The pixels of a mask that show the target's surface (see the module).

    Args:
        mask: (H, W) bool.
        box_xywh: its bounding box in pixels.
        depth_m: (H, W) float32 in metres, NaN invalid.

    Returns:
        The part of the image that holds them, as (rows, columns); (h, w) bool within it; and the share of valid depths
        among the pixels of the eroded mask.
    """
    x, y, width, height = box_xywh
    radius = config.erode_px
    left, top = max(x - radius, 0), max(y - radius, 0)
    part = np.s_[top : y + height + radius, left : x + width + radius]
    inner = cv2.erode(mask[part].view(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)).view(bool)
    area = np.count_nonzero(inner)
    if area == 0:
        return part, inner, 0.0
    depth = depth_m[part]
    kept = inner & (depth >= config.min_m) & (depth <= config.max_m)
    share = np.count_nonzero(kept) / area
    depth = np.where(kept, depth, np.float32(np.nan))
    across, down = np.abs(np.diff(depth, axis=1)), np.abs(np.diff(depth, axis=0))
    steps = across[~np.isnan(across)]
    noise = float(np.median(steps[:: -(-len(steps) // _MEDIAN_OF)])) if len(steps) else 0.0
    limit = np.maximum(config.edge_step * depth, _NOISE_STEPS * noise)
    jump = across > limit[:, 1:]
    kept[:, 1:] &= ~jump
    kept[:, :-1] &= ~jump
    jump = down > limit[1:]
    kept[1:] &= ~jump
    kept[:-1] &= ~jump
    return part, _regions(kept, depth, config), share


def _regions(kept: np.ndarray, depth: np.ndarray, config: SpaceConfig) -> np.ndarray:
    """Rule 3 of the module: (H, W) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(kept.view(np.uint8), connectivity=4)
    if count <= 2:
        return kept
    areas = stats[1:, cv2.CC_STAT_AREA]
    main = int(areas.argmax()) + 1
    middle, deviation = _spread(depth[labels == main])
    most = _DEVIATIONS * deviation + config.edge_step * middle
    good = np.zeros(count, bool)
    good[main] = True
    for other in np.flatnonzero(areas >= _REGION_SHARE * areas[main - 1]) + 1:
        good[other] |= abs(_spread(depth[labels == other])[0] - middle) <= most
    return good[labels]


def _smoothed(depth: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(H, W) float32: the mean of the kept depths around each kept pixel."""
    weights = kept.astype(np.float32)
    window, border = (_SMOOTH_PX, _SMOOTH_PX), cv2.BORDER_CONSTANT
    total = cv2.boxFilter(np.where(kept, depth, np.float32(0)), -1, window, normalize=False, borderType=border)
    count = cv2.boxFilter(weights, -1, window, normalize=False, borderType=border)
    return total / np.maximum(count, 1)


def _spread(values: np.ndarray) -> tuple[float, float]:
    """Median, and standard deviation by the median absolute deviation."""
    some = values[:: -(-len(values) // _MEDIAN_OF)]
    middle = np.median(some)
    return float(middle), float(_DEVIATION_OF_MAD * np.median(np.abs(some - middle)))


def _with_rim(box: Box, camera: Camera, erode_px: int) -> Box:
    """The box with what erosion took off at both ends, as far as its axes lie across the line of sight; and half a
    pixel, as a pixel's point is at its centre."""
    distance = np.linalg.norm(box.centre)
    across = np.sqrt(np.maximum(1 - (box.centre @ box.axes / distance) ** 2, 0))
    return Box(box.centre, box.axes, box.size + (2 * erode_px + 1) * distance / camera.fx * across)


def _surroundings(
    masks: Mapping[int, np.ndarray],
    boxes: Mapping[int, tuple[int, int, int, int]],
    depth_m: np.ndarray,
    rays: np.ndarray,
    config: SpaceConfig,
) -> np.ndarray:
    """(n, 3) float32: points around the targets, on none of them."""
    depth = depth_m[::_GRID_PX, ::_GRID_PX]
    near = np.zeros(depth.shape, bool)
    for x, y, width, height in boxes.values():
        wide, high = int(_AROUND * width), int(_AROUND * height)
        rows = slice(max(y - high, 0) // _GRID_PX, (y + height + high) // _GRID_PX + 1)
        columns = slice(max(x - wide, 0) // _GRID_PX, (x + width + wide) // _GRID_PX + 1)
        near[rows, columns] = width > 0
    for mask in masks.values():
        near &= ~mask[::_GRID_PX, ::_GRID_PX]
    near &= (depth >= config.min_m) & (depth <= config.max_m)
    depth = depth[near]
    return np.column_stack([rays[::_GRID_PX, ::_GRID_PX][near] * depth[:, None], depth])
