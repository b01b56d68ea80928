from __future__ import annotations

from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from decaf_tabletop import parts_check
from decaf_tabletop.parts_check import Answer, report, true_attention


def test_the_true_map_is_the_share_of_each_token_that_the_part_covers():
    truth = np.zeros((2, 240, 320), bool)
    truth[0, :20, :10], truth[0, 20:25, :20], truth[1, 220:, 300:] = True, True, True
    found = true_attention(truth)
    assert found.shape == (2, 12, 16) and found.dtype == np.float32
    assert found[0, :2, 0] == pytest.approx([0.5, 0.25]) and found[1, 11, 15] == 1 and np.count_nonzero(found) == 3


def test_the_report_compares_iou_by_part():
    nothing = np.zeros((2, 2, 3), np.uint8)
    found = [
        Answer("neck", "a", True, (0.2, 0.5), nothing),
        Answer("neck", "b", False, (0.4, 0.1), nothing),
        Answer("handle", "c", True, (0.3, 0.305), nothing),
    ]
    lines = [line.split() for line in report(found).splitlines()]
    assert lines[1:] == [
        ["handle", "1", "100.0", "30.0", "30.5", "0", "0"],
        ["neck", "2", "50.0", "30.0", "30.0", "1", "1"],
        ["all", "3", "66.7", "30.0", "30.2", "1", "1"],
    ]


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_the_command_answers_and_draws(tmp_path, capsys):
    picture = tmp_path / "parts.png"
    arguments = ["--seed", "900001", "--questions", "1", "--attention", "true", "--picture", str(picture)]
    assert parts_check.main(arguments) == 0
    shown = capsys.readouterr()
    row = shown.out.splitlines()[1].split()
    # The points lie on the handle, and so do some of the mask's pixels.
    assert row[:3] == ["handle", "1", "100.0"] and 5 < float(row[3]) <= 100 and "the handle of the mug" in shown.err
    assert cv2.imread(str(picture)).shape == (240, 960, 3)


@pytest.mark.parametrize("option", ["--questions", "--negative-points"])
def test_a_bad_number_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        parts_check.main([option, "0"])
    assert f"{option}: expected 1 or more, got 0" in capsys.readouterr().err
