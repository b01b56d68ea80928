"""Where the key frames of a recorded clip lie."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import DecafConfig, MllmConfig, Sam2Config, replace
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.offline import key_frames, segment_clip
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Frame, Query


def clip(length: int) -> list[Frame]:
    image = np.zeros((32, 32, 3), np.uint8)
    return [Frame(image, index + 1, "camera", index) for index in range(length)]


@pytest.mark.parametrize(
    ("length", "nearest", "down"),
    [
        (1, [0], [0]),
        (5, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (6, [0, 1, 2, 4, 5], [0, 1, 2, 3, 5]),
        (7, [0, 2, 3, 4, 6], [0, 1, 3, 4, 6]),
        (9, [0, 2, 4, 6, 8], [0, 2, 4, 6, 8]),
        (12, [0, 3, 6, 8, 11], [0, 2, 5, 8, 11]),
    ],
)
def test_positions_between_two_frames_are_rounded(length, nearest, down):
    frames = clip(length)
    assert [frame.index for frame in key_frames(frames, 5).frames] == nearest
    assert [frame.index for frame in key_frames(frames, 5, "nearest").frames] == nearest
    assert [frame.index for frame in key_frames(frames, 5, "down").frames] == down


@pytest.mark.parametrize("length", [*range(1, 40), 100, 331])
def test_published_positions_are_truncated(length):
    """16 of F frames: floor(k (F - 1) / 15), in integers; all frames of a shorter clip."""
    exact = [k * (length - 1) // 15 for k in range(16)] if length > 16 else list(range(length))
    assert [frame.index for frame in key_frames(clip(length), 16, "down").frames] == exact


@pytest.mark.parametrize(("rounding", "second"), [("nearest", 2), ("down", 1)])
def test_a_clip_is_grounded_in_the_configured_key_frames(tiny_mllm_dir, tiny_sam2_dir, rounding, second):
    mllm = MllmConfig(str(tiny_mllm_dir), local_files_only=True, device="cpu", dtype="float32", video_tokens=16)
    changes = {"window.size": 5, "window.clip_rounding": rounding, "grounding.mode": "fast", "presence.ask": False}
    config = replace(DecafConfig(), {**changes, "segmentation.max_points": 1})
    decaf = Decaf(load_mllm(mllm), load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu")), config)
    noise = np.random.default_rng(0).integers(0, 256, (7, 56, 56, 3), dtype=np.uint8)
    frames = [Frame(image, index + 1, "camera", index) for index, image in enumerate(noise)]
    found = segment_clip(decaf, frames, Query("it", "the red ball"), lambda output: None)
    assert [frame.index for frame in found.window.frames] == [0, second, 3, 4, 6]
