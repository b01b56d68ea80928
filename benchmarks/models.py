"""Models and inputs of the benchmarks: fixed seeds and sizes, so that ratios are comparable between machines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import _paths  # noqa: F401
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


# MID, for a CPU: the heads of the `rollout` benchmark, and a vision tower with the same share of operations as the 7B's
# (0.4 of the language model's for a key frame). The others are the published sizes, for a GPU.
MID = Shape(480, 12, 12, 2, 1280, 192, 6, 4, 512, (5,), 1000)
QWEN_3B = Shape(2048, 36, 16, 2, 11008, 1280, 32, 16, 3420, (7, 15, 23, 31), 151936)
QWEN_7B = Shape(3584, 28, 28, 4, 18944, 1280, 32, 16, 3420, (7, 15, 23, 31), 152064)


def random_mllm(folder: Path, shape: Shape, device: str = "cpu") -> Mllm:
    """Qwen2.5-VL with its real classes and processor, and random weights (float32 on a CPU, bfloat16 elsewhere).

    The tokenizer is the tiny checkpoint's, which covers only the first ids of the vocabulary.
    """
    config = MllmConfig(checkpoint=str(write_tiny_mllm(folder)), local_files_only=True, device=device)
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


def tabletop_sam2(embedding_cache: int = 20, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """The demo's trained SAM 2: random weights would give masks that overlap or are empty at random."""
    folder = Path(resolve_path("package://decaf_tabletop/models/tabletop_sam2"))
    config = Sam2Config(str(folder), device=device, embedding_cache=embedding_cache)
    return load_sam2(config, fill_holes_px)


def published_sam2(size: str, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """SAM 2.1 of a published size (`SIZES`) with random weights, as timings do not depend on them. Caches the embedding
    of one frame."""
    config = OmegaConf.load(Path(sam2.__file__).parent / f"configs/sam2.1/sam2.1_hiera_{SIZES[size]}.yaml")
    torch.manual_seed(0)
    model = build_model(OmegaConf.to_container(config, resolve=True)["model"]).to(device).eval()
    return Sam2(model, Sam2Config(device=device, embedding_cache=1), fill_holes_px)


def recorded_window(frames: int, size_hw: tuple[int, int] = SIZE_HW) -> tuple[Window, np.ndarray]:
    """Frames of the demo's bag, resized, and a map to plant, (T, 24, 42) float32 in [0, 1].

    The map has a peak on each of three objects that are visible throughout, with about two tokens above 0.8 per frame.
    """
    bag = resolve_path("package://decaf_tabletop/demo/bags/story")
    truth = read_ground_truth(bag)
    with BagReader(bag) as reader:
        labelled = [frame for frame in reader.frames(COMPRESSED_TOPIC) if frame.stamp_ns in truth.labels]
    chosen = labelled[:: len(labelled) // frames][:frames]
    labels = np.stack([truth.labels[frame.stamp_ns] for frame in chosen])
    visible = [label for label in range(1, len(truth.objects) + 1) if ((labels == label).sum(axis=(1, 2)) > 300).all()]
    planted = np.zeros((frames, 24, 42), np.float32)
    rows, columns = np.mgrid[:24, :42] + 0.5
    for label in visible[:3]:
        for peak, mask in zip(planted, labels == label):
            row, column = np.argwhere(mask).mean(axis=0) / mask.shape * peak.shape
            np.maximum(peak, np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 1.4**2)), out=peak)
    images = [cv2.resize(frame.image, size_hw[::-1]) for frame in chosen]
    return Window(tuple(Frame(image, 10**8 * (k + 1), "", k) for k, image in enumerate(images))), planted


def random_window(frames: int, first: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> Window:
    """Random frames. Frame number `first + i` has the same image in every window."""
    numbered = []
    for number in range(first, first + frames):
        image = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
        numbered.append(Frame(image, stamp_ns=(number + 1) * 10**8, index=number))
    return Window(tuple(numbered))
