"""Chunks of a vision tower's sequence go together, and come out as they do one by one."""

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
def test_features_are_those_of_sdpa(tmp_path, monkeypatch, write):
    mllm = load_mllm(MllmConfig(checkpoint=str(write(tmp_path)), local_files_only=True, video_tokens=48))
    layout = mllm.layout("frames", 1, (150, 230))
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 150, 230, 3), dtype=np.uint8)
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *rest, **more):
        calls.append(query.shape)
        return attention(query, *rest, **more)

    monkeypatch.setattr(vision_attention.F, "scaled_dot_product_attention", counted)
    with torch.inference_mode():
        together = mllm.encode(layout, images)
        number = len(calls)
        mllm.model.model.visual.config._attn_implementation = "sdpa"
        apart = mllm.encode(layout, images)
    for ours, theirs in zip(together, apart):
        torch.testing.assert_close(ours.tokens, theirs.tokens, atol=1e-5, rtol=0)
    # Older releases hand over one chunk after the other.
    if Version(__version__) >= Version("5"):
        assert any(len(shape) == 4 and shape[0] > 1 for shape in calls[:number]) and number < len(calls) - number
