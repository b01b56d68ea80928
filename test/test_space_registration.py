"""Registration against a loop over pixels, and what is refused."""

from __future__ import annotations

import itertools
import math

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from decaf_ros.space.camera import Camera
from decaf_ros.space.registration import depth_in_camera, register

DEPTH = Camera(40, 30, 38.0, 38.0, 19.6, 14.4, frame_id="depth_optical")
PLAIN = Camera(64, 48, 61.0, 61.0, 31.5, 23.5, frame_id="color_optical")
BENT = Camera(64, 48, 61.0, 61.0, 31.5, 23.5, "plumb_bob", (-0.2, 0.05, 0.001, -0.002, 0.0), "color_optical")
COARSE = Camera(20, 15, 19.0, 19.0, 9.5, 7.0, frame_id="color_optical")


def transform(degrees: tuple[float, float, float], moved: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = moved
    return matrix


def scene() -> np.ndarray:
    """A slope with a box in front of it and invalid pixels."""
    rows, columns = np.indices(DEPTH.size_hw)
    depth = (1.2 + 0.01 * rows + 0.004 * columns).astype(np.float32)
    depth[8:20, 12:25] = 0.6
    depth[25:, :5] = np.nan
    depth[2, 3] = 0.0
    return depth


def by_loop(depth: np.ndarray, camera: Camera, matrix: np.ndarray) -> np.ndarray:
    """Each depth pixel as a patch around its four projected corners; the nearest wins."""
    found = np.full(camera.size_hw, np.nan)
    zero, coefficients = np.zeros(3), np.array(camera.coefficients or (0.0,) * 5)
    for row in range(depth.shape[0]):
        for column in range(depth.shape[1]):
            z = float(depth[row, column])
            if not z > 0:
                continue

            def moved(x: float, y: float, z: float = z) -> np.ndarray:
                ray = np.array([(x - DEPTH.cx) / DEPTH.fx, (y - DEPTH.cy) / DEPTH.fy, 1.0])
                return matrix[:3, :3] @ (ray * z) + matrix[:3, 3]

            ends = []
            for right, down in itertools.product((-0.5, 0.5), repeat=2):
                corner = moved(column + right, row + down)
                ends.append(cv2.projectPoints(corner, zero, zero, camera.matrix, coefficients)[0].ravel())
            (left, top), (right, bottom) = np.min(ends, axis=0), np.max(ends, axis=0)
            new_z = moved(column, row)[2]
            for y in range(math.ceil(top), math.ceil(bottom)):
                for x in range(math.ceil(left), math.ceil(right)):
                    if 0 <= x < camera.width and 0 <= y < camera.height and not found[y, x] <= new_z:
                        found[y, x] = new_z
    return found


@pytest.mark.parametrize("camera", [PLAIN, BENT, COARSE], ids=["finer", "distorted", "coarser"])
def test_registration_equals_a_loop_over_pixels(camera: Camera):
    depth, matrix = scene(), transform((0.7, -1.2, 0.4), (0.055, 0.004, -0.012))
    expected = by_loop(depth, camera, matrix)
    assert np.isfinite(expected).mean() > 0.6 and np.isnan(expected).any()
    np.testing.assert_allclose(register(depth, DEPTH, camera, matrix), expected, rtol=1e-5)


@pytest.mark.parametrize("roll", [0, 5, 30, 45])
def test_a_rolled_camera_leaves_no_gaps(roll: float):
    depth = np.full(DEPTH.size_hw, 1.0, np.float32)
    found = register(depth, DEPTH, COARSE, transform((0, 0, roll), (0, 0, 0)))
    inner = found[4:-4, 7:-7]
    assert (
        np.isfinite(inner).all()
        and np.isfinite(register(depth, DEPTH, PLAIN, transform((0, 0, roll), (0, 0, 0)))[12:-12, 22:-22]).all()
    )


def test_a_near_box_hides_what_is_behind_it():
    found = register(scene(), DEPTH, PLAIN, transform((0, 0, 0), (0.055, 0, 0)))
    # The second camera, 5.5 cm to the left, sees the box farther right, and all of it.
    expected = np.array([0.055 / 0.6 * PLAIN.fx + (18.0 - DEPTH.cx) / DEPTH.fx * PLAIN.fx + PLAIN.cx, PLAIN.cy])
    x, y = np.rint(expected).astype(int)
    assert found[y, x] == pytest.approx(0.6)
    near = np.isclose(found, 0.6)
    assert near.sum() == pytest.approx(13 * 12 * (PLAIN.fx / DEPTH.fx) ** 2, rel=0.1)
    assert not np.isnan(found[near]).any()


def test_the_same_camera_changes_nothing():
    depth = scene()
    expected = np.where(depth > 0, depth, np.nan)
    np.testing.assert_allclose(register(depth, DEPTH, DEPTH, np.eye(4)), expected, rtol=1e-6)


def test_a_pixel_at_the_lens_covers_nothing():
    depth = scene()
    depth[10, 10], depth[11, 11] = 1e-6, 1e-3
    matrix = transform((0, 0, 0), (0.001, 0, 0.0))
    without = np.where(np.isin(depth, [np.float32(1e-6), np.float32(1e-3)]), np.nan, depth)
    np.testing.assert_array_equal(register(depth, DEPTH, PLAIN, matrix), register(without, DEPTH, PLAIN, matrix))


def test_nothing_valid_gives_nothing():
    assert np.isnan(register(np.full(DEPTH.size_hw, np.nan, np.float32), DEPTH, PLAIN, np.eye(4))).all()


def test_registered_depth_is_used_as_it_is():
    depth = np.ones(PLAIN.size_hw, np.float32)
    assert depth_in_camera(depth, "color_optical", PLAIN) is depth
    assert depth_in_camera(depth, "/color_optical", PLAIN) is depth


def test_depth_of_another_camera_needs_the_extrinsics():
    with pytest.raises(ValueError, match=r"expected 64 x 48 px in frame 'color_optical', .*, got 40 x 30 in 'depth"):
        depth_in_camera(scene(), "depth_optical", PLAIN)
    same_size = np.ones(PLAIN.size_hw, np.float32)
    with pytest.raises(ValueError, match="in 'depth_optical'; use the registered topic"):
        depth_in_camera(same_size, "depth_optical", PLAIN)
    with pytest.raises(ValueError, match="got 40 x 30"):
        depth_in_camera(scene(), "color_optical", PLAIN, depth_camera=DEPTH)
    found = depth_in_camera(scene(), "depth_optical", PLAIN, DEPTH, np.eye(4))
    np.testing.assert_array_equal(found, register(scene(), DEPTH, PLAIN, np.eye(4)))


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (np.eye(3), r"expected a matrix of shape \(4, 4\), got \(3, 3\)"),
        (np.diag([2.0, 2, 2, 1]), "expected a rotation and translation"),
        (np.diag([1.0, 1, -1, 1]), "expected a rotation and translation"),
        (np.eye(4) * np.nan, "expected a rotation and translation"),
        (np.eye(4) + np.eye(4)[[3, 0, 1, 2]] * [[0], [0], [0], [1]], "last row 0 0 0 1"),
    ],
)
def test_a_transform_that_is_not_rigid_is_refused(matrix: np.ndarray, error: str):
    with pytest.raises(ValueError, match=error):
        register(scene(), DEPTH, PLAIN, matrix)


def test_depth_of_another_size_than_its_camera_is_refused():
    with pytest.raises(ValueError, match="expected 40 x 30 px, as its camera info, got 64 x 48"):
        register(np.ones(PLAIN.size_hw, np.float32), DEPTH, PLAIN, np.eye(4))
