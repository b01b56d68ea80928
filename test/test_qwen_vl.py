"""The Qwen adapter on tiny checkpoints of the real architectures, against what transformers itself does."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from decaf_ros.config import MllmConfig
from decaf_ros.demo.tiny_mllm import write_tiny_mllm
from decaf_ros.grounding.mllm import decode, load_mllm, prefill
from decaf_ros.grounding.qwen_vl import visual_positions


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def mllm(request, tmp_path_factory):
    folder = write_tiny_mllm(tmp_path_factory.mktemp(request.param), request.param)
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, video_tokens=48))


def images(count=5, size_hw=(90, 130), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size_hw, 3), dtype=np.uint8)


def token_kinds(mllm, prompt, kind):
    """What transformers 5 wants to know besides (0 text, 1 image, 2 video); 4.57 finds it out from the ids."""
    wanted = "mm_token_type_ids" in inspect.signature(mllm.model.model.get_rope_index).parameters
    return {"mm_token_type_ids": prompt.visual.int() * (2 if kind == "video" else 1)} if wanted else {}


def test_grids(mllm):
    video, frames = mllm.video(images()), mllm.frames(images())
    assert video.grid == (3, 3, 5) and video.batch == 1
    assert frames.grid == (1, 6, 10) and frames.batch == 5
    assert mllm.token_grid((480, 854))[0] * mllm.token_grid((480, 854))[1] <= 48


def test_default_video_budget_is_400_tokens_of_a_pair(mllm):
    full = MllmConfig().video_tokens
    mllm.config, tiny = MllmConfig(), mllm.config
    try:
        grid = mllm.token_grid((480, 854))
    finally:
        mllm.config = tiny
    assert full == 400 and 350 <= grid[0] * grid[1] <= 400


@pytest.mark.parametrize("kind", ["video", "image"])
def test_prompt_is_what_the_processor_makes(mllm, kind):
    """Token ids and pixels are those of the family's own processor on the resized images."""
    pictures = images()
    visual = mllm.video(pictures) if kind == "video" else mllm.frames(pictures[:1])
    prompt = mllm.prompt(visual, "where is it?")
    resized = mllm._resized(pictures if kind == "video" else pictures[:1], visual.grid[1:])
    chat = mllm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "where is it?"}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    given = {"videos": [resized]} if kind == "video" else {"images": [resized[0]]}
    expected = mllm.processor(text=[chat], **given, do_resize=False, return_tensors="pt")
    assert torch.equal(prompt.inputs["input_ids"], expected["input_ids"])
    pixels = "pixel_values_videos" if kind == "video" else "pixel_values"
    torch.testing.assert_close(prompt.inputs[pixels], expected[pixels])
    assert "You are a helpful assistant" in mllm.tokenizer.decode(prompt.inputs["input_ids"][0])


@pytest.mark.parametrize("kind", ["video", "image", "text"])
def test_decoding_is_what_generate_does(mllm, kind):
    visual = {"video": mllm.video, "image": mllm.frames}[kind](images()) if kind != "text" else None
    prompt = mllm.prompt(visual, "where is it?")
    seen = prefill(mllm.model, prompt, mllm.layers, keep_cache=True)
    answers = decode(mllm, prompt, seen, 6)
    extra = token_kinds(mllm, prompt, kind) if visual is not None else {}
    tokens = mllm.model.generate(**prompt.inputs, **extra, max_new_tokens=6, do_sample=False)
    expected = mllm.tokenizer.batch_decode(tokens[:, prompt.visual.shape[1] :], skip_special_tokens=True)
    assert len(answers) == prompt.visual.shape[0]
    for answer, text in zip(answers, expected):
        assert answer == " ".join("".join(c if c.isprintable() else " " for c in text).split())


def test_tap_does_not_change_the_model(mllm):
    prompt = mllm.prompt(mllm.video(images()), "where is it?")
    tapped = prefill(mllm.model, prompt, 0, keep_cache=False)
    assert len(tapped.layers) == mllm.layers
    mllm.model.get_decoder().set_attn_implementation("sdpa")
    try:
        plain = prefill(mllm.model, prompt, 0, keep_cache=False)
    finally:
        mllm.model.get_decoder().set_attn_implementation("decaf_tap")
    assert plain.layers == [] and torch.equal(plain.next_token, tapped.next_token)


def test_text_after_a_long_window_goes_on_from_its_largest_position():
    """Grid (6, 2, 3), step 2: time runs to 10, farther than height and width."""
    visual = torch.tensor([[False] * 2 + [True] * 36 + [False] * 3])
    positions = visual_positions(visual, (6, 2, 3), 2.0)
    assert positions[:, 0, :2].tolist() == [[0, 1]] * 3
    assert positions[:, 0, 2].tolist() == [2, 2, 2]
    assert positions[:, 0, 37].tolist() == [2 + 10, 2 + 1, 2 + 2]
    assert positions[:, 0, 38:].tolist() == [[13, 14, 15]] * 3


def test_positions_agree_with_transformers_where_the_grid_is_larger(mllm):
    visual = mllm.frames(images(2))
    prompt = mllm.prompt(visual, "where is it?")
    expected, _ = mllm.model.model.get_rope_index(
        prompt.inputs["input_ids"],
        **token_kinds(mllm, prompt, "image"),
        image_grid_thw=prompt.inputs["image_grid_thw"],
    )
    assert torch.equal(prompt.positions, expected)


def test_control_tokens_in_a_query_are_refused(mllm):
    with pytest.raises(ValueError, match=r"expected plain text, got the model's control token <\|image_pad\|>"):
        mllm.prompt(mllm.video(images()), "where is <|image_pad|> it?")


def test_damaged_weights_are_named(tmp_path):
    folder = write_tiny_mllm(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="mllm.checkpoint .*damaged or not complete"):
        load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True))


def test_missing_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="mllm.checkpoint .*nowhere.*local_files_only is set"):
        load_mllm(MllmConfig(checkpoint=str(tmp_path / "nowhere"), local_files_only=True))


def test_other_family_is_refused_by_name(golden_dir):
    with pytest.raises(ValueError, match="expected a model of type qwen2_vl, qwen2_5_vl, got 'internvl'"):
        load_mllm(MllmConfig(checkpoint=str(golden_dir / "internvl"), local_files_only=True))
