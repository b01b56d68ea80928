"""A package vision_msgs with the messages that are published, generated and built from their names and fields.

vision_msgs is on no registry that the set-up uses. The real package has more messages, and comments in them.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from decaf_ros.io.vision_types import VISION_MESSAGES

ROOT = Path(__file__).parent.parent
CMAKE = """cmake_minimum_required(VERSION 3.16)
project(vision_msgs)
set(CMAKE_INSTALL_RPATH "${CMAKE_INSTALL_PREFIX}/lib")
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
find_package(geometry_msgs REQUIRED)
find_package(std_msgs REQUIRED)
file(GLOB messages RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} msg/*.msg)
rosidl_generate_interfaces(${PROJECT_NAME} ${messages} DEPENDENCIES geometry_msgs std_msgs)
ament_package()
"""
PACKAGE = """<?xml version="1.0"?>
<package format="3">
  <name>vision_msgs</name>
  <version>4.2.0</version>
  <description>Names and fields of some messages of vision_msgs, for tests.</description>
  <maintainer email="maintainers@decaf-ros.dev">decaf_ros maintainers</maintainer>
  <license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>geometry_msgs</depend>
  <depend>std_msgs</depend>
  <exec_depend>rosidl_default_runtime</exec_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""


def _built() -> Path:
    """The install folder. Built once for each version of the messages."""
    digest = hashlib.sha256(f"{CMAKE}{PACKAGE}{VISION_MESSAGES}{sys.executable}".encode()).hexdigest()[:12]
    folder = ROOT / "build" / f"vision_msgs_{digest}"
    source, install = folder / "source", folder / "install"
    if (install / "complete").is_file():
        return install
    shutil.rmtree(folder, ignore_errors=True)
    (source / "msg").mkdir(parents=True)
    (source / "CMakeLists.txt").write_text(CMAKE)
    (source / "package.xml").write_text(PACKAGE)
    for name, text in VISION_MESSAGES.items():
        (source / "msg" / f"{name}.msg").write_text(text)
    command = ["colcon", "--log-base", str(folder / "log"), "build", "--paths", str(source), "--merge-install"]
    command += ["--build-base", str(folder / "build"), "--install-base", str(install)]
    command += ["--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={sys.executable}"]
    # ROS from wheels lies in the virtual environment.
    prefixes = {
        name: os.pathsep.join(filter(None, [sys.prefix, os.environ.get(name)]))
        for name in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH")
    }
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | prefixes)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (install / "complete").touch()
    return install


@contextmanager
def vision_messages() -> Iterator[None]:
    """vision_msgs can be imported, here and in new processes. Skips without a build tool."""
    if shutil.which("colcon") is None:
        pytest.skip("colcon is not installed")
    install = _built()
    site = next(install.glob("lib/python3*/site-packages"))
    paths = {"PYTHONPATH": site, "AMENT_PREFIX_PATH": install, "LD_LIBRARY_PATH": install / "lib"}
    with pytest.MonkeyPatch.context() as patch:
        for name, path in paths.items():
            patch.setenv(name, os.pathsep.join(filter(None, [str(path), os.environ.get(name, "")])))
        patch.syspath_prepend(str(site))
        # The loader of this process has read LD_LIBRARY_PATH already; a loaded library is found by its name.
        for library in sorted((install / "lib").glob("*.so")):
            ctypes.CDLL(str(library))
        importlib.import_module("vision_msgs.msg")
        yield
