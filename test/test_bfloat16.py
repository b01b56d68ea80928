"""The GPU's precision, also on the CPU: bfloat16 (multimodal LLM) and autocast (SAM 2) equal float32 up to rounding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sam2_scenes import disc, moving_scene

from decaf_ros.config import EngineConfig, MllmConfig, Sam2Config
from decaf_ros.devices import has_bfloat16_units, resolve_dtype
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.io.parameter_files import load_config
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame
from tiny_models.internvl import write_tiny_internvl
from tiny_models.llava_onevision import write_tiny_llava_onevision
from tiny_models.qwen3_vl import write_tiny_qwen3_vl
from tiny_models.qwen_vl import write_tiny_mllm

WRITERS = [write_tiny_mllm, write_tiny_qwen3_vl, write_tiny_internvl, write_tiny_llava_onevision]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        id="gpu",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]
TEXTS = ["What is meant by the red ball?", "Describe the surroundings of it, and nothing else."]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["video", "frames"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_tiny_"))
def test_maps_in_bfloat16(tmp_path, write, kind, device):
    folder, found = write(tmp_path), {}
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3), dtype=np.uint8)
    frames = tuple(Frame(image, number + 1) for number, image in enumerate(images))
    for place, dtype in (("cpu", "float32"), (device, "bfloat16")):
        mllm = load_mllm(MllmConfig(str(folder), local_files_only=True, device=place, dtype=dtype, video_tokens=48))
        assert {weight.dtype for weight in mllm.model.parameters()} == {getattr(torch, dtype)}
        views = [View(mllm.layout("video", 4, (96, 128)), frames)]
        if kind == "frames":
            layout = mllm.layout("frames", 1, (96, 128))
            views = [View(layout, (frame,)) for frame in frames]
        results = finish(Engine(mllm, EngineConfig()).ask(views, TEXTS, ReadOptions(2, max_new_tokens=2)))
        found[dtype] = np.stack([[result.map for result in text_results] for text_results in results])
    exact, rounded = found.values()
    assert rounded.dtype == np.float32 and exact.std() > 0
    assert np.corrcoef(exact.ravel(), rounded.ravel())[0, 1] > 0.99
    # These random models attend to single tokens, where a rounded logit has the largest effect.
    assert np.abs(exact - rounded).max() < 0.2 * exact.max()


@pytest.mark.parametrize("units", [True, False])
def test_auto_is_bfloat16_on_a_cpu_with_matrix_units_for_it(tiny_mllm_dir, monkeypatch, units):
    """Sums over tokens stay float32."""
    monkeypatch.setattr("decaf_ros.devices.has_bfloat16_units", lambda: units)
    mllm = load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, device="cpu", video_tokens=48))
    dtype = torch.bfloat16 if units else torch.float32
    assert {weight.dtype for weight in mllm.model.parameters()} == {dtype}
    engine = Engine(mllm, EngineConfig())
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    view = View(
        mllm.layout("video", 2, (96, 128)), tuple(Frame(image, place + 1) for place, image in enumerate(images))
    )
    finish(engine.ask([view], TEXTS, ReadOptions(2)))
    (attention,) = (engine.prefixes.peek(key).attention for key in engine.prefixes)
    assert {layer.query.dtype for layer in attention.layers} == {dtype}
    statistics = [*attention.strength.values(), *attention.log_total.values()]
    assert statistics and {value.dtype for value in statistics} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "on_cuda"),
    [("config/paper.yaml", torch.bfloat16), ("decaf_tabletop/config/tabletop.yaml", torch.float32)],
)
def test_configurations_with_published_figures_stay_float32_on_a_cpu(name, on_cuda, monkeypatch):
    monkeypatch.setattr("decaf_ros.devices.has_bfloat16_units", lambda: True)
    dtype = load_config(Path(__file__).parents[1] / name).mllm.dtype
    assert [resolve_dtype(dtype, torch.device(kind)) for kind in ("cpu", "cuda")] == [torch.float32, on_cuda]


def test_matrix_units_are_found_in_the_list_of_flags(tmp_path):
    file = tmp_path / "cpuinfo"
    lines = "processor\t: {}\nflags\t\t: fpu avx512_bf16 amx_tile{}\nbugs\t\t: amx_bf16\n\n"
    for flag, found in ((" amx_bf16 amx_int8", True), (" amx_bf16", True), (" amx_int8", False)):
        file.write_text("".join(lines.format(number, flag) for number in range(2)))
        assert has_bfloat16_units(file) == found
    assert not has_bfloat16_units(tmp_path / "nowhere")
    if hasattr(torch.cpu, "get_capabilities"):
        assert has_bfloat16_units() == torch.cpu.get_capabilities().get("amx_bf16", False)


def test_sam2_under_autocast(tiny_sam2_dir):
    frames = moving_scene(4)
    found = []
    for autocast in (False, True):
        sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))
        sam2._autocast = autocast  # normally only on a GPU
        clicked = sam2.masks_at_points(sam2.embed(frames[0]), np.array([[0.3, 0.5], [0.75, 0.4]], np.float32))
        prompts = np.stack([disc(frames[0].size_hw, 0.3, 0.5, 0.18), disc(frames[0].size_hw, 0.75, 0.4, 0.12)])
        tracks = propagate(sam2, frames, 1, torch.from_numpy(prompts)).flatten(0, 1)
        found.append((clicked, masks_of_size(tracks, frames[0].size_hw)))
    (clicked, tracks), (rough_clicked, rough_tracks) = found
    assert clicked.masks.flatten(1).any(1).all() and tracks.flatten(1).any(1).all()
    pairs = [*zip(clicked.masks, rough_clicked.masks), *zip(tracks, rough_tracks)]
    assert all(mask_iou(one.numpy(), other.numpy()) > 0.9 for one, other in pairs)
    assert rough_clicked.iou.dtype == torch.float32
    torch.testing.assert_close(clicked.iou, rough_clicked.iou, atol=0.05, rtol=0)
