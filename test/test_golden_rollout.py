"""The rollout against the published implementation's results, for every case folder."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from conftest import GOLDEN_DIR
from transformers import AutoModelForImageTextToText

from decaf_ros.grounding.attention_tap import LayerAttention, record_attention
from decaf_ros.grounding.families.llava_onevision import remove_final_norm
from decaf_ros.grounding.families.qwen_vl import visual_positions
from decaf_ros.grounding.mllm import prepare_model
from decaf_ros.grounding.rollout import PrefixAttention, rollout_last_row, rollout_of_suffixes

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
    if family == "llava_onevision":
        remove_final_norm(model)
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


def by_suffix(layers, visual, valid, place, block):
    """(N,): rollout of one sequence of a batch, 0 after its prefix and at padding."""
    first, last = int(valid.nonzero()[0]), int(valid.nonzero()[-1]) + 1
    length = int(visual.nonzero()[-1]) + 1
    one = slice(place, place + 1)
    prefix = [LayerAttention(q[one, :, first:length], k[one, :, first:length], scaling) for q, k, scaling in layers]
    suffix = [LayerAttention(q[one, :, length:last], k[one, :, length:last], scaling) for q, k, scaling in layers]
    row = torch.zeros(len(visual))
    row[first:length] = rollout_of_suffixes(PrefixAttention(prefix, visual[first:length]), [suffix], block=block)[0, 0]
    return row
