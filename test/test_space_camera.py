"""Cameras against OpenCV's own projections."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest

from decaf_ros.io.bags import make_header, make_message
from decaf_ros.space.camera import camera_from_info, pixel_rays, project, unproject

K = np.array([[520.0, 0, 318.5], [0, 515.0, 243.2], [0, 0, 1]])
PLUMB_BOB = (-0.31, 0.11, 0.0012, -0.0007, -0.02)
RATIONAL = (6.2, 3.1, 0.0009, -0.0004, 0.16, 6.6, 4.9, 0.9)
FISHEYE = (0.02, -0.008, 0.003, -0.0006)


def info(model: str = "plumb_bob", d: Any = (), k: np.ndarray = K, p: np.ndarray | None = None, **changes: Any) -> Any:
    roi = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False, **changes.pop("roi", {})}
    if p is None:
        p = np.hstack([K * [[1.1], [1.1], [1]], np.zeros((3, 1))])
    fields = {
        "header": make_header(1, "camera_optical"),
        "height": 480,
        "width": 640,
        "distortion_model": model,
        "d": np.array(d, float),
        "k": k.ravel(),
        "r": np.eye(3).ravel(),
        "p": p.ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": make_message("sensor_msgs/msg/RegionOfInterest", **roi),
    }
    return make_message("sensor_msgs/msg/CameraInfo", **{**fields, **changes})


def points_in_view(wide: float) -> np.ndarray:
    """(n, 3): points at various depths, up to x / z = wide."""
    rng = np.random.default_rng(5)
    rays = rng.uniform((-wide, -0.75 * wide), (wide, 0.75 * wide), (500, 2))
    depth = rng.uniform(0.3, 6.0, 500)
    return np.column_stack([rays * depth[:, None], depth])


def opencv_pixels(model: str, d: Any, points: np.ndarray) -> np.ndarray:
    zero = np.zeros(3)
    if model == "equidistant":
        return cv2.fisheye.projectPoints(points[:, None], zero, zero, K, np.array(d))[0].reshape(-1, 2)
    return cv2.projectPoints(points, zero, zero, K, np.array(d))[0].reshape(-1, 2)


@pytest.mark.parametrize(
    ("model", "d", "wide"),
    [
        ("plumb_bob", (), 0.6),
        ("plumb_bob", PLUMB_BOB, 0.6),
        ("plumb_bob", PLUMB_BOB[:4], 0.6),
        ("rational_polynomial", RATIONAL, 0.6),
        ("equidistant", FISHEYE, 0.72),
    ],
)
def test_projection_and_rays_agree_with_opencv(model: str, d: Any, wide: float):
    camera, points = camera_from_info(info(model, d)), points_in_view(wide)
    expected = opencv_pixels(model, d or (0.0,) * 5, points)
    inside = ((expected >= 0) & (expected <= (639, 479))).all(axis=1)
    assert inside.sum() > 300
    np.testing.assert_allclose(project(camera, points)[inside], expected[inside], atol=1e-6)
    rays = unproject(camera, expected[inside])
    np.testing.assert_allclose(rays, points[inside, :2] / points[inside, 2:], atol=1e-6)


def test_rays_of_all_pixels_are_cached_and_end_at_their_pixels():
    camera = camera_from_info(info("rational_polynomial", RATIONAL))
    rays = pixel_rays(camera)
    assert rays.shape == (480, 640, 2) and rays.dtype == np.float32 and not rays.flags.writeable
    assert pixel_rays(camera_from_info(info("rational_polynomial", RATIONAL))) is rays
    rows, columns = np.mgrid[0:480:37, 0:640:41]
    points = np.column_stack([rays[rows, columns].reshape(-1, 2), np.ones(rows.size)]).astype(float)
    expected = np.column_stack([columns.ravel(), rows.ravel()])
    np.testing.assert_allclose(opencv_pixels("rational_polynomial", RATIONAL, points), expected, atol=1e-3)


def test_a_pixel_outside_a_fisheyes_field_has_no_ray():
    wide = np.array([[150.0, 0, 320], [0, 150.0, 240], [0, 0, 1]])
    camera = camera_from_info(info("equidistant", (0, 0, 0, 0), wide))
    rays = unproject(camera, np.array([[320.0, 240.0], [320 + 150 * 1.5, 240.0], [320 + 150 * 1.7, 240.0]]))
    np.testing.assert_allclose(rays[:2], [[0, 0], [np.tan(1.5), 0]], atol=1e-6)
    assert np.isnan(rays[2]).all()  # 1.7 rad is behind the image plane


def test_a_polynomial_is_not_used_where_it_turns_back():
    """With strong barrel distortion points far outside would be projected into the image again."""
    camera = camera_from_info(info("plumb_bob", (-0.4, 0, 0, 0, 0)))
    far = np.array([[1.6, 0.0, 1.0]])
    inside = opencv_pixels("plumb_bob", (-0.4, 0, 0, 0, 0), far)
    assert 0 < inside[0, 0] < 640
    assert np.isnan(project(camera, far)).all()
    assert np.isnan(project(camera, np.array([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))).all()


def test_region_and_binning_move_the_pixels():
    region = {"x_offset": 100, "y_offset": 60, "width": 400, "height": 300}
    full = camera_from_info(info("plumb_bob", PLUMB_BOB))
    camera = camera_from_info(info("plumb_bob", PLUMB_BOB, roi=region, binning_x=2, binning_y=3))
    assert camera.size_hw == (100, 200)
    points = points_in_view(0.3)
    expected = (project(full, points) - (100, 60)) / (2, 3)
    seen = ~np.isnan(project(camera, points)).any(axis=1)
    assert seen.sum() > 100
    np.testing.assert_allclose(project(camera, points)[seen], expected[seen])
    np.testing.assert_allclose(unproject(camera, expected), points[:, :2] / points[:, 2:], atol=1e-6)


def test_a_rectified_image_has_the_matrix_p_and_no_distortion():
    camera = camera_from_info(info("plumb_bob", PLUMB_BOB), rectified=True)
    assert (camera.model, camera.fx, camera.cy) == ("", 520.0 * 1.1, 243.2 * 1.1)


def test_zeros_are_no_distortion_but_for_a_fisheye():
    assert camera_from_info(info("plumb_bob", (0,) * 5)).model == ""
    assert camera_from_info(info("", ())).model == ""
    assert camera_from_info(info("equidistant", (0,) * 4)).model == "equidistant"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"k": np.zeros((3, 3))}, "expected a calibrated camera, got K of zeros"),
        ({"k": K * [[-1], [1], [1]]}, "expected K as .* with fx, fy above 0"),
        ({"k": K + [[0, 3, 0], [0, 0, 0], [0, 0, 0]]}, r"expected K as \[fx 0 cx; 0 fy cy; 0 0 1\]"),
        ({"k": K * np.nan}, "expected K as"),
        ({"width": 0}, "expected a width and height of at least 1, got 0 x 480"),
        ({"model": "thin_prism", "d": (0.1,) * 12}, "expected one of the models plumb_bob, .*, got 'thin_prism'"),
        ({"model": "", "d": (0.1,) * 5}, "expected one of the models .*, got ''"),
        ({"d": (0.1,) * 8}, "expected 4 or 5 coefficients of plumb_bob, got 8"),
        ({"model": "equidistant", "d": ()}, "expected 4 coefficients of equidistant, got 0"),
        ({"d": (np.nan,) * 5}, "expected finite distortion coefficients"),
        ({"roi": {"x_offset": 300, "width": 400, "height": 10}}, "expected a region within 640 x 480 px, got 400 x 10"),
        ({"roi": {"x_offset": 300}}, "expected a region within"),
        ({"binning_x": 1000}, "expected a binning within the image, got 1000 x 1"),
    ],
)
def test_a_useless_camera_info_is_refused(changes: dict[str, Any], error: str):
    with pytest.raises(ValueError, match=error):
        camera_from_info(info(**changes))


def test_a_useless_rectified_camera_info_is_refused():
    with pytest.raises(ValueError, match="expected a calibrated camera, got P of zeros"):
        camera_from_info(info(p=np.zeros((3, 4))), rectified=True)
    second = np.hstack([K, [[-50.0], [0], [0]]])
    with pytest.raises(ValueError, match=r"expected P as \[fx 0 cx 0;"):
        camera_from_info(info(p=second), rectified=True)
