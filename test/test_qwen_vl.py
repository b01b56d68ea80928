"""The Qwen adapter on tiny checkpoints of the real architectures, against transformers' own results."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from family_checks import PATCHED, check_maps, check_patches, check_segment, noise
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from decaf_ros.config import EngineConfig, MllmConfig, Sam2Config
from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.families.qwen_vl import visual_positions
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame
from tiny_models.qwen_vl import write_tiny_mllm


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def mllm(request, tmp_path_factory):
    folder = write_tiny_mllm(tmp_path_factory.mktemp(request.param), request.param)
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, video_tokens=48, dtype="float32"))


def images(count=5, size_hw=(90, 130), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size_hw, 3), dtype=np.uint8)


def processed(mllm, layout, pictures, text):
    """The family processor's output for the images, resized to the layout's grid, and the text."""
    size = [side * mllm._token_px for side in layout.grid[1:]]
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    kind = "video" if layout.kind == "video" else "image"
    chat = mllm.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": text}]}],
        tokenize=False,
        add_generation_prompt=True,
    )
    media = {"videos": [pixels]} if kind == "video" else {"images": [pixels[0]]}
    inputs = mllm.processor(text=[chat], **media, do_resize=False, return_tensors="pt")
    # Required by transformers 5 (0 text, 1 image, 2 video); 4.57 derives it from the ids.
    if "mm_token_type_ids" not in inspect.signature(mllm.model.model.get_rope_index).parameters:
        inputs.pop("mm_token_type_ids", None)
    # A list of frames has no rate; the processor assumes one.
    inputs.pop("second_per_grid_ts", None)
    return inputs


def view(mllm, kind, pictures):
    """The layout and its images."""
    used = pictures if kind == "video" else pictures[:1]
    return mllm.layout(kind, len(used), used.shape[1:3]), used


def as_units(layout, pictures):
    """(units, frames_per_unit, H, W, 3), padded with the last frame."""
    padded = np.concatenate([pictures, pictures[-1:].repeat(-len(pictures) % layout.frames_per_unit, axis=0)])
    return padded.reshape(layout.units, layout.frames_per_unit, *pictures.shape[1:])


def test_grids(mllm):
    video, frames = mllm.layout("video", 5, (90, 130)), mllm.layout("frames", 1, (90, 130))
    assert (video.grid, video.units, video.frames_per_unit) == ((3, 3, 5), 3, 2)
    assert (frames.grid, frames.units, frames.frames_per_unit) == ((1, 6, 10), 1, 1)
    assert mllm.token_grid((480, 854))[0] * mllm.token_grid((480, 854))[1] <= 48


def test_default_video_budget_is_400_tokens_of_a_pair(mllm):
    full = MllmConfig().video_tokens
    mllm.config, tiny = MllmConfig(), mllm.config
    try:
        grid = mllm.token_grid((480, 854))
    finally:
        mllm.config = tiny
    assert full == 400 and 350 <= grid[0] * grid[1] <= 400


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_ids_features_and_positions_equal_the_family(mllm, kind):
    """The processor's ids, the model's features of the processor's pixels, and its positions where they are correct."""
    layout, pictures = view(mllm, kind, images())
    prompt = mllm.prompt(layout, "where is it?")
    expected = processed(mllm, layout, pictures, "where is it?")
    assert torch.equal(prompt.ids, expected["input_ids"][0])
    assert "You are a helpful assistant" in mllm.tokenizer.decode(prompt.ids)
    if kind == "video":
        features = mllm.model.get_video_features(expected["pixel_values_videos"], expected["video_grid_thw"])
    else:
        features = mllm.model.get_image_features(expected["pixel_values"], expected["image_grid_thw"])
    units = mllm.encode(layout, as_units(layout, pictures))
    assert len(units) == layout.units
    tokens = torch.cat([unit.tokens for unit in units])
    torch.testing.assert_close(tokens, torch.cat(list(getattr(features, "pooler_output", features))), atol=1e-5, rtol=0)
    if kind == "frames":
        expected.pop("pixel_values"), expected.pop("attention_mask")
        positions, _ = mllm.model.model.get_rope_index(**expected)
        assert torch.equal(prompt.positions, positions[:, 0])


@pytest.mark.parametrize("size_hw", PATCHED)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_bright_patch_appears_at_its_place(mllm, kind, size_hw, monkeypatch):
    check_patches(mllm, kind, size_hw, monkeypatch, lambda tokens: tokens)


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_maps_equal_one_full_pass(mllm, kind):
    check_maps(mllm, kind, noise(6, (90, 130)))


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_whole_method(mllm, tiny_sam2_dir, mode):
    check_segment(mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True)), mode)


@pytest.mark.parametrize("kind", ["video", "frames", "text"])
def test_decoding_equals_generate(mllm, kind):
    """Through the engine: prefix of visual tokens, then the text on its KV cache, then token by token."""
    pictures = images()
    engine = Engine(mllm, EngineConfig())
    if kind == "text":
        answers = [finish(engine.answer("where is it?", 6)).text]
        ids = mllm.prompt(None, "where is it?").ids
        expected = [{"input_ids": ids[None]}]
    else:
        layout, used = view(mllm, kind, pictures)
        count = 1 if kind == "video" else 3
        views = [View(layout, tuple(map(Frame, pictures[k : k + len(used)], range(1, 9)))) for k in range(count)]
        answers = [
            result.answer for result in finish(engine.ask(views, ["where is it?"], ReadOptions(2, max_new_tokens=6)))[0]
        ]
        expected = [processed(mllm, layout, pictures[k : k + len(used)], "where is it?") for k in range(count)]
    for answer, inputs in zip(answers, expected):
        tokens = mllm.model.generate(**inputs, max_new_tokens=6, do_sample=False)[0]
        text = mllm.tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == " ".join("".join(char if char.isprintable() else " " for char in text).split())
    assert len(answers) == len(expected)


def test_repetition_penalty_of_the_checkpoint(mllm, monkeypatch):
    """It applies to greedy decoding too, and to the tokens of the prompt. Below 1 it favours them."""
    prompt, answers = mllm.prompt(None, "where is it?"), []
    for penalty in (None, 1.0, 0.3):
        monkeypatch.setattr(mllm.model.generation_config, "repetition_penalty", penalty)
        tokens = mllm.model.generate(input_ids=prompt.ids[None], max_new_tokens=12, do_sample=False)[0]
        expected = mllm.tokenizer.decode(tokens[len(prompt.ids) :], skip_special_tokens=True)
        answers.append(finish(Engine(mllm, EngineConfig()).answer("where is it?", 12)).text)
        assert answers[-1] == " ".join("".join(char if char.isprintable() else " " for char in expected).split())
    assert answers[0] == answers[1] != answers[2]


def test_tap_does_not_change_the_model(mllm):
    layout, pictures = view(mllm, "video", images())
    inputs = processed(mllm, layout, pictures, "where is it?")
    with torch.inference_mode(), record_attention(0) as recording:
        tapped = mllm.model(**inputs).logits
    assert len(recording.layers) == mllm.layers
    mllm.model.get_decoder().set_attn_implementation("sdpa")
    try:
        with torch.inference_mode(), record_attention(0) as recording:
            plain = mllm.model(**inputs).logits
    finally:
        mllm.model.get_decoder().set_attn_implementation("decaf_tap")
    assert recording.layers == [] and torch.equal(plain, tapped)


def test_text_after_a_long_window_continues_from_its_largest_position():
    """Grid (6, 2, 3), step 2: time reaches 10, more than height and width."""
    visual = torch.tensor([[False] * 2 + [True] * 36 + [False] * 3])
    positions = visual_positions(visual, (6, 2, 3), 2.0)
    assert positions[:, 0, :2].tolist() == [[0, 1]] * 3
    assert positions[:, 0, 2].tolist() == [2, 2, 2]
    assert positions[:, 0, 37].tolist() == [2 + 10, 2 + 1, 2 + 2]
    assert positions[:, 0, 38:].tolist() == [[13, 14, 15]] * 3


def test_time_of_a_long_window_in_a_prompt(mllm):
    """40 frames at 2 per second: one position per pair in Qwen2-VL, two in Qwen2.5-VL, then the text."""
    layout = mllm.layout("video", 40, (90, 130))
    prompt = mllm.prompt(layout, "where is it?")
    # The oldest supported transformers reports the language model's type here.
    step = {"qwen2_vl": 1, "qwen2_5_vl": 2}[mllm.model.config.model_type.removesuffix("_text")]
    first, last = int(prompt.cells[0]), int(prompt.cells[-1])
    cells = prompt.positions[:, prompt.cells].reshape(3, *layout.grid)
    assert layout.grid[0] == 20 and 19 * step > max(layout.grid[1:])
    assert cells[0, :, 0, 0].tolist() == [first + step * pair for pair in range(20)]
    assert cells[1:, -1, -1, -1].tolist() == [first + layout.grid[1] - 1, first + layout.grid[2] - 1]
    assert prompt.positions[:, last + 1].tolist() == [first + 19 * step + 1] * 3


def test_control_tokens_in_a_query_are_refused(mllm):
    with pytest.raises(ValueError, match=r"expected plain text, got the model's control token <\|image_pad\|>"):
        mllm.prompt(mllm.layout("video", 5, (90, 130)), "where is <|image_pad|> it?")


def test_damaged_weights_raise(tmp_path):
    folder = write_tiny_mllm(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ValueError, match="mllm.checkpoint .*damaged or not complete"):
        load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))


def test_missing_checkpoint_gives_advice(tmp_path):
    with pytest.raises(FileNotFoundError, match="mllm.checkpoint .*expected a folder, but .*nowhere does not exist$"):
        load_mllm(MllmConfig(checkpoint=str(tmp_path / "nowhere"), local_files_only=True))
    with pytest.raises(FileNotFoundError, match="mllm.checkpoint 'no/where'.*local_files_only .*decaf weights get"):
        load_mllm(MllmConfig(checkpoint="no/where", local_files_only=True))


def test_other_families_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "idefics"}')
    with pytest.raises(ValueError, match="expected a model of type qwen2_vl, qwen2_5_vl, .*, got 'idefics'"):
        load_mllm(MllmConfig(checkpoint=str(tmp_path), local_files_only=True, dtype="float32"))
