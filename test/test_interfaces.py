"""Message definitions as read without a ROS installation."""

from __future__ import annotations

from pathlib import Path

import pytest

from decaf_ros.io import interfaces

ROOT = Path(__file__).parents[1]


def test_every_definition_of_the_checkout_is_listed():
    assert sorted(interfaces.MESSAGES) == sorted(file.stem for file in ROOT.glob("msg/*.msg"))
    assert sorted(interfaces.ACTIONS) == sorted(file.stem for file in ROOT.glob("action/*.action"))


def test_text_equals_the_file():
    for name in interfaces.MESSAGES:
        assert interfaces.interface_text(name) == (ROOT / "msg" / f"{name}.msg").read_text()
    assert interfaces.interface_text("Segment") == (ROOT / "action" / "Segment.action").read_text()


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="interface: expected one of Keypoint, .*, got 'Tracklets'"):
        interfaces.interface_text("Tracklets")
