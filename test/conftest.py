"""Shared fixtures: tiny randomly initialised checkpoints of the real architectures, written once a run."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

# The models are tiny, and the tests start processes of their own: more threads only wait for each other.
torch.set_num_threads(int(os.environ.get("DECAF_TEST_THREADS", "1")))

# Without ROS or the renderer their tests are left out; where both have to be there (`make test`), it is a failure.
if os.environ.get("DECAF_REQUIRE_ROS"):
    import rclpy  # noqa: F401

    import decaf_ros.msg  # noqa: F401

    if find_spec("mujoco") is None:
        raise ModuleNotFoundError("mujoco: expected it to be there, `make setup` installs it")

# The package runs with transformers 4.57, the training of the demo's MLLM with 5 alone.
collect_ignore = ["test_training_language.py", "test_training_mllm.py"] if transformers.__version__ < "5" else []

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
