"""Positions and boxes of targets in drawn scenes with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from decaf_ros.config.space import SpaceConfig
from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.objects import TargetMeasurer

CAMERA = Camera(320, 240, 300.0, 300.0, 159.5, 119.5, frame_id="camera_optical")
BENT = Camera(320, 240, 300.0, 300.0, 159.5, 119.5, "plumb_bob", (-0.25, 0.08, 0.001, 0.0, 0.0), "camera_optical")
FISHEYE = Camera(320, 240, 220.0, 220.0, 159.5, 119.5, "equidistant", (0.02, -0.01, 0.0, 0.0), "camera_optical")
# A table that tilts away from the camera; the boxes stand on it.
TILT = Rotation.from_euler("x", 125, degrees=True)
TABLE_POINT = np.array([0.0, 0.1, 1.0])


def draw(camera: Camera, boxes: list[tuple[np.ndarray, np.ndarray, float]]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Ray-traces boxes on a table. boxes: (centre on the table in its plane (2,), size (3,), yaw in degrees).

    Returns (H, W) float32 depth and (H, W) bool masks by index.
    """
    rays = np.concatenate([pixel_rays(camera).astype(float), np.ones((*camera.size_hw, 1))], axis=-1)
    up = TILT.as_matrix()[:, 2]
    depth = (up @ TABLE_POINT) / (rays @ up)
    depth[depth <= 0] = np.inf
    owner = np.full(camera.size_hw, -1)
    for index, (place, size, yaw) in enumerate(boxes):
        axes, centre = pose(place, size, yaw)
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = ((sign * size / 2 + centre @ axes) / (rays @ axes) for sign in (-1, 1))
        enter, leave = np.minimum(a, b).max(axis=-1), np.maximum(a, b).min(axis=-1)
        hit = (enter < leave) & (enter > 0) & (enter < depth)
        depth[hit], owner[hit] = enter[hit], index
    masks = {index: owner == index for index in range(len(boxes))}
    return np.where(np.isfinite(depth), depth, np.nan).astype(np.float32), masks


def pose(place: np.ndarray, size: np.ndarray, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) axes as columns and (3,) centre in the camera's frame."""
    axes = (TILT * Rotation.from_euler("z", yaw, degrees=True)).as_matrix()
    return axes, TABLE_POINT + TILT.apply([*place, size[2] / 2])


SIZE = np.array([0.22, 0.12, 0.10])


@pytest.mark.parametrize("size", [(30, 200), (100, 80), (60, 160), (200, 50), (20, 20)])
def test_the_whole_of_an_upright_rectangle_is_measured(size: tuple[int, int]):
    """A sample of its pixels must not fall into a few of its columns."""
    rows, columns = size
    mask = np.zeros(CAMERA.size_hw, bool)
    mask[20 : 20 + rows, 30 : 30 + columns] = True
    found = TargetMeasurer().measure({0: mask}, np.full(CAMERA.size_hw, 1.0, np.float32), CAMERA)[0]
    width, height = (columns - 1) / CAMERA.fx, (rows - 1) / CAMERA.fy
    np.testing.assert_allclose(found.extent[:2], (width, height), rtol=0.03, atol=1 / CAMERA.fx)
    np.testing.assert_allclose(np.sort(found.box.size)[1:], np.sort((width, height)), rtol=0.04, atol=1 / CAMERA.fx)


@pytest.mark.parametrize("camera", [CAMERA, BENT, FISHEYE], ids=["pinhole", "plumb_bob", "fisheye"])
@pytest.mark.parametrize("yaw", [0, 25, 70])
def test_a_box_on_a_table(camera: Camera, yaw: float):
    depth, masks = draw(camera, [(np.array([0.02, 0.05]), SIZE, yaw)])
    assert masks[0].sum() > 1200
    found = TargetMeasurer().measure(masks, depth, camera)[0]
    axes, centre = pose(np.array([0.02, 0.05]), SIZE, yaw)
    assert found.valid_share == 1.0
    # All three directions are seen, so the box is the whole object's, but for pixels of 4 mm.
    named = np.abs(found.box.axes.T @ axes).argmax(axis=1)
    np.testing.assert_allclose(found.box.size, SIZE[named], atol=0.012)
    np.testing.assert_allclose(found.box.centre, centre, atol=0.01)
    assert np.abs(found.box.axes.T @ axes).max(axis=1).min() > np.cos(np.radians(6))
    # The points lie on its surface, the position among them.
    local = np.abs((found.points - centre) @ axes) / (SIZE / 2)
    np.testing.assert_allclose(local.max(axis=1), 1, atol=0.02)
    rays = np.concatenate([pixel_rays(camera), np.ones((*camera.size_hw, 1), np.float32)], axis=-1).reshape(-1, 3)
    np.testing.assert_allclose(found.points, rays[found.pixels] * depth.reshape(-1, 1)[found.pixels], rtol=1e-5)
    np.testing.assert_allclose(found.position, found.points.mean(axis=0), atol=1e-6)
    distances = np.linalg.norm(found.points, axis=1)
    assert np.linalg.norm(found.nearest) == pytest.approx(distances.min(), abs=0.02)
    np.testing.assert_allclose(found.extent, np.ptp(found.points, axis=0), atol=0.02)


def test_a_turning_object_keeps_the_names_of_its_sides():
    measurer, last, first = TargetMeasurer(), None, None
    for yaw in range(0, 360, 4):
        depth, masks = draw(CAMERA, [(np.array([0.0, 0.05]), SIZE, float(yaw))])
        box = measurer.measure(masks, depth, CAMERA)[0].box
        axes, _ = pose(np.zeros(2), SIZE, yaw)
        if last is not None:
            assert np.degrees(Rotation.from_matrix(box.axes @ last.T).magnitude()) < 15, yaw
        local = axes.T @ box.axes
        first = local if first is None else first
        assert np.degrees(Rotation.from_matrix(local @ first.T).magnitude()) < 15, yaw
        last = box.axes


def test_axes_are_kept_while_a_target_is_hidden_and_forgotten_without_it():
    measurer = TargetMeasurer()
    depth, masks = draw(CAMERA, [(np.array([0.0, 0.05]), SIZE, 0.0)])
    start = measurer.measure(masks, depth, CAMERA)[0].box.axes
    for yaw in range(6, 61, 6):
        turned, turned_masks = draw(CAMERA, [(np.array([0.0, 0.05]), SIZE, float(yaw))])
        kept = measurer.measure(turned_masks, turned, CAMERA)[0].box.axes
    hidden = measurer.measure({0: np.zeros(CAMERA.size_hw, bool)}, depth, CAMERA)[0]
    assert hidden.position is None and hidden.valid_share == 0
    again = measurer.measure(turned_masks, turned, CAMERA)[0].box.axes
    np.testing.assert_allclose(again, kept, atol=0.02)
    assert np.degrees(Rotation.from_matrix(again @ start.T).magnitude()) > 50
    measurer.measure({}, depth, CAMERA)
    fresh = measurer.measure(turned_masks, turned, CAMERA)[0].box.axes
    np.testing.assert_allclose(fresh, TargetMeasurer().measure(turned_masks, turned, CAMERA)[0].box.axes)


def test_several_targets_are_measured_apart():
    places = [np.array([-0.2, 0.05]), np.array([0.2, 0.05])]
    depth, masks = draw(CAMERA, [(place, np.array([0.1, 0.1, 0.12]), 10.0) for place in places])
    found = TargetMeasurer().measure(masks, depth, CAMERA)
    for index, place in enumerate(places):
        alone = TargetMeasurer().measure({index: masks[index]}, depth, CAMERA)[index]
        np.testing.assert_array_equal(found[index].position, alone.position)
        np.testing.assert_allclose(found[index].box.centre, pose(place, np.array([0.1, 0.1, 0.12]), 0)[1], atol=0.012)


def test_background_in_the_mask_does_not_move_the_position():
    depth, masks = draw(CAMERA, [(np.array([0.0, 0.05]), np.array([0.12, 0.12, 0.3]), 0.0)])
    exact = TargetMeasurer().measure(masks, depth, CAMERA)[0]
    rows, columns = np.nonzero(masks[0])
    spilled = masks[0].copy()
    spilled[rows.min() - 8 : rows.min() + 8, columns.min() : columns.max()] = True  # the table behind its top
    found = TargetMeasurer().measure({0: spilled}, depth, CAMERA)[0]
    assert np.linalg.norm(found.position - exact.position) < 0.004
    np.testing.assert_allclose(found.box.size, exact.box.size, atol=0.02)


def test_too_little_valid_depth_gives_no_position():
    depth, masks = draw(CAMERA, [(np.array([0.0, 0.05]), SIZE, 0.0)])
    measurer = TargetMeasurer(SpaceConfig(min_points=400, min_share=0.2))
    rows, columns = np.nonzero(masks[0])
    assert measurer.measure(masks, depth, CAMERA)[0].position is not None
    some = np.where(np.arange(len(rows)) < 300, depth[rows, columns], np.nan)
    few = depth.copy()
    few[rows, columns] = some
    found = measurer.measure(masks, few, CAMERA)[0]
    assert 0 < found.valid_share < 0.2
    assert found.position is found.nearest is found.extent is found.box is None
    assert found.points.shape == (0, 3) and found.pixels.shape == (0,)
    found = measurer.measure(masks, np.full_like(depth, np.nan), CAMERA)[0]
    assert found.valid_share == 0 and found.position is None
    # Enough points, but a small share of them.
    found = TargetMeasurer(SpaceConfig(min_points=3, min_share=0.2)).measure(masks, few, CAMERA)[0]
    assert found.position is None
    found = TargetMeasurer(SpaceConfig(min_points=3, min_share=0.0)).measure(masks, few, CAMERA)[0]
    assert found.position is not None


def test_a_target_in_the_dark_corner_of_a_fisheye_has_no_position():
    dark = Camera(160, 120, 45.0, 45.0, 79.5, 59.5, "equidistant", (0.0, 0.0, 0.0, 0.0))
    assert np.isnan(pixel_rays(dark)[:8, :8]).all()
    mask = np.zeros(dark.size_hw, bool)
    mask[:12, :12] = True
    found = TargetMeasurer().measure({1: mask}, np.ones(dark.size_hw, np.float32), dark)[1]
    assert found.position is None


def test_other_sizes_are_refused():
    mask, depth = np.zeros((240, 320), bool), np.ones((240, 320), np.float32)
    with pytest.raises(ValueError, match=r"depth: expected shape \(240, 320\), as the camera info, got \(120, 160\)"):
        TargetMeasurer().measure({1: mask}, depth[::2, ::2], CAMERA)
    with pytest.raises(ValueError, match=r"mask of target 1: expected shape \(240, 320\)"):
        TargetMeasurer().measure({1: mask[::2]}, depth, CAMERA)
