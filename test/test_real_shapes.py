"""Every family with the files and shapes of a published checkpoint, against transformers' own results.

The folder is written as the hub has it, with few layers and random weights. Narrow layers run everywhere; the published
widths are slow.
"""

from __future__ import annotations

import gc
import inspect
import json
import shutil
from functools import cache, partial
from unittest.mock import patch

import numpy as np
import pytest
import torch
from family_checks import check_decoding, check_inputs, check_segment, noise, processed, tiles_alone, view
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers.video_utils import VideoMetadata

from decaf_ros.config import MllmConfig, Sam2Config
from decaf_ros.grounding.families import internvl, llava_onevision
from decaf_ros.grounding.families.qwen3_vl import Qwen3Vl
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.sam2_loading import load_sam2
from hub_models import CHECKPOINTS, write_hub_folder

TEXT = "where is it?"


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param((name, False), id=f"{name}-narrow") for name in CHECKPOINTS),
        *(pytest.param((name, True), id=name, marks=pytest.mark.slow) for name in CHECKPOINTS),
    ],
)
def folder(request, tmp_path_factory):
    """Deleted afterwards: pytest keeps temporary folders, and these are large."""
    name, wide = request.param
    written = write_hub_folder(tmp_path_factory.mktemp(name), name, wide)
    yield written
    shutil.rmtree(written)


def load(folder, dtype):
    gc.collect()
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, video_tokens=48, dtype=dtype))


@pytest.fixture(scope="module")
def mllm(folder):
    return load(folder, "float32")


@pytest.fixture(scope="module")
def expected(mllm):
    """The family processor's output for a kind of view."""
    return cache(lambda kind: processor_output(mllm, view_of(mllm, kind)))


def processor_output(mllm, seen):
    if isinstance(mllm, llava_onevision.LlavaOnevision):
        return tiles_alone(mllm, seen, TEXT, llava_onevision.SYSTEM_PROMPT)
    if isinstance(mllm, internvl.InternVl):
        # Without the thumbnail after the tiles.
        tiler = mllm.processor.image_processor
        no_thumbnail = partial(tiler.crop_image_to_patches, use_thumbnail=False)
        with patch.object(tiler, "crop_image_to_patches", no_thumbnail):
            return processed(mllm, seen, TEXT, internvl.SYSTEM_PROMPT)
    return processed_by_qwen(mllm, seen)


def processed_by_qwen(mllm, seen):
    """With images resized to the layout's grid, and two frames per second."""
    content, media = [{"type": "text", "text": TEXT}], {}
    if seen is not None:
        kind = "video" if seen.layout.kind == "video" else "image"
        content.insert(0, {"type": kind})
        pixels = torch.from_numpy(np.stack([frame.image for frame in seen.frames])).permute(0, 3, 1, 2)
        size = [side * mllm._token_px for side in seen.layout.grid[1:]]
        pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        media = {"images": [pixels[0]], "do_resize": False}
        if kind == "video":
            metadata = VideoMetadata(len(pixels), fps=2.0, frames_indices=list(range(len(pixels))))
            media = {"videos": [pixels], "video_metadata": [metadata], "do_resize": False, "do_sample_frames": False}
    chat = mllm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if isinstance(mllm, Qwen3Vl):
        # Without the chat template's tokens around a video all transformers releases agree.
        chat = chat.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    inputs = mllm.processor(text=[chat], **media, return_tensors="pt")
    if seen is None or "mm_token_type_ids" not in inspect.signature(mllm.model.model.get_rope_index).parameters:
        inputs.pop("mm_token_type_ids", None)
    return inputs


def size_of(mllm):
    """InternVL3 splits any frame of 3:4 into 12 tiles, of 1:2 into 2."""
    return (96, 192) if isinstance(mllm, internvl.InternVl) else (96, 128)


def view_of(mllm, kind):
    """A video of four pictures, one picture, or none."""
    return None if kind == "text" else view(mllm, kind, noise(4, size_of(mllm)))


def test_vocabulary(mllm, folder):
    """Every token that a prompt can contain has an embedding; end tokens and placeholders are in their places."""
    rows = mllm.model.get_input_embeddings().num_embeddings
    assert rows == mllm.model.config.get_text_config().vocab_size
    head = mllm.model.get_output_embeddings().weight
    shared = head.data_ptr() == mllm.model.get_input_embeddings().weight.data_ptr()
    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert head.shape[0] == rows and shared != any(name.endswith("lm_head.weight") for name in files)
    assert mllm.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]) == [151643, 151645]
    assert mllm.model.generation_config.eos_token_id in (151645, [151645, 151643])
    ids = torch.cat([mllm.prompt(mllm.layout(kind, 2, size_of(mllm)), TEXT).ids for kind in ("video", "frames")])
    assert 151643 < int(ids.max()) < rows


@pytest.mark.parametrize("kind", ["video", "frames", "text"])
def test_ids_equal_the_processors(mllm, expected, kind):
    seen = view_of(mllm, kind)
    prompt = mllm.prompt(None if seen is None else seen.layout, TEXT)
    assert torch.equal(prompt.ids, expected(kind)["input_ids"][0])


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_queries_and_next_token_equal_the_models_own_forward(mllm, expected, kind):
    check_inputs(mllm, view_of(mllm, kind), TEXT, expected(kind))


@pytest.mark.parametrize("kind", ["video", "frames", "text"])
def test_answer_equals_generate(mllm, expected, kind):
    check_decoding(mllm, view_of(mllm, kind), TEXT, expected(kind))


@pytest.mark.parametrize("mode", [pytest.param("paper", marks=pytest.mark.slow), "fast"])
def test_whole_method_in_bfloat16(mllm, folder, tiny_sam2_dir, mode):
    """With maps close to those of float32."""
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))
    check = partial(check_segment, sam2=sam2, mode=mode, contrast=False, size_hw=size_of(mllm))
    result, exact = check(load(folder, "bfloat16")), check(mllm)
    for branch in ("video", "frames"):
        maps = [getattr(segmentation.grounding.maps, branch).object.ravel() for segmentation in (result, exact)]
        assert np.corrcoef(maps)[0, 1] > 0.95
