"""The Qwen3-VL adapter on a tiny checkpoint of the real architecture, against transformers' own results."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from family_checks import (
    PATCHED,
    SIZES,
    check_decoding,
    check_inputs,
    check_maps,
    check_patches,
    check_segment,
    encode,
    noise,
    view,
)
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers.video_utils import VideoMetadata

from decaf_ros.config import EngineConfig, MllmConfig, Sam2Config
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.grounder import video_view
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame, Window
from tiny_models.qwen3_vl import write_tiny_qwen3_vl

WRAPPED = "<|vision_start|><|video_pad|><|vision_end|>"
TEXT = "where is it?"


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    folder = write_tiny_qwen3_vl(tmp_path_factory.mktemp("qwen3_vl"))
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, video_tokens=48, dtype="float32"))


def processed(mllm, view, placeholder="<|video_pad|>"):
    """The family processor's output for the images, resized to the layout's grid, at 2 frames per second.

    placeholder: for a video. Without the chat template's tokens around it all transformers releases agree.
    """
    pixels = torch.from_numpy(np.stack([frame.image for frame in view.frames])).permute(0, 3, 1, 2)
    size = [side * mllm._token_px for side in view.layout.grid[1:]]
    pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    kind = "video" if view.layout.kind == "video" else "image"
    content = [{"type": kind}, {"type": "text", "text": TEXT}]
    chat = mllm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if kind == "image":
        return mllm.processor(text=[chat], images=[pixels[0]], do_resize=False, return_tensors="pt")
    return mllm.processor(
        text=[chat.replace(WRAPPED, placeholder)],
        videos=[pixels],
        video_metadata=[VideoMetadata(len(pixels), fps=2.0, frames_indices=list(range(len(pixels))))],
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )


def test_grids(mllm):
    """A token covers 32 pixels; five frames are three pairs."""
    video, frames = mllm.layout("video", 5, (90, 130)), mllm.layout("frames", 1, (90, 130))
    assert (video.grid, video.units, video.frames_per_unit) == ((3, 3, 4), 3, 2)
    assert (frames.grid, frames.units, frames.frames_per_unit) == ((1, 6, 8), 1, 1)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_ids_and_positions_equal_the_family(mllm, kind, count):
    """Also in long windows, where the text continues from the largest position."""
    seen = view(mllm, kind, noise(count, (90, 130)))
    prompt, expected = mllm.prompt(seen.layout, TEXT), processed(mllm, seen)
    assert torch.equal(prompt.ids, expected["input_ids"][0])
    expected.pop("pixel_values", None), expected.pop("pixel_values_videos", None), expected.pop("attention_mask")
    positions, _ = mllm.model.model.get_rope_index(**expected)
    assert torch.equal(prompt.positions, positions[:, 0])
    assert int(prompt.positions[:, -1].min()) == int(prompt.positions.max())


def test_pairs_have_timestamps_and_no_outer_tokens(mllm):
    """Some releases keep the chat template's tokens around a video, which the published format does not have."""
    seen = view(mllm, "video", noise(5, (90, 130)))
    ours = mllm.tokenizer.decode(mllm.prompt(seen.layout, TEXT).ids)
    run = "<|vision_start|>" + 12 * "<|video_pad|>" + "<|vision_end|>"
    assert f"user\n<0.2 seconds>{run}<1.2 seconds>{run}<2.0 seconds>{run}{TEXT}" in ours
    theirs = mllm.tokenizer.decode(processed(mllm, seen, WRAPPED)["input_ids"][0])
    theirs = theirs.replace("<|vision_start|><0.2", "<0.2").replace("<|vision_end|><|vision_end|>", "<|vision_end|>")
    assert ours == theirs


def test_pairs_have_the_real_times_of_a_window(mllm):
    """Key frames with a gap of 20 s, as in an anchored window; caches tell it from the same pictures without one."""
    frames = [Frame(np.zeros((90, 130, 3), np.uint8), round(time * 1e9)) for time in (5.0, 5.52, 25.0, 25.5, 26.04)]
    seen = video_view(mllm, Window(tuple(frames)))
    text = mllm.tokenizer.decode(mllm.prompt(seen.layout, TEXT).ids)
    assert re.findall(r"<([\d.]+) seconds>", text) == ["0.3", "20.2", "21.0"]
    assert seen.key != view(mllm, "video", np.zeros((5, 90, 130, 3), np.uint8)).key


def test_text_alone(mllm):
    prompt = mllm.prompt(None, TEXT)
    chat = mllm.tokenizer.decode(prompt.ids)
    assert chat == f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n"
    assert torch.equal(prompt.ids, mllm.processor(text=[chat], return_tensors="pt")["input_ids"][0])
    assert prompt.positions.tolist() == [list(range(len(prompt.ids)))] * 3 and not prompt.slots.any()


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_inputs_equal_the_models_own_forward(mllm, kind, size_hw):
    """Including deep features: the attention of every layer is equal."""
    seen = view(mllm, kind, noise(5, size_hw))
    check_inputs(mllm, seen, TEXT, processed(mllm, seen))


def test_deep_features_belong_to_slots_only(mllm):
    """A batch cut after its last slot: each sequence has its own deep features, in order; none after the cut."""
    views = [view(mllm, "video", noise(4, (90, 130), seed)) for seed in range(2)]
    features = [encode(mllm, one) for one in views]
    prompt = mllm.prompt(views[0].layout, TEXT)
    length = int(prompt.slots.nonzero()[-1, 0]) + 1
    ids, slots = prompt.ids[:length], prompt.slots[:length]
    together = mllm.embed(ids, slots, features)
    assert together["visual_pos_masks"].shape == (2, length)
    alone = [mllm.embed(ids, slots, [one]) for one in features]
    for layer, parts in zip(together["deepstack_visual_embeds"], zip(*(a["deepstack_visual_embeds"] for a in alone))):
        assert torch.equal(layer, torch.cat(parts)) and not torch.equal(*parts)
    rest = mllm.embed(prompt.ids[length:], prompt.slots[length:], [(), ()])
    assert set(rest) == {"inputs_embeds"} and len(rest["inputs_embeds"]) == 2


@pytest.mark.parametrize("size_hw", PATCHED)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_bright_patch_appears_at_its_place(mllm, kind, size_hw, monkeypatch):
    check_patches(mllm, kind, size_hw, monkeypatch, lambda tokens: (tokens, [torch.cat(tokens)] * 3))


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_maps_equal_one_full_pass(mllm, kind):
    check_maps(mllm, kind, noise(6, (90, 130)))


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_decoding_equals_generate(mllm, kind):
    seen = view(mllm, kind, noise(5, (90, 130)))
    check_decoding(mllm, seen, TEXT, processed(mllm, seen))


def test_decoding_of_text_alone_equals_generate(mllm):
    check_decoding(mllm, None, TEXT, {"input_ids": mllm.prompt(None, TEXT).ids[None]})


def test_nothing_is_computed_past_the_last_layers_queries_and_keys(mllm):
    calls = []
    handle = mllm.model.get_decoder().layers[-1].mlp.register_forward_hook(lambda *_: calls.append(1))
    try:
        finish(Engine(mllm, EngineConfig()).ask([view(mllm, "video", noise(5, (90, 130)))], [TEXT], ReadOptions(2)))
    finally:
        handle.remove()
    assert not calls


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_whole_method(mllm, tiny_sam2_dir, mode):
    check_segment(mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True)), mode)


def test_a_template_without_the_familys_video_tokens_is_refused(mllm, monkeypatch):
    monkeypatch.setattr(mllm.processor, "chat_template", mllm.processor.chat_template.replace("<|vision_end|>", ""))
    with pytest.raises(ValueError, match="chat template: expected <.vision_start.><.video_pad.><.vision_end.>"):
        mllm.prompt(mllm.layout("video", 2, (90, 130)), TEXT)
