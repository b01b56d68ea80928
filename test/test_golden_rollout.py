"""The rollout against the published implementation's numbers: every case folder, whatever its family."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from conftest import GOLDEN_DIR
from transformers import AutoModelForImageTextToText

from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.llava_onevision import keep_published_features
from decaf_ros.grounding.mllm import prepare_model
from decaf_ros.grounding.qwen_vl import visual_positions
from decaf_ros.grounding.rollout import rollout_last_row

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
    """What newer releases want to know of M-RoPE families besides: 0 text, 1 image, 2 video."""
    wanted = "mm_token_type_ids" in inspect.signature(model.forward).parameters
    kind = 2 if "pixel_values_videos" in inputs else 1
    return {"mm_token_type_ids": visual.int() * kind} if wanted else {}


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
        keep_published_features(model)
    prepare_model(model)
    with torch.inference_mode(), record_attention(int(data["start_layer"])) as recording:
        logits = model(**inputs, use_cache=False).logits[:, -1]
    valid = inputs["attention_mask"].bool()
    for block in (7, 512):
        row = rollout_last_row(recording.layers, visual, valid, block=block)
        assert np.abs(row.numpy() - data["rollout"]).max() <= 1e-6
    assert np.abs(logits.numpy() - data["next_logits"]).max() <= 1e-4
