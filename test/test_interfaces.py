"""The definitions are found from a checkout, from a pip installation and from a ROS installation."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from decaf_ros.io import interfaces

ROOT = Path(__file__).parents[1]


def test_every_definition_of_the_checkout_is_listed():
    assert sorted(interfaces.MESSAGES) == sorted(file.stem for file in ROOT.glob("msg/*.msg"))
    assert sorted(interfaces.ACTIONS) == sorted(file.stem for file in ROOT.glob("action/*.action"))


def test_text_is_the_files():
    for name in interfaces.MESSAGES:
        assert interfaces.interface_text(name) == (ROOT / "msg" / f"{name}.msg").read_text()
    assert interfaces.interface_text("Segment") == (ROOT / "action" / "Segment.action").read_text()


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown interface 'Tracklets'; expected one of Keypoint, "):
        interfaces.interface_text("Tracklets")


@pytest.mark.parametrize(
    "packages",
    ["lib/python3.11/site-packages", "local/lib/python3.10/dist-packages", "."],
    ids=["pip and colcon", "colcon on Ubuntu 22.04", "pip --target"],
)
def test_found_beside_an_installed_package(tmp_path: Path, packages: str):
    module = tmp_path / packages / "decaf_ros" / "interfaces.py"
    module.parent.mkdir(parents=True)
    shutil.copy(interfaces.__file__, module)
    definition = tmp_path / "share" / "decaf_ros" / "msg" / "Tracklet.msg"
    definition.parent.mkdir(parents=True)
    definition.write_text("uint32 of_this_installation\n")
    installed = _load(module)

    assert installed.interface_text("Tracklet") == "uint32 of_this_installation\n"
    with pytest.raises(FileNotFoundError, match="msg/Keypoint.msg: not found in any of .*share/decaf_ros"):
        installed.interface_text("Keypoint")


def _load(path: Path):
    spec = importlib.util.spec_from_file_location("installed_interfaces", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
