"""Loads SAM 2: finds configuration and weights of a checkpoint, checks what they may contain, builds the network."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import sam2
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file
from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
from sam2.modeling.sam2_base import SAM2Base
from yaml import YAMLError

from decaf_ros.config import Sam2Config
from decaf_ros.devices import resolve_device
from decaf_ros.hub import cached_folder, get_beforehand
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.sam2 import Sam2

_log = logging.getLogger(__name__)

# All that a model.yaml may instantiate: the modules of the published configurations. Hydra imports a dotted name and
# walks its attributes, so a prefix is no guard: sam2.build_sam.torch.load is reachable through the imports of sam2.
_MODULES = "sam2.modeling"
_CLASSES = frozenset(
    f"{_MODULES}.{name}"
    for name in (
        "backbones.hieradet.Hiera",
        "backbones.image_encoder.FpnNeck",
        "backbones.image_encoder.ImageEncoder",
        "memory_attention.MemoryAttention",
        "memory_attention.MemoryAttentionLayer",
        "memory_encoder.CXBlock",
        "memory_encoder.Fuser",
        "memory_encoder.MaskDownSampler",
        "memory_encoder.MemoryEncoder",
        "position_encoding.PositionEmbeddingSine",
        "sam.transformer.RoPEAttention",
        "sam2_base.SAM2Base",
    )
)
# Names of weights in a folder: ours, and the published ones with the configuration of each in the sam2 package.
_WEIGHTS = ("model.safetensors", "model.pt")
_PUBLISHED = {weights: config for config, weights in HF_MODEL_ID_TO_FILENAMES.values()}
# Hiera unpickles the further file that the first one names; the others change what Hydra makes of a section.
_REFUSED_ENTRIES = ("weights_path", "_args_", "_partial_", "_recursive_")
_EXTRAS = "sam_mask_decoder_extra_args"


def load_sam2(config: Sam2Config, fill_holes_px: int = 8) -> Sam2:
    """Loads SAM 2 with the settings of the published video predictor.

    config.checkpoint is a hub name (facebook/sam2-hiera-*, facebook/sam2.1-hiera-*), a folder with model.yaml and
    model.safetensors or model.pt, a folder as on the hub, or a .pt file. The configuration of a .pt file is
    config.model_config; for a published file name the published one.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
        ValueError: an invalid model configuration, unreadable weights, or weights that do not fit the configuration.
    """
    yaml_path, weights_path = locate(config)
    model = read_model(yaml_path)
    try:
        model.load_state_dict(_read_weights(weights_path), strict=True)
    except RuntimeError as error:
        raise ValueError(f"sam2.checkpoint: {weights_path} does not fit {yaml_path}: {error}") from error
    model = model.to(resolve_device(config.device)).eval()
    if config.compile:
        # The first pass fills a cache of positional encodings, after which a compiled encoder would be compiled again.
        with torch.inference_mode():
            model.image_encoder(torch.zeros(1, 3, model.image_size, model.image_size, device=model.device))
        # Only the encoder: the later parts change their batch and memory sizes at every step and would recompile.
        model.image_encoder.compile(dynamic=False)
    return Sam2(model, config, fill_holes_px)


def read_model(path: Path) -> SAM2Base:
    """The network of a model.yaml, with random weights. Raises ValueError for an invalid configuration."""
    try:
        return build_model(_read_model_config(path))
    except InstantiationException as error:
        raise ValueError(f"{path}: expected the configuration of a SAM 2 model: {error}") from error


def build_model(model_config: dict[str, Any]) -> SAM2Base:
    """Builds the network of a `model` section, with random weights and the published video predictor's settings: fall
    back to multimask output if the single mask is unstable, and binarise prompted masks before memory encoding."""
    stability = {
        "dynamic_multimask_via_stability": True,
        "dynamic_multimask_stability_delta": 0.05,
        "dynamic_multimask_stability_thresh": 0.98,
    }
    decoder = {**(model_config.get(_EXTRAS) or {}), **stability}
    extras = {_EXTRAS: decoder, "binarize_mask_from_pts_for_mem_enc": True}
    return instantiate({**model_config, **extras}, _convert_="all")


def locate(config: Sam2Config) -> tuple[Path, Path]:
    """Paths of the configuration (YAML) and the weights, which are downloaded if need be and `local_files_only` is
    false. Raises FileNotFoundError or ValueError, as `load_sam2`."""
    package, checkpoint = Path(sam2.__file__).parent, Path(resolve_path(config.checkpoint))
    if checkpoint.is_dir():
        model_config = checkpoint / "model.yaml"
        weights = next((path for path in (checkpoint / name for name in _WEIGHTS) if path.is_file()), None)
        if model_config.is_file() and weights is not None:
            return model_config, weights
        weights = _published_weights(checkpoint)
    elif checkpoint.is_file():
        weights = checkpoint
    elif config.checkpoint in HF_MODEL_ID_TO_FILENAMES:
        name, weights_name = HF_MODEL_ID_TO_FILENAMES[config.checkpoint]
        return package / name, _download(config, weights_name)
    else:
        raise FileNotFoundError(
            f"sam2.checkpoint: expected a folder with model.yaml and model.safetensors, a .pt file or one of the hub "
            f"names {', '.join(HF_MODEL_ID_TO_FILENAMES)}; got {config.checkpoint!r}"
        )
    published = _PUBLISHED.get(weights.name)
    if config.model_config or published is None:
        return _locate_config(config.model_config, package), weights
    beside = weights.with_name(Path(published).name)
    return beside if beside.is_file() else package / published, weights


def model_config_of(config: Sam2Config) -> Path:
    """Path of the configuration alone; that of a hub name is in the sam2 package. Downloads nothing. Raises as
    `locate`."""
    if config.checkpoint in HF_MODEL_ID_TO_FILENAMES and not Path(config.checkpoint).exists():
        name: str = HF_MODEL_ID_TO_FILENAMES[config.checkpoint][0]
        return Path(sam2.__file__).parent / name
    return locate(config)[0]


def _published_weights(folder: Path) -> Path:
    """The one published .pt file in a folder as on the hub. (Its model.safetensors is another library's.)"""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name in _PUBLISHED]
    if len(found) == 1:
        return folder / found[0]
    expected = "model.yaml and model.safetensors or model.pt, or one published file such as sam2.1_hiera_large.pt,"
    raise FileNotFoundError(f"sam2.checkpoint: expected {expected} in {folder}, found {', '.join(names) or 'nothing'}")


def _locate_config(name: str, package: Path) -> Path:
    if not name:
        raise ValueError(
            "sam2.model_config: a .pt file needs its configuration: expected a name such as sam2.1_hiera_l or a YAML "
            "file, got ''"
        )
    known = {Path(config).stem: package / config for config in _PUBLISHED.values()}
    for path in (Path(resolve_path(name)), package / name, known.get(name)):
        if path is not None and path.is_file():
            return path
    raise FileNotFoundError(
        f"sam2.model_config: expected a YAML file or one of the sam2 package's {', '.join(known)}; got {name!r}"
    )


def _download(config: Sam2Config, filename: str) -> Path:
    from huggingface_hub import hf_hub_download

    if not config.local_files_only and cached_folder(config.checkpoint, filename, config.revision) is None:
        _log.warning(
            "sam2.checkpoint %s is not on this machine: downloading it. To do so beforehand: %s",
            config.checkpoint,
            get_beforehand("sam2", config.checkpoint, config.revision),
        )
    try:
        options: dict[str, Any] = {"local_files_only": config.local_files_only, "revision": config.revision or None}
        return Path(hf_hub_download(config.checkpoint, filename, **options))
    except OSError as error:
        beforehand = get_beforehand("sam2", config.checkpoint, config.revision)
        raise FileNotFoundError(
            f"sam2.checkpoint: cannot get {filename} of {config.checkpoint} ({type(error).__name__}: {error}). With "
            f"network access, set sam2.local_files_only to false or run {beforehand}. "
            f"Without, copy {filename} to this machine, set sam2.checkpoint to its path and sam2.model_config to "
            f"{Path(HF_MODEL_ID_TO_FILENAMES[config.checkpoint][0]).stem}"
        ) from error


def _read_model_config(path: Path) -> dict[str, Any]:
    try:
        document = OmegaConf.to_container(OmegaConf.load(path), resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path}: expected the configuration of a SAM 2 model: {error}") from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or model.get("_target_") != f"{_MODULES}.sam2_base.SAM2Base":
        raise ValueError(f"{path}: expected a section `model` with _target_ {_MODULES}.sam2_base.SAM2Base")
    _check_entries(path, model)
    extras = model.get(_EXTRAS)
    if extras is not None and not isinstance(extras, dict):
        raise ValueError(f"{path}: {_EXTRAS}: expected a section, got {extras!r}")
    return model


def _check_entries(path: Path, section: Any) -> None:
    """Raises ValueError for anything in a nested section that could run code when it is instantiated."""
    if isinstance(section, dict):
        target = section.get("_target_")
        if target is not None and (not isinstance(target, str) or target not in _CLASSES):
            names = ", ".join(sorted(name.rpartition(".")[2] for name in _CLASSES))
            raise ValueError(f"{path}: expected only the classes {names} of {_MODULES} as _target_, got {target}")
        for name in _REFUSED_ENTRIES:
            if section.get(name) is not None:
                raise ValueError(f"{path}: expected no entry {name}, got {section[name]!r}")
    if isinstance(section, str) and "${" in section:
        # An escaped interpolation, which the instantiation would resolve again, to any other section.
        raise ValueError(f"{path}: expected plain values, got {section!r}")
    children = section.values() if isinstance(section, dict) else section if isinstance(section, list) else ()
    for child in children:
        _check_entries(path, child)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).partition(". ")[0]  # the rest of PyTorch's text advises to run the file's code
        raise ValueError(f"{path}: expected the weights of a SAM 2 model, got an unreadable file: {reason}") from error
    if not isinstance(document, dict) or "model" not in document:
        raise ValueError(f"{path}: expected a checkpoint with an entry 'model', as in SAM 2's published .pt files")
    weights: dict[str, torch.Tensor] = document["model"]
    return weights
