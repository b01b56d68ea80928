"""The models and inputs that are measured: fixed seeds, fixed sizes, so that two machines can be compared by ratios."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import sam2
import torch
from omegaconf import OmegaConf
from transformers import Qwen2_5_VLForConditionalGeneration

from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.io.bags import BagReader
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.sam2 import Sam2, build_model, load_sam2
from decaf_ros.types import Frame, Window
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, read_ground_truth
from tiny_models.qwen_vl import write_tiny_mllm

SIZE_HW = (480, 854)
SIZES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


@dataclass(frozen=True)
class Shape:
    """Of a language model and a vision tower of the Qwen2.5-VL architecture."""

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


# What a CPU can be asked for: the heads of `rollout`'s rows, and a vision tower that takes as much of the whole as the
# 7B's does (0.4 of the language model's operations for a key frame). And the published sizes, for a GPU.
MID = Shape(480, 12, 12, 2, 1280, 192, 6, 4, 512, (5,), 1000)
QWEN_3B = Shape(2048, 36, 16, 2, 11008, 1280, 32, 16, 3420, (7, 15, 23, 31), 151936)
QWEN_7B = Shape(3584, 28, 28, 4, 18944, 1280, 32, 16, 3420, (7, 15, 23, 31), 152064)


def random_mllm(folder: Path, shape: Shape, device: str = "cpu") -> Mllm:
    """Real Qwen2.5-VL classes and processor, random weights (float32 on a CPU, bfloat16 elsewhere). The tokenizer is
    the tiny checkpoint's, which knows the first words of the vocabulary alone."""
    config = MllmConfig(checkpoint=str(write_tiny_mllm(folder)), local_files_only=True, device=device)
    tiny = load_mllm(config)
    sizes = tiny.model.config
    text, vision = sizes.text_config, sizes.vision_config
    text.hidden_size, text.num_hidden_layers = shape.hidden, shape.layers
    text.num_attention_heads, text.num_key_value_heads = shape.heads, shape.key_heads
    text.vocab_size = max(shape.vocabulary, text.vocab_size)
    text.intermediate_size, text.layer_types = shape.feedforward, ["full_attention"] * shape.layers
    # Half of a head's dimension, for time, height and width.
    half = shape.hidden // shape.heads // 2
    section = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = text.rope_parameters if hasattr(text, "rope_parameters") else text.rope_scaling
    rope["mrope_section"] = section
    text.initializer_range = vision.initializer_range = 0.02
    vision.hidden_size, vision.depth, vision.num_heads = shape.vision_hidden, shape.vision_layers, shape.vision_heads
    vision.intermediate_size, vision.out_hidden_size = shape.vision_feedforward, shape.hidden
    vision.fullatt_block_indexes, vision.window_size = list(shape.full_attention), 112
    vision._attn_implementation = "sdpa"  # the adapter's own is for a model that is there
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(sizes, dtype=next(tiny.model.parameters()).dtype)
    model.generation_config = tiny.model.generation_config
    return type(tiny)(model.eval(), tiny.processor, config)


def tabletop_sam2(embedding_cache: int = 20, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """The demo's SAM 2, trained: random weights would make masks that overlap or are empty as chance has it."""
    folder = Path(resolve_path("package://decaf_tabletop/models/tabletop_sam2"))
    config = Sam2Config(str(folder), device=device, embedding_cache=embedding_cache)
    return load_sam2(config, fill_holes_px)


def published_sam2(size: str, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """SAM 2.1 of a published size (`SIZES`); random weights, which take as long as others. One frame's embedding is
    remembered."""
    config = OmegaConf.load(Path(sam2.__file__).parent / f"configs/sam2.1/sam2.1_hiera_{SIZES[size]}.yaml")
    torch.manual_seed(0)
    model = build_model(OmegaConf.to_container(config, resolve=True)["model"]).to(device).eval()
    return Sam2(model, Sam2Config(device=device, embedding_cache=1), fill_holes_px)


def recorded_window(frames: int, size_hw: tuple[int, int] = SIZE_HW) -> tuple[Window, np.ndarray]:
    """Frames of the demo's bag at another size, and a map (T, 24, 42) float32 in [0, 1] to be planted: a hill on each
    of three objects that are there throughout, of about two tokens over 0.8 on every frame."""
    bag = resolve_path("package://decaf_tabletop/demo/bags/story")
    truth = read_ground_truth(bag)
    with BagReader(bag) as reader:
        every = [frame for frame in reader.frames(COMPRESSED_TOPIC) if frame.stamp_ns in truth.labels]
    some = every[:: len(every) // frames][:frames]
    labels = np.stack([truth.labels[frame.stamp_ns] for frame in some])
    seen = [label for label in range(1, len(truth.objects) + 1) if ((labels == label).sum(axis=(1, 2)) > 300).all()]
    planted = np.zeros((frames, 24, 42), np.float32)
    rows, columns = np.mgrid[:24, :42] + 0.5
    for label in seen[:3]:
        for hill, mask in zip(planted, labels == label):
            row, column = np.argwhere(mask).mean(axis=0) / mask.shape * hill.shape
            np.maximum(hill, np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 1.4**2)), out=hill)
    images = [cv2.resize(frame.image, size_hw[::-1]) for frame in some]
    return Window(tuple(Frame(image, 10**8 * (k + 1), "", k) for k, image in enumerate(images))), planted


def window(frames: int, first: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Window:
    """Random frames; those with the same number are the same in every window."""
    made = []
    for number in range(first, first + frames):
        image = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        made.append(Frame(image, stamp_ns=(number + 1) * 10**8, index=number))
    return Window(tuple(made))
