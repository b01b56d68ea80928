"""Chunks of a vision tower's sequence give the same features in one batch as one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packaging.version import Version
from transformers import __version__

from decaf_ros.config import MllmConfig
from decaf_ros.grounding import vision_attention
from decaf_ros.grounding.loading import load_mllm
from tiny_models.qwen3_vl import write_tiny_qwen3_vl
from tiny_models.qwen_vl import write_tiny_mllm


@pytest.mark.parametrize("write", [write_tiny_mllm, write_tiny_qwen3_vl])
def test_features_equal_sdpa(tmp_path, monkeypatch, write):
    mllm = load_mllm(
        MllmConfig(checkpoint=str(write(tmp_path)), local_files_only=True, video_tokens=48, dtype="float32")
    )
    layout = mllm.layout("frames", 1, (150, 230))
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 150, 230, 3), dtype=np.uint8)
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        calls.append(query.shape)
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(vision_attention.F, "scaled_dot_product_attention", counted)
    with torch.inference_mode():
        batched = mllm.encode(layout, images)
        batched_calls = len(calls)
        mllm.model.model.visual.config._attn_implementation = "sdpa"
        one_by_one = mllm.encode(layout, images)
    for ours, theirs in zip(batched, one_by_one):
        torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=0)
    # Older releases pass one chunk per call.
    if Version(__version__) >= Version("5"):
        assert any(len(shape) == 4 and shape[0] > 1 for shape in calls[:batched_calls])
        assert batched_calls < len(calls) - batched_calls


def test_layouts_take_turns(tmp_path):
    """The chunks of a pass are found once; another size, and the first one again, need theirs."""
    mllm = load_mllm(
        MllmConfig(str(write_tiny_mllm(tmp_path)), local_files_only=True, video_tokens=48, dtype="float32")
    )
    sizes = [(150, 230), (90, 130), (150, 230), (64, 64), (150, 230)]
    kinds = ["frames", "video", "frames", "frames", "video"]

    def encode(size_hw, kind):
        layout = mllm.layout(kind, 2, size_hw)
        shape = (1, layout.frames_per_unit, *size_hw, 3)
        (unit,) = mllm.encode(layout, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        return unit.tokens

    found = [encode(*case) for case in zip(sizes, kinds)]
    for case, tokens in zip(zip(sizes, kinds), found):
        vision_attention._newest.clear()
        torch.testing.assert_close(encode(*case), tokens, atol=0, rtol=0)
