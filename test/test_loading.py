"""Quantised loading. Its packages are optional; without them only the refusals are tested."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from decaf_ros.config import EngineConfig, MllmConfig
from decaf_ros.grounding import loading
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.stages import finish
from decaf_ros.types import Frame
from tiny_models.internvl import write_tiny_internvl
from tiny_models.llava import write_tiny_llava
from tiny_models.llava_onevision import write_tiny_llava_onevision
from tiny_models.qwen3_vl import write_tiny_qwen3_vl
from tiny_models.qwen_vl import write_tiny_mllm

PACKAGES = {"bnb_4bit": "bitsandbytes", "bnb_8bit": "bitsandbytes", "torchao_int8": "torchao"}
WRITERS = {
    "qwen2_5_vl": write_tiny_mllm,
    "qwen3_vl": write_tiny_qwen3_vl,
    "internvl": write_tiny_internvl,
    "llava_onevision": write_tiny_llava_onevision,
    "llava": write_tiny_llava,
}


def load(folder, **options):
    options = {"local_files_only": True, "video_tokens": 48, "dtype": "float32"} | options
    return load_mllm(MllmConfig(checkpoint=str(folder), **options))


@pytest.mark.parametrize("method", PACKAGES)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_package_is_named(tiny_mllm_dir, monkeypatch, method, missing):
    package = (PACKAGES[method], "accelerate")[missing]

    def require(requirement):
        if requirement.startswith(package):
            raise ImportError

    monkeypatch.setattr(loading, "require_version", require)
    advice = f"{method}: expected {package}>=.* pip install 'decaf_ros.{PACKAGES[method]}"
    with pytest.raises(ValueError, match=advice):
        load(tiny_mllm_dir, quantization=method)


@pytest.mark.parametrize("method", PACKAGES)
def test_other_devices_are_refused(tiny_mllm_dir, method):
    with pytest.raises(ValueError, match=f"mllm.quantization {method}: expected mllm.device cuda or cpu, got mps"):
        load(tiny_mllm_dir, quantization=method, device="mps")


def test_quantised_checkpoints_are_not_quantised_again(tmp_path):
    folder = write_tiny_mllm(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="mllm.quantization: expected none, .* is quantised already"):
        load(folder, quantization="torchao_int8")


def test_extras_match_the_requirements_of_loading():
    text = (Path(__file__).parents[1] / "setup.py").read_text()
    for package in ("bitsandbytes", "torchao"):
        (line,) = (line for line in text.splitlines() if line.strip().startswith(f'"{package}":'))
        for requirement in (loading.QUANTISERS[package], loading.QUANTISERS["accelerate"]):
            assert f'"{requirement},<' in line


@pytest.mark.parametrize("family", WRITERS)
def test_missing_weights_are_named(tmp_path, family):
    """Weights of the vision tower, of a language-model layer, and of the head if it is not tied: transformers would
    initialise them at random."""
    weights = WRITERS[family](tmp_path) / "model.safetensors"
    # Clones: the memory-mapped file is overwritten.
    whole = {name: part.clone() for name, part in load_file(weights).items()}
    vision = [name for name in whole if "vis" in name]
    layers = [name for name in whole if "layers" in name and name not in vision]
    head = [name for name in whole if "lm_head" in name]
    for name in (vision[0], layers[-1], *head):
        save_file({key: value for key, value in whole.items() if key != name}, weights, {"format": "pt"})
        with pytest.raises(ValueError, match="damaged or not complete: expected all weights of .*, 1 are missing"):
            load(tmp_path)
    save_file(whole, weights, {"format": "pt"})
    assert load(tmp_path).layers


MISSING = {
    "config.json": ["config.json"],
    "model.safetensors or pytorch_model.bin": ["model.safetensors"],
    "tokenizer.json or vocab.json and merges.txt": ["tokenizer.json", "vocab.json"],
    "preprocessor_config.json": ["preprocessor_config.json", "processor_config.json"],
}


@pytest.mark.parametrize("family", WRITERS)
def test_a_folder_without_a_file_is_refused_with_its_name(tmp_path, family):
    whole, folder = WRITERS[family](tmp_path / "whole"), tmp_path / "model"
    for named, files in MISSING.items():
        shutil.copytree(whole, folder)
        for file in files:
            (folder / file).unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError) as caught:
            load(folder)
        assert named in str(caught.value) and "decaf weights get" not in str(caught.value)
        shutil.rmtree(folder)
    shutil.copytree(whole, folder)
    (folder / "chat_template.jinja").unlink()
    if family == "llava":  # its format is fixed, so copies of the checkpoint without a template work too
        assert load(folder).layers
        return
    with pytest.raises(ValueError, match="expected tokenizer, special tokens and chat template of this model: .*templ"):
        load(folder)


def test_missing_shards_are_named(tmp_path):
    folder = write_tiny_mllm(tmp_path)
    whole = load(folder)
    (folder / "model.safetensors").unlink()
    whole.model.save_pretrained(folder, max_shard_size="200KB")
    assert load(folder).layers
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"missing in the folder .*: {shards[1].name}$"):
        load(folder)


@pytest.mark.parametrize(
    ("renamed", "number", "message"),
    [("<|image_pad|>", None, ".*one placeholder"), ("<|im_start|>", 5000, "expected tokens below .*, got 5000")],
)
def test_a_tokenizer_of_another_model_is_refused(tmp_path, renamed, number, message):
    """It lacks a special token of the model, or has tokens that the model does not have."""
    folder = write_tiny_mllm(tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    name, vocabulary = renamed if number else "<|picture|>", tokenizer["model"]["vocab"]
    (token,) = (token for token in tokenizer["added_tokens"] if token["content"] == renamed)
    token |= {"content": name, "id": number or token["id"]}
    del vocabulary[renamed]
    vocabulary[name] = token["id"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for file in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"tokenizer, special tokens and chat template of this model: {message}"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"added_tokens": []}'),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "{% for x"),
        ("generation_config.json", "[]"),
        ("config.json", "[]"),
    ],
)
def test_a_file_with_other_content_is_refused_when_loading(tmp_path, file, text):
    folder = write_tiny_mllm(tmp_path / "model")
    assert (folder / file).exists()
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=f"mllm.checkpoint '{folder}'"):
        load(folder)


def test_the_home_folder_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tiny_mllm(tmp_path / "models" / "mug")
    assert load("~/models/mug").layers
    with pytest.raises(FileNotFoundError, match=f"expected a folder, but {tmp_path}/models/cup does not exist"):
        load("~/models/cup")
    with pytest.raises(FileNotFoundError, match="config.json; give the folder that contains it"):
        load("~/models/mug/config.json")


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run(tmp_path, monkeypatch, file):
    """Not even if somebody pipes a "y" into the process: transformers would ask on the terminal."""
    folder, marker = write_tiny_mllm(tmp_path / "model"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    document = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    names = ("AutoConfig", "AutoProcessor", "AutoTokenizer", "AutoModelForImageTextToText")
    document["auto_map"] = {name: ["own.Own", None] if name == "AutoTokenizer" else "own.Own" for name in names}
    if file == "config.json":
        document["model_type"] = "own_kind"
    else:
        document |= {"processor_class": "OwnProcessor", "tokenizer_class": "OwnTokenizer"}
    (folder / file).write_text(json.dumps(document))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if file == "config.json":
        with pytest.raises(ValueError, match="expected a model of type qwen2_vl, .* its own code, which is never run"):
            load(folder)
    else:
        with contextlib.suppress(ValueError):  # some versions fall back to the classes of the model type
            load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("part", ["", "text_config", "vision_config"])
def test_a_kernel_that_a_folder_names_is_not_loaded(tmp_path, key, part):
    """transformers would load it from the hub, or complain that its package `kernels` is missing."""
    folder = write_tiny_mllm(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    (document[part] if part else document)[key] = "somebody/kernel"
    (folder / "config.json").write_text(json.dumps(document))
    assert load(folder).model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("part", ["", "text_config", "vision_config"])
def test_a_folder_does_not_decide_what_computes_it_and_where(tmp_path, part):
    """Fusions, kernels of experts, devices, and the file of the weights: transformers would do as it says, or fail."""
    folder = write_tiny_mllm(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    (document[part] if part else document).update(
        experts_implementation="somebody/kernel",
        _experts_implementation="somebody/kernel",
        fusion_config={"somebody": True},
        distributed_config={"tp_plan": "auto", "tp_size": 2},
        transformers_weights="other.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(document))
    settings = load(folder).model.config
    assert "somebody" not in str(settings) and "other.safetensors" not in str(settings)


@pytest.mark.parametrize("part", ["", "text_config"])
def test_a_folder_with_quantisation_by_code_of_the_hub_is_refused(tmp_path, part):
    folder = write_tiny_mllm(tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    (document[part] if part else document)["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="quant_method: expected one of awq, bitsandbytes, .*, got 'mxfp4'"):
        load(folder)


def test_an_adapter_that_names_another_model_is_refused(tmp_path):
    folder = write_tiny_mllm(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/model"}))
    with pytest.raises(ValueError, match="expected a whole model, got an adapter"):
        load(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: write(tmp_path_factory.mktemp(family)) for family, write in WRITERS.items()}


def skip_without(package):
    """Skips without the package, except in `make test-quantised`, which requires all."""
    for name in (package, "accelerate"):
        if os.environ.get("DECAF_REQUIRE_QUANTISERS"):
            importlib.import_module(name)
        pytest.importorskip(name, minversion=loading.QUANTISERS[name].partition(">=")[2])


def maps(mllm):
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    # LLaVA-1.5 sees one image.
    kind, images = ("frames", images[:1]) if mllm.model.config.model_type == "llava" else ("video", images)
    layout = mllm.layout(kind, len(images), (96, 128))
    view = View(layout, tuple(Frame(image, number + 1) for number, image in enumerate(images)))
    return finish(Engine(mllm, EngineConfig()).ask([view], ["where is it?"], ReadOptions(2, max_new_tokens=3)))[0][
        0
    ].map


def effective_weight(layer):
    """(out, in): the weight that the layer multiplies by, however it is stored."""
    with torch.inference_mode():
        return (layer(torch.eye(layer.in_features)) - (0 if layer.bias is None else layer.bias)).T


# precision: relative error of the weights. likeness: correlation of the maps with those of a model with the same
# (dequantised) weights; on a CPU bnb_4bit may multiply in bfloat16, and bnb_8bit also quantises activations.
@pytest.mark.parametrize(
    "method, precision, likeness",
    [("bnb_4bit", 0.12, 0.99), ("bnb_8bit", 0.01, 0.9), ("torchao_int8", 0.01, 0.999999)],
)
@pytest.mark.parametrize("family", WRITERS)
def test_only_the_language_model_is_quantised(folders, family, method, precision, likeness):
    skip_without(PACKAGES[method])
    plain, mllm = load(folders[family]), load(folders[family], quantization=method)
    language_modules = {id(module) for module in mllm.model.get_decoder().modules()}
    for name, layer in mllm.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = plain.model.get_submodule(name).weight.data
            assert (type(layer.weight) is not torch.nn.Parameter) == (id(layer) in language_modules), name
            error = effective_weight(layer) - weight
            assert error.norm() <= (precision if id(layer) in language_modules else 1e-5) * weight.norm(), name
            weight += error
    expected, found = maps(plain), maps(mllm)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > likeness


def test_a_quantised_checkpoint_loads_unchanged(folders, tmp_path):
    skip_without("bitsandbytes")
    quantised = load(folders["qwen3_vl"], quantization="bnb_4bit")
    quantised.model.save_pretrained(tmp_path)
    quantised.processor.save_pretrained(tmp_path)
    assert np.array_equal(maps(load(tmp_path)), maps(quantised))
