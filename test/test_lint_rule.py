"""The lint rule: only decaf_ros/nodes imports ROS."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUFF = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")

pytestmark = pytest.mark.skipif(RUFF is None, reason="ruff is not installed")


def banned_imports(source: str, file: str) -> int:
    """Number of banned imports that ruff finds in `source`, checked as if it were the content of `file`."""
    command = [RUFF, "check", "--select=TID251", "--output-format=concise", f"--stdin-filename={file}", "-"]
    result = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stderr
    return result.stdout.count("TID251")


@pytest.mark.parametrize(
    "line",
    [
        "import rclpy",
        "from rclpy.node import Node",
        "import sensor_msgs.msg as messages",
        "from std_msgs.msg import String",
        "from decaf_ros.msg import QueryStatus",
        "from decaf_ros import msg",
        "from decaf_ros.action import Segment",
        "from .msg import QueryStatus",
        "from . import nodes",
        "from decaf_ros.nodes.message_factory import to_frame",
        "def late():\n    import cv_bridge",
    ],
)
def test_core_must_not_import_ros(line: str):
    assert banned_imports(f"{line}\n", "decaf_ros/pipeline.py") == 1
    assert banned_imports(f"{line}\n", "decaf_ros/nodes/segmenter.py") == 0


def test_subpackages_are_core_too():
    assert banned_imports("import rclpy\n", "decaf_ros/segmentation/sam2.py") == 1
    assert banned_imports("import rclpy\n", "decaf_ros/grounding/families/qwen_vl.py") == 1


def test_the_product_must_not_import_the_table():
    for line in ("import decaf_tabletop", "def late():\n    from decaf_tabletop.world import clip"):
        assert banned_imports(f"{line}\n", "decaf_ros/cli/evaluate.py") == 1
        assert banned_imports(f"{line}\n", "decaf_tabletop/dataset.py") == 0


def test_core_may_import_itself():
    source = "from decaf_ros import types\nfrom decaf_ros.types import Frame\n"
    assert banned_imports(source, "decaf_ros/online/segmenter.py") == 0


def test_every_ros_dependency_is_banned():
    package = ElementTree.parse(ROOT / "package.xml").getroot()
    names = {element.text for tag in ("depend", "exec_depend") for element in package.iter(tag)}
    importable = sorted(name for name in names if not name.startswith(("python3-", "rosidl_")))
    assert "rclpy" in importable
    assert {name: banned_imports(f"import {name}\n", "decaf_ros/online/segmenter.py") for name in importable} == {
        name: 1 for name in importable
    }
