"""The LLaVA-1.5 adapter on checkpoints of the real architecture, tiny and with published shapes, against transformers'
own results."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
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
    view,
)
from transformers import CLIPImageProcessor
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, Sam2Config, replace
from decaf_ros.doctor import checkpoint
from decaf_ros.doctor.findings import OK, WRONG
from decaf_ros.doctor.memory import check_memory, mllm_need
from decaf_ros.evaluation.baselines.head_files import Head, HeadFile, write_heads
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.registry import MethodSpec, load_models, make_method
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame, Window
from tiny_models.llava import PATCH, SIDE, write_llava, write_tiny_llava

TEXT = "where is it?"
SQUARE_PX = PATCH * SIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def mllm(folder):
    return load(folder)


def load(folder):
    return load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="float32"))


def processed(mllm, seen, text, tiler=None):
    """The family processor's output. tiler: an image processor in place of its own."""
    content, media = [{"type": "text", "text": text}], {}
    if seen is not None:
        content.insert(0, {"type": "image"})
        media = {"images": [torch.from_numpy(seen.frames[0].image).permute(2, 0, 1)]}
    chat = mllm.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    own = mllm.processor.image_processor
    mllm.processor.image_processor = tiler or own
    try:
        inputs = mllm.processor(text=[chat], **media, return_tensors="pt")
    finally:
        mllm.processor.image_processor = own
    # Unused with one-dimensional positions, and `generate` refuses it.
    inputs.pop("mm_token_type_ids", None)
    return inputs


def test_layouts(mllm):
    wide = mllm.layout("frames", 1, (480, 854))
    # 480 / 854 of 6 tokens is 3.4; an odd rest of padding is below.
    assert (wide.grid, wide.start, wide.tokens, wide.units) == ((1, 3, 6), (1, 0), 36, 1)
    assert mllm.layout("frames", 1, (400, 400)).grid == (1, 6, 6)
    tall = mllm.layout("frames", 1, (900, 100))
    assert (tall.grid, tall.start) == ((1, 6, 1), (0, 2))


def test_the_video_branch_is_refused(mllm, folder, tiny_sam2_dir):
    with pytest.raises(ValueError, match="grounding.branches: expected frames, as LLaVA-1.5 sees one image"):
        mllm.layout("video", 4, (96, 128))
    models = {"mllm.checkpoint": str(folder), "sam2.checkpoint": str(tiny_sam2_dir)}
    config = replace(DecafConfig(), models | {"mllm.local_files_only": True, "sam2.local_files_only": True})
    with pytest.raises(ValueError, match="grounding.branches: expected frames"):
        Decaf.from_config(config)
    assert Decaf.from_config(replace(config, {"grounding.branches": "frames"})).grounder.mllm.layers == 4
    with pytest.raises(ValueError, match="grounding.branches: expected frames"):
        make_method(load_models(config), config, MethodSpec("rollout-mean"))


def test_loc_head_runs_on_the_frames(mllm, tiny_sam2_dir, tmp_path):
    """Whatever branches are configured: it has the frames' maps alone (Tab. 1, 2)."""
    chosen = (Head(1, 2, 0.9, 0.5), Head(3, 0, 0.8, 0.4))
    write_heads(tmp_path / "heads.yaml", HeadFile("tiny", "llava", 4, 4, 1, "by hand", (), "original", 0.1, chosen))
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))
    method = make_method(Models(mllm, sam2), DecafConfig(), MethodSpec("loc-head", tmp_path / "heads.yaml"))
    frames = [Frame(image, number + 1) for number, image in enumerate(noise(3, (96, 128)))]
    found = method.segment(Window(tuple(frames)), "the red ball", frames)
    assert found.grounding.maps.fused.shape == (3, 4, 6) and found.grounding.maps.fused.max() == 1
    assert found.dense_labels.shape == (3, 96, 128) and found.coarse_masks.any()


def test_inputs_equal_the_family(mllm):
    """A square of the tower's size is neither resized nor padded."""
    seen = view(mllm, "frames", noise(1, (SQUARE_PX, SQUARE_PX)))
    check_inputs(mllm, seen, TEXT, processed(mllm, seen, TEXT))


@pytest.mark.parametrize("size_hw", [(2 * PATCH, SQUARE_PX), (SQUARE_PX, 4 * PATCH)])
def test_padding_equals_that_of_training(mllm, size_hw):
    """For images of whole tokens with an even rest of padding."""
    square = {"height": SQUARE_PX, "width": SQUARE_PX}
    padding = LlavaImageProcessor(do_pad=True, size={"shortest_edge": SQUARE_PX}, crop_size=square)
    assert list(padding.image_mean) == list(mllm.processor.image_processor.image_mean)
    seen = view(mllm, "frames", noise(1, size_hw))
    check_inputs(mllm, seen, TEXT, processed(mllm, seen, TEXT, padding))


def test_text_alone(mllm):
    prompt = mllm.prompt(None, TEXT)
    assert torch.equal(prompt.ids, processed(mllm, None, TEXT)["input_ids"][0])
    assert not prompt.slots.any() and len(prompt.cells) == 0
    assert mllm.tokenizer.decode(prompt.ids) == f"<s> USER: {TEXT} ASSISTANT:"


def test_cells_are_the_images_slots(mllm):
    prompt = mllm.prompt(mllm.layout("frames", 1, (480, 854)), TEXT)
    slots = prompt.slots.nonzero()[:, 0].reshape(6, 6)
    assert torch.equal(prompt.cells, slots[1:4].flatten())
    assert mllm.tokenizer.decode(prompt.ids).startswith("<s> USER: " + "<image>" * 36 + "\nwhere")


def test_maps_equal_one_full_pass(mllm):
    check_maps(mllm, "frames", noise(3, (90, 130)))


def test_maps_in_bfloat16(mllm, folder):
    rounded = load_mllm(MllmConfig(checkpoint=str(folder), local_files_only=True, dtype="bfloat16"))
    assert {weight.dtype for weight in rounded.model.parameters()} == {torch.bfloat16}
    seen = view(mllm, "frames", noise(1, (96, 128)))
    maps = [
        finish(Engine(one, EngineConfig()).ask([seen], [TEXT], ReadOptions(2)))[0][0].map for one in (mllm, rounded)
    ]
    assert np.corrcoef([one.ravel() for one in maps])[0, 1] > 0.99 and maps[0].std() > 0


@pytest.mark.parametrize("kind", ["frames", "text"])
def test_decoding_equals_generate(mllm, kind):
    seen = None if kind == "text" else view(mllm, kind, noise(1, (SQUARE_PX, SQUARE_PX)))
    check_decoding(mllm, seen, TEXT, processed(mllm, seen, TEXT))


class Brightness(torch.nn.Module):
    """Replaces the vision tower and its projector: every patch and token is as bright as its pixels."""

    def forward(self, pixel_values, **_):
        patches = torch.nn.functional.avg_pool2d(pixel_values.mean(dim=1, keepdim=True), PATCH).flatten(1)[..., None]
        with_class = torch.nn.functional.pad(patches, (0, 0, 1, 0))
        return SimpleNamespace(hidden_states=[with_class, with_class])


@pytest.fixture(scope="module")
def brightness(folder):
    mllm = load(folder)
    mllm.model.model.vision_tower = Brightness()
    mllm.model.model.multi_modal_projector.forward = lambda features: features.expand(*features.shape[:-1], 64)
    return mllm


@pytest.mark.parametrize("size_hw", SIZES)
def test_cells_match_their_place_in_the_image(brightness, size_hw):
    check_places(brightness, "frames", size_hw, 0.5)


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_whole_method(mllm, tiny_sam2_dir, mode):
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))
    check_segment(mllm, sam2, mode, contrast=False, branches="frames")


@pytest.mark.parametrize("token", ["<image>", "</s>"])
def test_control_tokens_in_a_query_are_refused(mllm, token):
    with pytest.raises(ValueError, match="expected plain text, got the model's control token"):
        mllm.prompt(None, f"where is {token} it?")


def test_another_tower_is_refused(mllm):
    settings = SimpleNamespace(
        vision_config=SimpleNamespace(model_type="siglip_vision_model"),
        get_text_config=lambda: SimpleNamespace(model_type="qwen2"),
    )
    with pytest.raises(ValueError, match=r"expected LLaVA-1.5 .* got \('siglip_vision_model', 'qwen2'\)"):
        type(mllm)(SimpleNamespace(config=settings), mllm.processor, mllm.config)


def test_doctor(folder):
    changes = {"mllm.checkpoint": str(folder), "mllm.dtype": "float32", "grounding.branches": "frames"}
    config = replace(DecafConfig(), changes | {"window.size": 4, "mllm.device": "cpu"})
    found = {finding.name: finding for finding in checkpoint.check_checkpoint(config)}
    assert {found[f"{name} to a {kind}"].state for name in ("answer",) for kind in ("text", "picture")} == {OK}
    # All tokens of the square, at 64 numbers of 4 bytes.
    assert mllm_need(config, (480, 854)).features == 4 * SIDE**2 * 64 * 4
    wrong, *others = check_memory(replace(config, {"grounding.branches": "both"}), (480, 854))
    assert (wrong.name, wrong.state) == ("grounding.branches", WRONG) and "LLaVA-1.5 sees one image" in wrong.text
    assert "grounding.branches" not in {finding.name for finding in (*others, *check_memory(config, (480, 854)))}


def test_published_shapes(tmp_path, tiny_sam2_dir):
    """24 x 24 tokens of 14 pixels, 32,000 entries before `<image>`, head size 128; few narrow layers."""
    text = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    mllm = load(write_llava(tmp_path, text, vision, 32000, 14, 24))
    assert mllm.model.config.image_token_id == 32000
    assert mllm.tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<image>", "<pad>"]) == [1, 2, 32000, 32001]
    assert len(mllm.model.get_input_embeddings().weight) == 32064
    assert mllm.layout("frames", 1, (480, 854)).grid == (1, 13, 24)
    seen = view(mllm, "frames", noise(1, (336, 336)))
    assert seen.layout.grid == (1, 24, 24) and encode(mllm, seen)[0].tokens.shape == (576, 256)
    check_inputs(mllm, seen, TEXT, processed(mllm, seen, TEXT))
    check_decoding(mllm, seen, TEXT, processed(mllm, seen, TEXT))
    assert isinstance(mllm.processor.image_processor, CLIPImageProcessor)
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))
    check_segment(mllm, sam2, "fast", contrast=False, branches="frames")
