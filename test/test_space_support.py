"""The plane around the targets."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.space.support import support_normal

UP = np.array([0.1, -0.75, -0.6]) / np.linalg.norm([0.1, -0.75, -0.6])


def plane(normal: np.ndarray, count: int, rng: np.random.Generator, noise_m: float = 0.003) -> np.ndarray:
    """(n, 3): points of a plane 1 m in front of the camera, with noise along the line of sight."""
    across = np.linalg.svd(normal[None])[2][1:]
    points = rng.uniform(-0.25, 0.25, (count, 2)) @ across + (0, 0, 1.0)
    return points * (1 + rng.normal(0, noise_m, (count, 1)))


def degrees(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(np.arccos(min(a @ b, 1.0))))


def test_a_table_with_clutter_is_found_and_faces_the_camera():
    rng = np.random.default_rng(1)
    clutter = rng.uniform((-0.2, -0.2, 0.8), (0.2, 0.2, 1.1), (400, 3))
    normal = support_normal(rng.permutation(np.vstack([plane(UP, 800, rng), clutter])))
    assert degrees(normal, UP) < 0.7
    assert normal @ (0, 0, 1) < 0


def test_no_plane_in_clutter_or_in_too_few_points():
    rng = np.random.default_rng(2)
    assert support_normal(rng.uniform((-0.2, -0.2, 0.8), (0.2, 0.2, 1.2), (900, 3))) is None
    assert support_normal(plane(UP, 40, rng)) is None
    assert support_normal(np.zeros((0, 3))) is None
    assert support_normal(np.ones((200, 3))) is None  # one place has no plane


def test_a_known_plane_needs_fewer_points():
    rng = np.random.default_rng(3)
    clutter = rng.uniform((-0.2, -0.2, 0.8), (0.2, 0.2, 1.2), (600, 3))
    points = rng.permutation(np.vstack([plane(UP, 420, rng), clutter]))
    assert support_normal(points) is None
    assert degrees(support_normal(points, UP), UP) < 1.0


def test_another_plane_needs_half_of_the_points_also_after_a_known_one():
    rng = np.random.default_rng(6)
    wall, clutter = (
        plane(np.array([0.0, 0.0, -1.0]), 400, rng),
        rng.uniform((-0.2, -0.2, 0.8), (0.2, 0.2, 1.2), (600, 3)),
    )
    points = rng.permutation(np.vstack([wall, clutter]))
    assert support_normal(points, UP) is None


@pytest.mark.parametrize("distance", [0.5, 2.0, 4.0])
def test_noise_grows_with_the_square_of_the_distance(distance: float):
    rng = np.random.default_rng(4)
    points = (plane(UP, 1000, rng, noise_m=0.0) - (0, 0, 1.0)) * 2 + (0, 0, distance)
    points *= 1 + rng.normal(0, 0.004 * distance, (1000, 1))
    assert degrees(support_normal(points), UP) < 2.0


def test_the_same_points_give_the_same_normal():
    points = plane(UP, 500, np.random.default_rng(5))
    np.testing.assert_array_equal(support_normal(points), support_normal(points))
