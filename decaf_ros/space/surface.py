"""Which pixels of a mask show the target's surface.

1. Depths within `min_m` and `max_m`.
2. No pixel beside an edge in depth: a step to one of its four neighbours in the mask that is larger than `edge_step` of
   its depth, and than six times the median step of that direction in the mask (noise, or a slope). Flying pixels lie
   between two surfaces, with a step to each.
3. No part of the rest narrower than 2 `erode_px` + 1 pixels, such as a rim of background that the mask spills over.
4. The largest connected region of what is left, and regions of at least 5 % of its size whose median depth differs from
   its median by at most 3 standard deviations (1.4826 MAD) and an edge: an object behind a post stays whole, the
   background in a gap goes.

The core is what lies in the mask without `erode_px` at its edge.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from decaf_ros.config.space import SpaceConfig

_NOISE_STEPS = 6.0
_REGION_SHARE = 0.05
_DEVIATIONS, _DEVIATION_OF_MAD = 3.0, 1.4826
_MEDIAN_OF = 1000  # values, at most about that many
_SMOOTH_PX = 5


class Surface(NamedTuple):
    """The surface in a part of the image, of h x w pixels.

    rows, columns: the part.
    kept, core: (h, w) bool. core: within `kept`.
    depth: (h, w) float32, metres.
    valid_share: valid depths among the pixels of the eroded mask, in [0, 1].
    """

    rows: slice
    columns: slice
    kept: np.ndarray
    core: np.ndarray
    depth: np.ndarray
    valid_share: float

    def pixels(self, places: np.ndarray, image_width: int) -> np.ndarray:
        """(n,) int64: the pixels in the image, row * width + column. places: (n,) in the part, counted in this way."""
        rows, columns = np.divmod(places, self.kept.shape[1])
        return np.asarray((rows + self.rows.start) * image_width + columns + self.columns.start)

    def smooth_depth(self) -> np.ndarray:
        """(h, w) float32: depth averaged over the kept ones of 5 x 5 pixels."""
        sums = _summed(np.where(self.kept, self.depth, np.float32(0)))
        return np.asarray(sums / np.maximum(_summed(self.kept.astype(np.float32)), 1))


def find_surface(mask: np.ndarray, depth_m: np.ndarray, config: SpaceConfig) -> Surface | None:
    """The surface of a target. None if its mask is empty.

    Args:
        mask: (H, W) bool.
        depth_m: (H, W) float32 in metres, NaN invalid.
    """
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    if width == 0:
        return None
    radius = config.erode_px
    rows, columns = slice(max(y - radius, 0), y + height + radius), slice(max(x - radius, 0), x + width + radius)
    mask, depth = mask[rows, columns], depth_m[rows, columns]
    inner = cv2.erode(mask.view(np.uint8), _window(config)).view(bool)
    valid = mask & (depth >= config.min_m) & (depth <= config.max_m)
    share = int(np.count_nonzero(valid & inner)) / max(int(np.count_nonzero(inner)), 1)
    kept = _regions(_without_edges(valid, depth, config), depth, config)
    return Surface(rows, columns, kept, kept & inner, np.ascontiguousarray(depth), share)


def _without_edges(valid: np.ndarray, depth: np.ndarray, config: SpaceConfig) -> np.ndarray:
    """Rule 2 of the module, (h, w) bool."""
    depth = np.where(valid, depth, np.float32(np.nan))  # no step to NaN is larger than anything
    steps = [np.abs(np.diff(depth, axis=axis)) for axis in (0, 1)]
    # By direction: a floor has large steps from row to row, none along a row.
    usual = [_middle(known) if len(known := each[~np.isnan(each)]) else 0.0 for each in steps]
    limits = [np.maximum(config.edge_step * depth, _NOISE_STEPS * step) for step in usual]
    down, across = steps[0] > limits[0][1:], steps[1] > limits[1][:, 1:]
    kept: np.ndarray = valid.copy()
    kept[1:] &= ~down
    kept[:-1] &= ~down
    kept[:, 1:] &= ~across
    kept[:, :-1] &= ~across
    return kept


def _regions(kept: np.ndarray, depth: np.ndarray, config: SpaceConfig) -> np.ndarray:
    """Rules 3 and 4 of the module, (h, w) bool."""
    wide = cv2.morphologyEx(kept.view(np.uint8), cv2.MORPH_OPEN, _window(config))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(wide, connectivity=4)
    if count <= 2:
        return np.asarray(wide.view(bool))
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # what is not kept
    main = int(areas.argmax())
    found: np.ndarray = labels == main
    others = np.flatnonzero(areas >= _REGION_SHARE * areas[main])
    if len(others) == 1:
        return found
    values = depth[found]
    middle = _middle(values)
    most = _DEVIATIONS * _DEVIATION_OF_MAD * _middle(np.abs(values - middle)) + config.edge_step * middle
    for region in others:
        here = labels == region
        if abs(_middle(depth[here]) - middle) <= most:
            found |= here
    return found


def _window(config: SpaceConfig) -> np.ndarray:
    return np.ones((2 * config.erode_px + 1,) * 2, np.uint8)


def _summed(values: np.ndarray) -> np.ndarray:
    """(h, w) float32: sums over 5 x 5 pixels."""
    window = (_SMOOTH_PX, _SMOOTH_PX)
    return np.asarray(cv2.boxFilter(values, -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT))


def _middle(values: np.ndarray) -> float:
    """The median of an even subset; np.median takes several times as long for so few."""
    some = values[:: -(-len(values) // _MEDIAN_OF)]
    return float(np.partition(some, len(some) // 2)[len(some) // 2])
