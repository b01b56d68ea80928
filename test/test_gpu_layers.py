"""The changes of layers for a GPU keep every model's results; they are made here on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from family_checks import encode, noise, view
from torch import nn

from decaf_ros.config import MllmConfig
from decaf_ros.devices import avoid_planned_attention
from decaf_ros.grounding.gpu_layers import pad_feedforward, speed_up
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import forward
from tiny_models.internvl import write_tiny_internvl
from tiny_models.llava_onevision import write_tiny_llava_onevision
from tiny_models.qwen3_vl import write_tiny_qwen3_vl
from tiny_models.qwen_vl import write_tiny_mllm


class Gated(nn.Module):
    def __init__(self, width: int, act_fn: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, width, bias=bias), nn.Linear(8, width, bias=bias)
        self.down_proj, self.act_fn = nn.Linear(width, 8, bias=bias), act_fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize("bias", [True, False])
def test_padding_adds_nothing(bias):
    layer, x = Gated(3420, nn.SiLU(), bias), torch.randn(5, 8)
    expected = layer(x)
    assert pad_feedforward(layer) == 1
    assert layer.gate_proj.weight.shape == (3456, 8) and layer.down_proj.weight.shape == (8, 3456)
    torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [Gated(64, nn.SiLU()), Gated(3424, nn.SiLU()), Gated(30, nn.Sigmoid())])
def test_layers_that_need_no_padding_or_would_change_stay(layer):
    before = copy.deepcopy(layer.state_dict())
    assert pad_feedforward(layer) == 0
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    "write", [write_tiny_mllm, write_tiny_qwen3_vl, write_tiny_internvl, write_tiny_llava_onevision]
)
def test_every_family_keeps_features_and_logits(tmp_path, write):
    mllm = load_mllm(MllmConfig(str(write(tmp_path)), local_files_only=True, dtype="float32"))
    expected = results(mllm)
    speed_up(mllm.model)
    norms = [module for module in mllm.model.modules() if type(module).__name__.endswith("RMSNorm")]
    assert norms and all("forward" in vars(norm) for norm in norms)
    for ours, theirs in zip(results(mllm), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def results(mllm):
    """Features of a random frame, and the logits after them."""
    seen = view(mllm, "frames", noise(1, (96, 130)))
    (features,) = encode(mllm, seen)
    prompt = mllm.prompt(seen.layout, "What is red?")
    inputs = mllm.embed(prompt.ids, prompt.slots, [[features]])
    output = forward(mllm.model, inputs, prompt.positions, None, mllm.layers, wants_token=True)
    return [features.tokens, output.logits]


@pytest.mark.parametrize("kind, stays", [("cpu", True), ("cuda", False)])
def test_cudnn_attention_is_off_on_a_gpu_only(kind, stays):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        avoid_planned_attention(torch.device(kind))
        assert torch.backends.cuda.cudnn_sdp_enabled() == stays
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
