"""Oriented boxes: sizes of known boxes, and axes that do not jump."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from decaf_ros.space.boxes import fitted_box

SIZE = np.array([0.20, 0.12, 0.05])
CENTRE = np.array([0.05, -0.02, 1.0])


def surface(size: np.ndarray, rng: np.random.Generator, count: int = 1500) -> np.ndarray:
    """(n, 3): points on the three faces of a box that a camera would see, around the origin."""
    points = rng.uniform(-0.5, 0.5, (count, 3))
    face = rng.integers(0, 3, count)
    points[np.arange(count), face] = 0.5
    return points * size


def turned(degrees: float, axis: str = "z", tilt: float = 35.0) -> np.ndarray:
    return (Rotation.from_euler("x", tilt, degrees=True) * Rotation.from_euler(axis, degrees, degrees=True)).as_matrix()


def angle(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(a @ b.T).magnitude()))


@pytest.mark.parametrize("degrees", [0, 17, 44, 80])
def test_a_box_on_a_known_plane(degrees: float):
    rotation = turned(degrees)
    points = surface(SIZE, np.random.default_rng(0)) @ rotation.T + CENTRE
    box = fitted_box(points, up=rotation[:, 2])
    assert np.linalg.det(box.axes) == pytest.approx(1)
    np.testing.assert_allclose(box.axes.T @ box.axes, np.eye(3), atol=1e-9)
    named = np.abs(box.axes.T @ rotation).argmax(axis=1)
    np.testing.assert_allclose(box.size, SIZE[named], rtol=0.03)
    np.testing.assert_allclose(box.centre, CENTRE, atol=0.003)
    assert np.abs(box.axes.T @ rotation).max(axis=1).min() > np.cos(np.radians(2))


def test_outliers_do_not_enlarge_it():
    points = surface(SIZE, np.random.default_rng(0), 2000) + CENTRE
    points[::1000] += 0.5
    box = fitted_box(points, up=np.array([0.0, 0.0, 1.0]))
    np.testing.assert_allclose(np.sort(box.size), np.sort(SIZE), rtol=0.2)


def test_without_a_plane_it_holds_the_points_and_is_not_much_larger_than_needed():
    rng = np.random.default_rng(1)
    for degrees in (0, 30, 60):
        points = surface(np.array([0.3, 0.06, 0.04]), rng) @ turned(degrees).T + CENTRE
        box = fitted_box(points)
        within = np.abs((points - box.centre) @ box.axes) <= box.size / 2 + 1e-9
        assert within.all(axis=1).mean() > 0.98
        assert box.size.max() == pytest.approx(0.3, rel=0.1)
        assert np.prod(box.size) < 2.2 * 0.3 * 0.06 * 0.04


def test_the_first_axes_are_those_nearest_to_the_camera():
    rotation = turned(10, tilt=5)
    box = fitted_box(surface(SIZE, np.random.default_rng(0)) @ rotation.T + CENTRE, up=rotation[:, 2])
    assert angle(box.axes, rotation) < 2  # not one of its 23 other names


@pytest.mark.parametrize("known_plane", [True, False])
def test_axes_follow_a_turning_box_without_a_jump(known_plane: bool):
    """A whole turn: sides change their order in the image, and the principal axes their signs."""
    rng = np.random.default_rng(2)
    last, start = None, None
    for step in range(181):
        rotation = turned(2.0 * step)
        points = surface(SIZE, rng) @ rotation.T + CENTRE + rng.normal(0, 0.001, (1500, 3))
        box = fitted_box(points, rotation[:, 2] if known_plane else None, last)
        if last is None:
            start = rotation.T @ box.axes
        else:
            assert angle(box.axes, last) < 16, step
        # Fixed in the object: the same name for the same side after any number of turns.
        if known_plane:
            assert angle(rotation.T @ box.axes, start) < 8, step
        last = box.axes


def test_axes_of_a_round_object_stay():
    rng = np.random.default_rng(3)
    up, last = turned(0)[:, 2], None
    for _ in range(60):
        around = rng.uniform(0, np.pi, 1500)
        points = np.column_stack([0.05 * np.cos(around), 0.05 * np.sin(around), rng.uniform(-0.06, 0.06, 1500)])
        points = points @ turned(0).T + CENTRE + rng.normal(0, 0.001, (1500, 3))
        axes = fitted_box(points, up, last).axes
        assert last is None or angle(axes, last) < 0.01
        last = axes


def test_axes_turn_with_the_plane():
    """The camera tilts: an axis stays on the normal, and the others do not jump."""
    rng = np.random.default_rng(4)
    last = None
    for tilt in np.arange(20, 60, 1.0):
        rotation = turned(25, tilt=tilt)
        box = fitted_box(surface(SIZE, rng) @ rotation.T + CENTRE, rotation[:, 2], last)
        assert np.abs(rotation[:, 2] @ box.axes).max() == pytest.approx(1, abs=1e-9)
        assert last is None or angle(box.axes, last) < 3
        last = box.axes


def test_flat_and_straight_points():
    rng = np.random.default_rng(5)
    flat = np.column_stack([rng.uniform(-0.1, 0.1, (200, 2)), np.zeros(200)]) + CENTRE
    assert fitted_box(flat, np.array([0.0, 0.0, -1.0])).size.min() == pytest.approx(0, abs=1e-9)
    assert np.sort(fitted_box(flat).size)[0] == pytest.approx(0, abs=1e-9)
    line = np.column_stack([np.linspace(-0.1, 0.1, 50), np.zeros((50, 2))]) + CENTRE
    assert np.sort(fitted_box(line).size)[1] == pytest.approx(0, abs=1e-6)
    assert fitted_box(line).size.max() == pytest.approx(0.2, rel=0.02)
