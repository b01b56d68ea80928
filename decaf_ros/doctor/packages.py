"""Python, the versions of the packages, and NumPy with those that are compiled against it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from decaf_ros.doctor.findings import OK, WRONG, Finding, run_trial
from decaf_ros.resources import find_resource

# setup.py names the same ones (a test compares them).
PYTHON_VERSIONS = ((3, 10), (3, 13))
# Files with the tested ranges, which pip reads too.
REQUIREMENTS = ("requirements/workspace.txt", "requirements/sam2.txt")
# OpenCV has several packages with the same module.
_ALTERNATIVES = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")}
_BUILD_TOOLS = ("setuptools", "wheel")


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    found = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    lowest, highest = (".".join(map(str, number)) for number in PYTHON_VERSIONS)
    if PYTHON_VERSIONS[0] <= sys.version_info[:2] <= PYTHON_VERSIONS[1]:
        yield Finding("Python", OK, found)
    else:
        mend = f"make the environment with Python {lowest} to {highest} (docs/workspace.md)"
        yield Finding("Python", WRONG, f"{found}; tested with {lowest} to {highest}", mend)


def check_packages() -> Iterator[Finding]:
    """Versions against the tested ranges: one finding for all packages that fit, and one for each other."""
    from packaging.requirements import Requirement

    fitting = []
    for file in REQUIREMENTS:
        for line in find_resource(file).read_text(encoding="utf-8").splitlines():
            entry = line.partition("#")[0].strip()
            if not entry or entry.startswith("-"):
                continue
            required = Requirement(entry)
            if required.name in _BUILD_TOOLS or (required.marker and not required.marker.evaluate()):
                continue
            found = _installed(required.name)
            if found is not None and required.specifier.contains(found, prereleases=True):
                fitting.append(f"{required.name} {found}")
            else:
                text = f"expected {required.specifier or 'any version'}, got {found or 'none'}"
                yield Finding(required.name, WRONG, text, _install(required.name, str(required.specifier)))
    if fitting:
        yield Finding("packages", OK, ", ".join(fitting))


def _installed(name: str) -> str | None:
    for each in (name, *_ALTERNATIVES.get(name, ())):
        try:
            return version(each)
        except PackageNotFoundError:
            continue
    return None


def _install(name: str, specifier: str) -> str:
    if name == "sam2":
        return f"SAM2_BUILD_CUDA=0 pip install --no-build-isolation 'sam2{specifier}'"
    return f"pip install '{name}{specifier}', in a ROS workspace with -r requirements/ros-DISTRIBUTION.txt"


NUMPY_MEND = (
    "install versions that belong together: pip install -r requirements/ros-DISTRIBUTION.txt in a ROS workspace "
    "(docs/workspace.md), make setup in a checkout"
)


def check_numpy() -> Iterator[Finding]:
    """NumPy with the packages that are compiled against it."""
    yield from run_trial("decaf_ros.doctor.numpy_trial", None, "NumPy", NUMPY_MEND, 120.0)
