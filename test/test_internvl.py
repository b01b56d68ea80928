"""The InternVL adapter on a tiny checkpoint of the real architecture, against transformers' own results."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

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
    view,
)

from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.families.internvl import SYSTEM_PROMPT
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.sam2_loading import load_sam2
from tiny_models.internvl import write_tiny_internvl

TEXT = "where is it?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_internvl(tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="module")
def mllm(folder):
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))


def expected(mllm, view):
    """The family processor's output for a view, without the thumbnail after its tiles."""
    tiler = mllm.processor.image_processor
    tiles_alone = partial(tiler.crop_image_to_patches, use_thumbnail=False)
    with patch.object(tiler, "crop_image_to_patches", tiles_alone):
        return processed(mllm, view, TEXT, SYSTEM_PROMPT)


class Brightness(torch.nn.Module):
    """Replaces the vision tower and its projector: every patch and token is as bright as its pixels."""

    def __init__(self, config):
        super().__init__()
        self.patch, self.size = config.vision_config.patch_size[0], config.text_config.hidden_size

    def forward(self, pixel_values, **_):
        patches = torch.nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), self.patch)
        patches = torch.nn.functional.pad(patches.flatten(1)[..., None], (0, 0, 1, 0))
        return SimpleNamespace(last_hidden_state=patches)

    def project(self, features):
        return features.mean(dim=-1, keepdim=True).expand(*features.shape[:-1], self.size)


@pytest.fixture()
def brightness(folder):
    mllm = load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))
    mllm.model.model.vision_tower = tower = Brightness(mllm.model.config)
    mllm.model.model.multi_modal_projector.forward = tower.project
    return mllm


def test_layouts(mllm):
    video, frames = mllm.layout("video", 5, (480, 854)), mllm.layout("frames", 1, (480, 854))
    assert (video.grid, video.units, video.frames_per_unit) == ((5, 3, 3), 5, 1)
    assert (frames.grid, frames.units, frames.frames_per_unit) == ((1, 2 * 3, 4 * 3), 1, 1)
    assert mllm.layout("frames", 1, (84, 84)).grid == (1, 3, 3)
    for size in SIZES:
        grid = mllm.layout("frames", 1, size).grid
        assert grid[1] * grid[2] <= 12 * 9


def test_fewer_tiles(folder):
    """One tile shows the frame as the video branch does; the processor splits into at most four just as the adapter."""
    alone, few = (
        load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32", frame_tiles=count))
        for count in (1, 4)
    )
    pictures = noise(1, (480, 854))
    single, video = view(alone, "frames", pictures), view(alone, "video", pictures)
    assert single.layout.grid == video.layout.grid == (1, 3, 3)
    (one,), (other,) = encode(alone, single), encode(alone, video)
    assert torch.allclose(one.tokens, other.tokens, atol=1e-5)
    assert few.layout("frames", 1, (480, 854)).grid == (1, 3, 2 * 3)
    few.processor.image_processor.max_patches = 4
    seen = view(few, "frames", pictures)
    check_inputs(few, seen, TEXT, expected(few, seen))


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_inputs_equal_the_family(mllm, kind, size_hw):
    seen = view(mllm, kind, noise(3, size_hw))
    check_inputs(mllm, seen, TEXT, expected(mllm, seen))


def test_text_alone_and_system_prompt(mllm):
    prompt = mllm.prompt(None, TEXT)
    assert torch.equal(prompt.ids, expected(mllm, None)["input_ids"][0])
    assert not prompt.slots.any() and len(prompt.cells) == 0
    assert mllm.tokenizer.decode(prompt.ids).startswith(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n")
    video = mllm.tokenizer.decode(mllm.prompt(mllm.layout("video", 2, (90, 130)), TEXT).ids)
    one = "<img>" + "<IMG_CONTEXT>" * 9 + "</img>\n"
    assert f"<|im_start|>user\nFrame1: {one}Frame2: {one}{TEXT}<|im_end|>" in video


def test_only_the_thumbnail_is_left_out(mllm):
    seen = view(mllm, "frames", noise(1, (480, 854)))
    tiles, whole = expected(mllm, seen)["pixel_values"], processed(mllm, seen, TEXT, SYSTEM_PROMPT)["pixel_values"]
    assert len(tiles) == 8 and torch.equal(tiles, whole[:-1])


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_maps_equal_one_full_pass(mllm, kind):
    check_maps(mllm, kind, noise(3, (90, 130)))


@pytest.mark.parametrize("kind", ["video", "frames", "text"])
def test_decoding_equals_generate(mllm, kind):
    seen = None if kind == "text" else view(mllm, kind, noise(3, (90, 130)))
    check_decoding(mllm, seen, TEXT, expected(mllm, seen))


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["video", "frames"])
def test_cells_match_their_place_in_the_image(brightness, kind, size_hw):
    check_places(brightness, kind, size_hw, 0.15)


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_whole_method(mllm, tiny_sam2_dir, mode):
    check_segment(mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True)), mode)


@pytest.mark.parametrize("token", ["<IMG_CONTEXT>", "<video>", "<|im_end|>"])
def test_control_tokens_in_a_query_are_refused(mllm, token):
    with pytest.raises(ValueError, match="expected plain text, got the model's control token"):
        mllm.prompt(mllm.layout("video", 2, (90, 130)), f"where is {token} it?")
