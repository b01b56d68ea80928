"""The accuracy of 3D on simulated clips, and the command that measures it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from decaf_ros.space.boxes import Box
from decaf_tabletop import space_check
from decaf_tabletop.world.clip import TabletopObject

pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")


def test_the_command_reports_errors_by_category_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "cloud.png"
    arguments = ["--seed", "920000", "--clips", "2", "--spill", "1", "--picture", str(picture)]
    assert space_check.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("all") and len(lines) > 4
    count, lost, metres, middle, most = re.match(r"all +(\d+) +(\d+) +([\d.]+) +([\d.]+), ([\d.]+)", lines[-1]).groups()
    assert int(count) > 100 and int(lost) == 0 and 0.9 < float(metres) < 1.15
    # The target at 1 m, in centimetres.
    assert 0 < float(middle) <= 1.0 and float(most) <= 3.0
    drawn = cv2.imread(str(picture))
    assert drawn.shape[1] > 300 and (drawn < 100).all(axis=-1).mean() > 0.001


def test_sides_are_compared_with_the_nearest_axes():
    thing = TabletopObject("cube", "red", "small", 0.76 * np.sqrt(2) * 0.04, 1.52 * 0.04)
    np.testing.assert_allclose(space_check.whole_sides(thing), 1.52 * 0.04)
    axes = np.eye(3)[:, [2, 0, 1]]  # the box's first axis is the third of the object
    box = Box(np.zeros(3), axes, np.array([0.33, 0.1, 0.19]))
    np.testing.assert_allclose(space_check.side_errors(box, np.eye(3), np.array([0.1, 0.2, 0.3])), [0, 0.05, 0.1])


def test_the_true_box_is_upright_and_tight():
    rng = np.random.default_rng(0)
    up = np.array([0.0, -0.8, -0.6])
    east = np.array([np.cos(0.4), -0.6 * np.sin(0.4), 0.8 * np.sin(0.4)])
    axes = np.column_stack([east, np.cross(up, east), up])
    points = rng.uniform(-0.5, 0.5, (5000, 3)) * (0.3, 0.1, 0.2) @ axes.T + (0, 0, 1)
    found, sides = space_check.upright_sides(points, up)
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(sorted(sides), [0.1, 0.2, 0.3], rtol=0.03)
    assert sides[2] == pytest.approx(0.2, rel=0.03)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--clips", "0"], "--clips: expected 1 or more, got 0"),
        (["--distance", "0.1"], "--distance: expected 0.3 to 5.0, got 0.1"),
        (["--spill", "-1"], "--spill: expected 0 to 20, got -1"),
    ],
)
def test_invalid_options_are_refused(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        space_check.main(arguments)
    assert text in capsys.readouterr().err
