"""Loading SAM 2: folders as on the hub, weights, and what a configuration may build."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import sam2 as sam2_package
import torch
from safetensors.torch import load_file, save_file
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2_loading import _read_model_config, build_model, load_sam2


def test_pt_file_with_yaml_and_folder_with_pt_load_the_same_weights(tiny_sam2_dir, tmp_path):
    weights = load_file(tiny_sam2_dir / "model.safetensors")
    torch.save({"model": weights}, tmp_path / "model.pt")
    shutil.copy(tiny_sam2_dir / "model.yaml", tmp_path)
    as_file = Sam2Config(str(tmp_path / "model.pt"), str(tmp_path / "model.yaml"), device="cpu")
    for config in (as_file, Sam2Config(str(tmp_path), device="cpu")):
        loaded = load_sam2(config).model.state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize(("config", "weights"), HF_MODEL_ID_TO_FILENAMES.values())
def test_a_folder_as_on_the_hub(tiny_sam2_dir, tmp_path, monkeypatch, config, weights):
    """With the network of its own YAML file, or of the package's if it has none; `~` is the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny, name = load_file(tiny_sam2_dir / "model.safetensors"), Path(config).name
    torch.save({"model": tiny}, tmp_path / weights)
    shutil.copy(tiny_sam2_dir / "model.yaml", tmp_path / name)
    # The hub's folders also contain the weights of another library.
    save_file({"other": torch.zeros(1)}, tmp_path / "model.safetensors")
    for checkpoint in (str(tmp_path), "~", f"~/{weights}"):
        loaded = load_sam2(Sam2Config(checkpoint, device="cpu")).model.state_dict()
        assert all(torch.equal(loaded[part], value) for part, value in tiny.items())
    (tmp_path / name).rename(tmp_path / "other.yaml")
    with pytest.raises(ValueError, match=rf"{weights} does not fit .*/{re.escape(config)}"):
        load_sam2(Sam2Config("~", device="cpu"))
    assert load_sam2(Sam2Config("~", "~/other.yaml", device="cpu")).image_size == 256


def test_a_published_network_from_a_folder_as_on_the_hub(tmp_path):
    name, weights = HF_MODEL_ID_TO_FILENAMES["facebook/sam2.1-hiera-tiny"]
    file = Path(sam2_package.__file__).parent / name
    model = build_model(_read_model_config(file))
    torch.save({"model": model.state_dict()}, tmp_path / weights)
    shutil.copy(file, tmp_path)
    loaded = load_sam2(Sam2Config(str(tmp_path), device="cpu"))
    assert loaded.image_size == 1024
    assert all(torch.equal(loaded.model.state_dict()[part], value) for part, value in model.state_dict().items())


def test_several_published_models_in_a_folder_are_refused(tmp_path):
    for size in ("tiny", "large"):
        (tmp_path / f"sam2.1_hiera_{size}.pt").touch()
    with pytest.raises(FileNotFoundError, match="one published file .*, found sam2.1_hiera_large.pt, sam2.1_hiera_tin"):
        load_sam2(Sam2Config(str(tmp_path)))


def test_weights_of_another_model_are_refused(tiny_sam2_dir, tmp_path):
    weights = load_file(tiny_sam2_dir / "model.safetensors")
    torch.save({"model": weights}, tmp_path / "tiny.pt")
    with pytest.raises(ValueError, match="does not fit .*sam2.1_hiera_t.yaml"):
        load_sam2(Sam2Config(str(tmp_path / "tiny.pt"), "sam2.1_hiera_t", device="cpu"))
    shutil.copy(tiny_sam2_dir / "model.yaml", tmp_path)
    weights.popitem()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load_sam2(Sam2Config(str(tmp_path), device="cpu"))


def test_errors_for_missing_checkpoints_give_advice(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="model.yaml and model.safetensors"):
        load_sam2(Sam2Config(str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="found notes.txt"):
        load_sam2(Sam2Config(str(tmp_path)))
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="a .pt file needs its configuration"):
        load_sam2(Sam2Config(str(tmp_path / "weights.pt")))
    with pytest.raises(FileNotFoundError, match="sam2.1_hiera_l"):
        load_sam2(Sam2Config(str(tmp_path / "weights.pt"), "hiera_gigantic"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="decaf weights get facebook/sam2.1-hiera-tiny"):
        load_sam2(Sam2Config("facebook/sam2.1-hiera-tiny", local_files_only=True))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_broken_weights_are_named(tiny_sam2_dir, tmp_path, name):
    shutil.copy(tiny_sam2_dir / "model.yaml", tmp_path)
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"{name}: expected the weights of a SAM 2 model"):
        load_sam2(Sam2Config(str(tmp_path)))


def test_code_in_a_pickle_is_not_run(tiny_sam2_dir, tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copy(tiny_sam2_dir / "model.yaml", tmp_path)
    torch.save({"model": Code()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: expected the weights of a SAM 2 model") as caught:
        load_sam2(Sam2Config(str(tmp_path)))
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(caught.value)


_BASE = "model: {_target_: sam2.modeling.sam2_base.SAM2Base"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {_target_: os.system, command: ls}", "_target_ sam2.modeling.sam2_base.SAM2Base"),
        ("weights: 3", "section `model`"),
        ("model: {_target_: ${nowhere}}", "expected the configuration of a SAM 2 model"),
        ("model: {_target_: sam2.modeling.sam2_base.SAM2Base}", "expected the configuration of a SAM 2 model"),
        ("model: {_target_: sam2.modeling.sam2_base.SAM2Base, trunk: [{_target_: os.system}]}", "got os.system"),
        (f"{_BASE}, a: {{_target_: sam2.build_sam.torch.hub.load}}}}", "got sam2.build_sam.torch.hub.load"),
        (f"{_BASE}, a: {{_target_: sam2.build_sam.torch.load, weights_only: false}}}}", "sam2.build_sam.torch.load"),
        (f"{_BASE}, a: [[{{_target_: sam2.build_sam.os.system, _args_: [ls]}}]]}}", "got sam2.build_sam.os.system"),
        (f"{_BASE}, a: {{b: {{_target_: sam2.modeling.sam2_base.torch.load}}}}}}", "sam2_base.torch.load"),
        (f"{_BASE}, a: {{_target_: sam2.build_sam.build_sam2_hf}}}}", "got sam2.build_sam.build_sam2_hf"),
        (f"{_BASE}, a: {{_target_: [os, system]}}}}", r"got \['os', 'system'\]"),
        (
            f"{_BASE}, a: {{_target_: 'sam2.${{model.b}}', b: x}}, b: build_sam.os.system}}",
            "got sam2.build_sam.os.system",
        ),
        (f"{_BASE}, a: '\\${{oc.create:{{_target_:os.system}}}}'}}", "expected plain values, got .*os.system"),
        (f"{_BASE}, a: {{weights_path: /tmp/any.pt}}}}", "expected no entry weights_path, got '/tmp/any.pt'"),
        (f"{_BASE}, _partial_: true}}", "expected no entry _partial_, got True"),
        (f"{_BASE}, a: {{_args_: [ls]}}}}", "expected no entry _args_"),
        (f"{_BASE}, image_size: '???'}}", "Missing mandatory value"),
        (f"{_BASE}, sam_mask_decoder_extra_args: [a]}}", "sam_mask_decoder_extra_args: expected a section, got .'a'."),
    ],
)
def test_foreign_configurations_are_refused(tiny_sam2_dir, tmp_path, monkeypatch, text, message):
    if text != f"{_BASE}}}":  # which lacks arguments
        monkeypatch.setattr(
            "decaf_ros.segmentation.sam2_loading.instantiate", lambda *_, **__: pytest.fail("instantiated")
        )
    shutil.copy(tiny_sam2_dir / "model.safetensors", tmp_path)
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sam2(Sam2Config(str(tmp_path)))


def test_the_published_configurations_are_accepted():
    package = Path(sam2_package.__file__).parent
    for name, _ in HF_MODEL_ID_TO_FILENAMES.values():
        assert _read_model_config(package / name)["_target_"].endswith("SAM2Base")
