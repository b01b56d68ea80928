"""Depth of a simulated stereo camera: its noise, steps, mixed pixels and holes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from decaf_ros.cli.main import main
from decaf_ros.io.bags import BagReader
from decaf_ros.space.depth import message_depth
from decaf_tabletop.world.bag import DEPTH_TOPIC
from decaf_tabletop.world.depth_noise import BASELINE_M, NOISE_PX, STEP_PX, measured_depth

FOCAL_PX = 370.0
HW = (120, 160)


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_noise_grows_with_the_square_of_the_distance(distance: float):
    measured = measured_depth(np.full(HW, distance, np.float32), FOCAL_PX, np.random.default_rng(0))
    valid = measured[np.isfinite(measured)]
    assert measured.dtype == np.float32 and 0.97 < valid.size / measured.size < 1
    expected = distance**2 * NOISE_PX / (FOCAL_PX * BASELINE_M)
    assert valid.std() == pytest.approx(expected, rel=0.15)
    assert valid.mean() == pytest.approx(distance, rel=0.003)
    # Steps of the disparity, and whole millimetres.
    assert len(np.unique(valid)) < 12 * NOISE_PX / STEP_PX
    np.testing.assert_allclose(valid * 1000, np.rint(valid * 1000), atol=1e-3)


def test_edges_have_mixed_pixels_and_holes():
    exact = np.full(HW, 2.0, np.float32)
    exact[30:90, 50:110] = 1.0
    measured = measured_depth(exact, FOCAL_PX, np.random.default_rng(1))
    holes = np.isnan(measured)
    edge = np.zeros(HW, bool)
    edge[29:91, 49:111] = True
    edge[31:89, 51:109] = False
    assert 0.3 < holes[edge].mean() < 0.7
    between = (measured > 1.15) & (measured < 1.75)
    assert between[edge].mean() > 0.1 and not between[~edge].any()
    # The strip left of the near object is hidden from the right imager: disparity differs by 9.25 px.
    assert holes[40:80, 42:49].all() and not holes[40:80, 20:40].all()
    assert holes[40:80, 112:150].mean() < 0.05


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_the_command_writes_measured_depth(tmp_path: Path):
    command = ["simulate", "--seed", "3", "--depth", "--out"]
    assert main([*command, str(tmp_path / "exact")]) == 0
    assert main([*command, str(tmp_path / "measured"), "--depth-noise"]) == 0
    assert main([*command, str(tmp_path / "packed"), "--depth-noise", "--compressed"]) == 0
    exact, measured, packed = (
        depth_images(next((tmp_path / name).iterdir())) for name in ("exact", "measured", "packed")
    )
    assert exact.shape == measured.shape == packed.shape == (32, 240, 320)
    assert np.isfinite(exact).all() and 0.01 < np.isnan(measured).mean() < 0.2
    np.testing.assert_allclose(packed, measured, atol=0.00051)
    difference = np.abs(measured - exact)
    assert 0 < np.nanmedian(difference) < 0.01 < np.nanmax(difference)


def depth_images(bag: Path) -> np.ndarray:
    """(F, H, W) float32 metres, as the node reads them."""
    with BagReader(bag) as reader:
        return np.stack([message_depth(reader.deserialize(recorded)) for recorded in reader.messages([DEPTH_TOPIC])])


def test_the_same_seed_gives_the_same_noise():
    exact = np.linspace(0.5, 2, HW[0] * HW[1], dtype=np.float32).reshape(HW)
    first, again = (measured_depth(exact, FOCAL_PX, np.random.default_rng(2)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
