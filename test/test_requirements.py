"""Versions stand in several files: they agree, have bounds, and are those that are tested."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.requirements import Requirement

from decaf_ros.doctor.packages import PYTHON_VERSIONS, REQUIREMENTS

ROOT = Path(__file__).parents[1]
CMAKE = (ROOT / "CMakeLists.txt").read_text()


def test_floor_pins_the_minimum_versions_of_setup():
    setup = (ROOT / "setup.py").read_text()
    floors = dict(re.findall(r'^ +"([\w-]+)>=([\d.]+)', setup, re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements" / "floor.txt").read_text(), re.MULTILINE))
    tests = {"pytest": "7.4", "hypothesis": "6.100"}
    for name, floor in tests.items():
        assert f"{pins.pop(name)}.".startswith(f"{floor}.") and f'"{name}>={floor}' in setup
    assert pins.keys() == floors.keys()
    for name, floor in floors.items():
        assert f"{pins[name]}.".startswith(f"{floor}."), name


def test_every_requirement_has_an_upper_bound():
    """CI's versions are within the bounds."""
    required = re.findall(r'"([\w-]+>=[^"]+)"', (ROOT / "setup.py").read_text())
    assert len(required) > 18 and all("<" in line for line in required), required
    tested = "\n".join((ROOT / f"requirements/{name}.txt").read_text() for name in ("packages", "torch"))
    for line in required:
        pinned = re.search(rf"^{Requirement(line).name}==(\S+)", tested, re.MULTILINE)
        assert pinned is None or Requirement(line).specifier.contains(pinned[1]), line


def test_workspaces_install_what_setup_requires():
    required = re.search(r"install_requires=\[(.+?)\]", (ROOT / "setup.py").read_text(), re.DOTALL)[1]
    listed = (ROOT / "requirements" / "workspace.txt").read_text().splitlines()
    assert set(re.findall(r'"(.+?)"', required)) < set(listed)
    for distribution in ("humble", "jazzy", "kilted", "lyrical"):
        assert "-r workspace.txt" in (ROOT / "requirements" / f"ros-{distribution}.txt").read_text().splitlines()


def test_the_doctor_knows_what_setup_requires():
    """The ranges of sam2 and of Python stand in two places."""
    setup = (ROOT / "setup.py").read_text()
    lines = (ROOT / "requirements" / "sam2.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == re.findall(r'"sam2": \["(.+)"\]', setup)
    minors = [int(minor) for minor in re.search(r"for minor in \((.+)\)\]", setup)[1].split(",")]
    assert ((3, minors[0]), (3, minors[-1])) == PYTHON_VERSIONS
    assert f'python_requires=">=3.{minors[0]}"' in setup
    for file in REQUIREMENTS:
        assert f'"{file}"' in setup and file in CMAKE and (ROOT / file).is_file()
