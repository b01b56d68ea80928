"""Shared fixtures: tiny checkpoints of the real architectures with random weights, written once per run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers

if TYPE_CHECKING:
    from decaf_ros.nodes.image_backend import CvBridgeConverter

# The models are tiny and tests start more processes: additional threads would only compete.
torch.set_num_threads(int(os.environ.get("DECAF_TEST_THREADS", "1")))

# Tests of ROS and of the renderer are skipped without them; `make test` requires both.
if os.environ.get("DECAF_REQUIRE_ROS"):
    import rclpy  # noqa: F401

    import decaf_ros.msg  # noqa: F401

    if find_spec("mujoco") is None:
        raise ModuleNotFoundError("mujoco: expected to be installed; `make setup` installs it")

# Tests of pages are skipped without a browser (`browser.py`); DECAF_REQUIRE_BROWSER, set in CI, requires one.

# The package supports transformers 4.57; training the demo's MLLM requires version 5.
if transformers.__version__ < "5":
    collect_ignore = ["test_training_language.py", "test_training_mllm.py", "test_training_tower.py"]

GOLDEN_DIR = Path(os.environ.get("DECAF_GOLDEN_DIR", Path(__file__).parent / "golden"))


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def tiny_mllm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Qwen2.5-VL checkpoint with its processor."""
    from tiny_models.qwen_vl import write_tiny_mllm

    return write_tiny_mllm(tmp_path_factory.mktemp("mllm"))


@pytest.fixture(scope="session")
def tiny_sam2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny SAM 2 checkpoint (model.yaml, model.safetensors)."""
    from tiny_models.sam2 import write_tiny_sam2

    return write_tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="session")
def cv_bridge() -> CvBridgeConverter:
    """The distribution's cv_bridge; skips without one that works."""
    from decaf_ros.nodes.image_backend import CvBridgeConverter, UnusableError

    try:
        return CvBridgeConverter()
    except UnusableError as error:
        pytest.skip(f"cv_bridge: {error}")
