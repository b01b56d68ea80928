"""Which pixels of a mask count, on scenes made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from decaf_ros.config.space import SpaceConfig
from decaf_ros.space.surface import Surface, find_surface

HW = (60, 80)


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(HW, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def kept_pixels(mask: np.ndarray, depth: np.ndarray, **options: Any) -> np.ndarray:
    """(H, W) bool."""
    surface = find_surface(mask, depth, SpaceConfig(**options))
    return whole(surface.kept, surface)


def whole(part: np.ndarray, surface: Surface) -> np.ndarray:
    """A part's pixels in the image."""
    image = np.zeros(HW, bool)
    image[surface.rows, surface.columns] = part
    return image


def test_the_core_is_the_eroded_mask():
    mask, depth = rectangle(10, 20, 20, 30), np.ones(HW, np.float32)
    surface = find_surface(mask, depth, SpaceConfig(erode_px=3))
    np.testing.assert_array_equal(whole(surface.core, surface), rectangle(13, 23, 14, 24))
    np.testing.assert_array_equal(whole(surface.kept, surface), mask)
    assert surface.valid_share == 1.0
    places = np.flatnonzero(surface.core)
    np.testing.assert_array_equal(surface.pixels(places, HW[1]), np.flatnonzero(rectangle(13, 23, 14, 24)))


def test_the_border_of_the_image_is_no_edge_of_the_mask():
    mask = rectangle(0, 0, 20, 30)
    surface = find_surface(mask, np.ones(HW, np.float32), SpaceConfig(erode_px=2))
    np.testing.assert_array_equal(whole(surface.core, surface), rectangle(0, 0, 18, 28))


def test_invalid_depth_counts_in_the_share():
    mask, depth = rectangle(10, 10, 22, 22), np.ones(HW, np.float32)
    depth[11:16, 11:31] = np.nan  # 100 of the 400 pixels of the core
    depth[20, 20], depth[21, 21], depth[22, 22] = np.inf, 0.05, 12.0
    surface = find_surface(mask, depth, SpaceConfig())
    assert surface.valid_share == pytest.approx(297 / 400)
    assert not whole(surface.kept, surface)[[12, 20, 21, 22], [12, 20, 21, 22]].any()


def test_flying_pixels_and_background_go():
    """The mask spills 5 px over an object at 1 m, to a wall at 2 m, with mixed pixels between them."""
    thing, mask = rectangle(20, 20, 20, 40), rectangle(15, 15, 30, 50)
    depth = np.where(thing, 1.0, 2.0).astype(np.float32)
    rim = rectangle(19, 19, 22, 42) & ~thing
    depth[rim] = np.random.default_rng(0).uniform(1.1, 1.9, int(rim.sum()))
    kept = kept_pixels(mask, depth)
    assert not kept[~thing].any()
    assert kept[thing].mean() > 0.8  # its outermost pixels are beside an edge
    assert kept[21:39, 21:59].all()


def test_a_rim_of_background_at_a_similar_depth_goes():
    """It has a twentieth of the object's area, and no median tells it from a part of the object."""
    thing, mask = rectangle(20, 20, 20, 40), rectangle(18, 18, 24, 44)
    depth = (1.0 + 0.002 * np.indices(HW)[1]).astype(np.float32)
    depth[~thing] += 0.04
    kept = kept_pixels(mask, depth)
    assert not kept[~thing].any() and kept[21:39, 21:59].all()
    kept = kept_pixels(mask, depth, erode_px=0)
    assert kept[~thing].any()  # a mask whose edge is not to be trusted needs erosion


def test_an_object_behind_a_post_stays_whole():
    mask = rectangle(10, 10, 30, 60)
    depth = np.full(HW, 1.5, np.float32)
    mask[:, 38:42] = False
    surface = find_surface(mask, depth, SpaceConfig())
    np.testing.assert_array_equal(whole(surface.kept, surface), mask)


def test_specks_and_far_regions_go():
    mask, depth = rectangle(5, 5, 50, 70), np.full(HW, 1.0, np.float32)
    depth[5:55, 60:75] = 1.3  # a gap that shows the background
    depth[20:23, 20:23] = 0.9  # a speck: a fly
    kept = kept_pixels(mask, depth)
    assert kept[:, 6:59][6:18].all() and not kept[:, 60:].any() and not kept[20:23, 20:23].any()


@pytest.mark.parametrize("slope", [(0.05, 0.0), (0.0, 0.05), (0.05, 0.05), (-0.005, 0.05)])
def test_a_steep_surface_is_no_edge(slope: tuple[float, float]):
    """A floor, a wall seen from the side. Steps are larger than 2 % of most depths."""
    rows, columns = np.indices(HW)
    mask = rectangle(10, 10, 40, 60)
    depth = (1.0 + slope[0] * rows + slope[1] * columns).astype(np.float32)
    assert kept_pixels(mask, depth).sum() == mask.sum()


def test_a_noisy_surface_is_no_edge():
    mask = rectangle(10, 10, 40, 60)
    noisy = (4.0 + np.random.default_rng(0).normal(0, 0.08, HW)).astype(np.float32)
    surface = find_surface(mask, noisy, SpaceConfig())
    assert surface.kept.sum() > 0.95 * mask.sum()


def test_smoothing_takes_kept_depths_only():
    mask, depth = rectangle(10, 10, 20, 20), np.full(HW, 3.0, np.float32)
    depth[mask] = 1.0 + np.random.default_rng(0).normal(0, 0.004, 400)
    depth[15, 15] = np.nan
    surface = find_surface(mask, depth, SpaceConfig())
    smooth = surface.smooth_depth()[surface.kept]
    assert np.abs(smooth - 1.0).max() < 0.006 and smooth.std() < 0.0015


def test_nothing_to_measure():
    assert find_surface(np.zeros(HW, bool), np.ones(HW, np.float32), SpaceConfig()) is None
    surface = find_surface(rectangle(10, 10, 20, 20), np.full(HW, np.nan, np.float32), SpaceConfig())
    assert surface.valid_share == 0 and not surface.kept.any()
    surface = find_surface(rectangle(10, 10, 2, 30), np.ones(HW, np.float32), SpaceConfig())
    assert surface.valid_share == 0 and not surface.core.any()  # erosion leaves nothing
    surface = find_surface(rectangle(10, 10, 1, 1), np.ones(HW, np.float32), SpaceConfig(erode_px=0))
    assert surface.valid_share == 1 and surface.core.sum() == 1


def test_the_configuration_is_checked():
    with pytest.raises(ValueError, match=r"SpaceConfig.min_m: expected less than max_m \(0.5\), got 0.5"):
        SpaceConfig(min_m=0.5, max_m=0.5)
    with pytest.raises(ValueError, match="erode_px: expected a value in"):
        SpaceConfig(erode_px=-1)
