"""The LLaVA-OneVision adapter on a tiny checkpoint of the real architecture, against transformers' own results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from family_checks import (
    SIZES,
    check_decoding,
    check_inputs,
    check_maps,
    check_places,
    check_segment,
    encode,
    noise,
    processed,
    tiles_alone,
    view,
)

from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.families.llava_onevision import SYSTEM_PROMPT, sizes_within
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.sam2_loading import load_sam2
from tiny_models.llava_onevision import write_tiny_llava_onevision

TEXT = "where is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llava_onevision(tmp_path_factory.mktemp("llava_onevision"))


@pytest.fixture(scope="module")
def mllm(folder):
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))


class Brightness(torch.nn.Module):
    """Replaces the vision tower and its projector: every patch and token is as bright as its pixels."""

    def __init__(self, config):
        super().__init__()
        self.patch, self.size = config.vision_config.patch_size, config.text_config.hidden_size

    def forward(self, pixel_values, **_):
        patches = torch.nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), self.patch)
        return SimpleNamespace(hidden_states=[patches.flatten(1)[..., None]])

    def project(self, features):
        return features.expand(*features.shape[:-1], self.size)


@pytest.fixture()
def brightness(folder):
    mllm = load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))
    mllm.model.model.vision_tower = tower = Brightness(mllm.model.config)
    mllm.model.model.multi_modal_projector.forward = tower.project
    return mllm


def test_layouts(mllm):
    video, frames = mllm.layout("video", 5, (90, 130)), mllm.layout("frames", 1, (90, 130))
    assert (video.grid, video.units, video.frames_per_unit) == ((5, 3, 3), 5, 1)
    # 3 x 4 tiles of 5 x 5 tokens. The image fills 13.8 of 15 rows: one row is removed at the top, one at the bottom.
    assert (frames.grid, frames.units, frames.frames_per_unit) == ((1, 13, 20), 1, 1)
    # 6 x 5 tiles are more than nine: 30 x 25 tokens are scaled down to about nine tiles of 25.
    assert mllm.layout("frames", 1, (480, 400)).grid == (1, 16, 13)


@pytest.mark.parametrize(("tiles", "grid"), [(1, (1, 3, 5)), (4, (1, 6, 10))])
def test_fewer_tiles(folder, tiles, grid):
    config = MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32", frame_tiles=tiles)
    few = load_mllm(config)
    seen = view(few, "frames", noise(1, (480, 854)))
    assert seen.layout.grid == grid
    check_inputs(few, seen, TEXT, tiles_alone(few, seen, TEXT, SYSTEM_PROMPT))


def test_too_few_tiles_are_refused():
    config = MllmConfig(frame_tiles=1)
    with pytest.raises(ValueError, match="mllm.frame_tiles: expected at least 2 for this model, got 1"):
        sizes_within([[384, 768], [768, 768]], 384, config)


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_inputs_equal_the_family(mllm, kind, size_hw):
    seen = view(mllm, kind, noise(3, size_hw))
    check_inputs(mllm, seen, TEXT, tiles_alone(mllm, seen, TEXT, SYSTEM_PROMPT))


def test_text_alone_and_system_prompt(mllm):
    prompt = mllm.prompt(None, TEXT)
    assert torch.equal(prompt.ids, processed(mllm, None, TEXT, SYSTEM_PROMPT)["input_ids"][0])
    assert not prompt.slots.any() and len(prompt.cells) == 0
    assert mllm.tokenizer.decode(prompt.ids).startswith(f"<|im_start|>system \n{SYSTEM_PROMPT}<|im_end|>")


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_every_slot_is_a_cell(mllm, kind):
    """No base image and no newline tokens, which the processor adds."""
    seen = view(mllm, kind, noise(3, (90, 130)))
    prompt = mllm.prompt(seen.layout, TEXT)
    assert torch.equal(prompt.slots, prompt.visual)
    assert torch.equal(prompt.positions, torch.arange(len(prompt.ids)))
    left_out = 1 if kind == "video" else 25 + seen.layout.grid[1]
    assert len(processed(mllm, seen, TEXT, SYSTEM_PROMPT)["input_ids"][0]) == len(prompt.ids) + left_out
    inputs = mllm.embed(prompt.ids, prompt.slots, [encode(mllm, seen)])["inputs_embeds"][0]
    assert not (inputs == mllm.model.model.image_newline).all(dim=-1).any()


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_maps_equal_one_full_pass(mllm, kind):
    check_maps(mllm, kind, noise(3, (90, 130)))


@pytest.mark.parametrize("kind", ["video", "frames", "text"])
def test_decoding_equals_generate(mllm, kind):
    seen = None if kind == "text" else view(mllm, kind, noise(3, (90, 130)))
    check_decoding(mllm, seen, TEXT, tiles_alone(mllm, seen, TEXT, SYSTEM_PROMPT))


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_cells_match_their_place_in_the_image(brightness, kind, size_hw):
    check_places(brightness, kind, size_hw, 0.5)


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_whole_method(mllm, tiny_sam2_dir, mode):
    check_segment(mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True)), mode)


@pytest.mark.parametrize("token", ["<image>", "<video>", "<|im_end|>"])
def test_control_tokens_in_a_query_are_refused(mllm, token):
    with pytest.raises(ValueError, match="expected plain text, got the model's control token"):
        mllm.prompt(mllm.layout("video", 2, (90, 130)), f"where is {token} it?")
