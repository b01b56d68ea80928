"""The rollout against the published implementation's results, for every case folder."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GOLDEN_DIR
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaOnevisionImageProcessor

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.attention_tap import LayerAttention, record_attention
from decaf_ros.grounding.families.llava_onevision import LlavaOnevision, remove_final_norm, tile_tokens
from decaf_ros.grounding.families.qwen_vl import visual_positions
from decaf_ros.grounding.mllm import Features, prepare_model
from decaf_ros.grounding.rollout import PrefixAttention, rollout_last_row, rollout_steps
from decaf_ros.stages import finish

CASES = sorted(folder.parent.name for folder in GOLDEN_DIR.glob("*/case.npz"))


def test_golden_folder_has_cases():
    assert CASES, f"no */case.npz under {GOLDEN_DIR}"


def qwen_positions(model, inputs, visual):
    vision = model.config.vision_config
    grids = inputs.get("video_grid_thw", inputs.get("image_grid_thw"))
    assert (grids == grids[0]).all()
    t, h, w = grids[0].tolist()
    step = 1.0
    if "video_grid_thw" in inputs and getattr(vision, "tokens_per_second", None) is not None:
        step = vision.tokens_per_second * float(inputs["second_per_grid_ts"][0])
    merge = vision.spatial_merge_size
    return visual_positions(visual, (t, h // merge, w // merge), step, inputs["attention_mask"].bool())


def token_kinds(model, inputs, visual):
    """The extra input of newer transformers releases for M-RoPE families: 0 text, 1 image, 2 video."""
    required = "mm_token_type_ids" in inspect.signature(model.forward).parameters
    kind = 2 if "pixel_values_videos" in inputs else 1
    return {"mm_token_type_ids": visual.int() * kind} if required else {}


def tiles_as_embeddings(model, inputs):
    """The adapter's inputs for LLaVA-OneVision's frame branch: transformers would feed base image and newlines too."""
    adapter = LlavaOnevision(model, SimpleNamespace(tokenizer=None), MllmConfig())
    rows = []
    for ids, tiles, size in zip(inputs["input_ids"], inputs["pixel_values"], inputs["image_sizes"].tolist()):
        with torch.inference_mode():
            (tokens,) = tile_tokens(model, tiles[None], adapter.layout("frames", 1, tuple(size)))
        rows.append(adapter.embed(ids, ids == model.config.image_token_id, [[Features(tokens)]])["inputs_embeds"])
    return {"inputs_embeds": torch.cat(rows), "attention_mask": inputs["attention_mask"]}


@pytest.mark.parametrize("case", CASES)
def test_golden_rollout(case):
    data = np.load(GOLDEN_DIR / case / "case.npz")
    model = AutoModelForImageTextToText.from_pretrained(GOLDEN_DIR / case, dtype=torch.float32).eval()
    inputs = {name[3:]: torch.from_numpy(data[name]) for name in data.files if name.startswith("in_")}
    visual = torch.from_numpy(data["visual_mask"])
    family = type(model.config).model_type
    if family in ("qwen2_vl", "qwen2_5_vl"):
        inputs["position_ids"] = qwen_positions(model, inputs, visual)
    else:
        inputs |= token_kinds(model, inputs, visual)
    if family == "llava_onevision" and "pixel_values" in inputs:
        inputs = tiles_as_embeddings(model, inputs)
    elif family == "llava_onevision":
        prepare_model(remove_final_norm(model))
    else:
        prepare_model(model)
    with torch.inference_mode(), record_attention(int(data["start_layer"])) as recording:
        logits = model(**inputs, use_cache=False).logits[:, -1]
    valid = inputs["attention_mask"].bool()
    for block in (7, 512):
        row = rollout_last_row(recording.layers, visual, valid, block=block)
        assert np.abs(row.numpy() - data["rollout"]).max() <= 1e-6
        # As in the engine: the prefix ends with the last visual token, the text is a suffix.
        for place in range(len(visual)):
            row = by_suffix(recording.layers, visual[place], valid[place], place, block)
            in_prefix = row != 0
            assert in_prefix[visual[place]].all()
            assert np.abs(row.numpy() - data["rollout"][place])[in_prefix].max() <= 1e-6
    assert np.abs(logits.numpy() - data["next_logits"]).max() <= 1e-4


@pytest.mark.parametrize("case", [case for case in CASES if "images" in np.load(GOLDEN_DIR / case / "case.npz")])
def test_golden_tiles(case):
    """Tiles of LLaVA-OneVision's frame branch, from images. The published code resizes with another library."""
    data, config = np.load(GOLDEN_DIR / case / "case.npz"), AutoConfig.from_pretrained(GOLDEN_DIR / case)
    side = config.vision_config.image_size
    tiler = LlavaOnevisionImageProcessor(
        size={"height": side, "width": side},
        image_grid_pinpoints=config.image_grid_pinpoints,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    tiles = tiler(images=list(data["images"]), return_tensors="pt")["pixel_values"][:, 1:]
    assert tiles.shape == data["in_pixel_values"].shape
    assert np.abs(tiles.numpy() - data["in_pixel_values"]).max() < 0.03


def by_suffix(layers, visual, valid, place, block):
    """(N,): rollout of one sequence of a batch, 0 after its prefix and at padding."""
    first, last = int(valid.nonzero()[0]), int(valid.nonzero()[-1]) + 1
    length = int(visual.nonzero()[-1]) + 1
    one = slice(place, place + 1)
    prefix = [LayerAttention(q[one, :, first:length], k[one, :, first:length], scaling) for q, k, scaling in layers]
    suffix = [LayerAttention(q[one, :, length:last], k[one, :, length:last], scaling) for q, k, scaling in layers]
    row = torch.zeros(len(visual))
    row[first:length] = finish(rollout_steps(PrefixAttention(prefix, visual[first:length]), [suffix], block=block))[
        0, 0
    ]
    return row
