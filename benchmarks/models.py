"""Multimodal LLMs and random windows: fixed seeds and sizes, so that ratios are comparable between machines."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import _paths  # noqa: F401
import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.types import Frame, Window
from tiny_models.qwen_vl import write_tiny_mllm

SIZE_HW = (480, 854)


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model and a vision tower of the Qwen2.5-VL architecture."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    feedforward: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_feedforward: int
    full_attention: tuple[int, ...]
    vocabulary: int
    video_tokens: int = MllmConfig().video_tokens


# MID, for a CPU: the heads of the `rollout` benchmark, and a vision tower with the same share of operations as the 7B's
# (0.4 of the language model's for a key frame). TINY only shows that the code runs. The others are the published sizes,
# for a GPU.
TINY = Shape(64, 4, 4, 2, 128, 32, 2, 2, 64, (1,), 1000, video_tokens=100)
MID = Shape(480, 12, 12, 2, 1280, 192, 6, 4, 512, (5,), 1000)
QWEN_3B = Shape(2048, 36, 16, 2, 11008, 1280, 32, 16, 3420, (7, 15, 23, 31), 151936)
QWEN_7B = Shape(3584, 28, 28, 4, 18944, 1280, 32, 16, 3420, (7, 15, 23, 31), 152064)


def random_mllm(folder: Path, shape: Shape, device: str = "cpu") -> Mllm:
    """Qwen2.5-VL with its real classes and processor, and random weights (float32 on a CPU, bfloat16 elsewhere).

    The tokenizer is the tiny checkpoint's, which covers only the first ids of the vocabulary.
    """
    config = MllmConfig(
        str(write_tiny_mllm(folder)),
        local_files_only=True,
        device=device,
        dtype="float32" if device == "cpu" else "bfloat16",
        video_tokens=shape.video_tokens,
    )
    tiny = load_mllm(config)
    sizes = tiny.model.config
    text, vision = sizes.text_config, sizes.vision_config
    text.hidden_size, text.num_hidden_layers = shape.hidden, shape.layers
    text.num_attention_heads, text.num_key_value_heads = shape.heads, shape.key_heads
    text.vocab_size = max(shape.vocabulary, text.vocab_size)
    text.intermediate_size, text.layer_types = shape.feedforward, ["full_attention"] * shape.layers
    # Time, height and width share half of a head's dimension.
    half = shape.hidden // shape.heads // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = text.rope_parameters if hasattr(text, "rope_parameters") else text.rope_scaling
    rope["mrope_section"] = section
    text.initializer_range = vision.initializer_range = 0.02
    vision.hidden_size, vision.depth, vision.num_heads = shape.vision_hidden, shape.vision_layers, shape.vision_heads
    vision.intermediate_size, vision.out_hidden_size = shape.vision_feedforward, shape.hidden
    vision.fullatt_block_indexes, vision.window_size = list(shape.full_attention), 112
    vision._attn_implementation = "sdpa"  # the adapter installs its own afterwards
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(sizes, dtype=next(tiny.model.parameters()).dtype)
    model.generation_config = tiny.model.generation_config
    return type(tiny)(model.eval(), tiny.processor, config)


def in_bfloat16(mllm: Mllm) -> Mllm:
    """A copy with weights in bfloat16, as a checkpoint loads; buffers such as rotary frequencies stay float32."""
    model = copy.deepcopy(mllm.model)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    return type(mllm)(model, mllm.processor, mllm.config)


def random_window(frames: int, first: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Window:
    """Random frames. Frame number `first + i` has the same image in every window."""
    numbered = []
    for number in range(first, first + frames):
        image = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        numbered.append(Frame(image, stamp_ns=(number + 1) * 10**8, index=number))
    return Window(tuple(numbered))
