"""Loads a multimodal LLM of any supported family."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, TorchAoConfig
from transformers.utils.versions import require_version

from decaf_ros.config import MllmConfig
from decaf_ros.devices import resolve_device, resolve_dtype
from decaf_ros.grounding.checkpoint_files import require_files, require_folder
from decaf_ros.grounding.checkpoint_settings import restrain
from decaf_ros.grounding.mllm import Mllm, end_tokens
from decaf_ros.hub import cached_folder, get_beforehand
from decaf_ros.resources import resolve_path

_log = logging.getLogger(__name__)

# transformers model type -> adapter module in `families/`, and class.
FAMILIES = {
    "qwen2_vl": ("qwen_vl", "QwenVl"),
    "qwen2_5_vl": ("qwen_vl", "QwenVl"),
    "qwen3_vl": ("qwen3_vl", "Qwen3Vl"),
    "internvl": ("internvl", "InternVl"),
    "llava_onevision": ("llava_onevision", "LlavaOnevision"),
    "llava": ("llava", "Llava"),
}

# Modules that are not quantised: vision tower and projector (few weights, and maps must be exact in position), and the
# head, which chooses the answer and may be tied to the embeddings. These are full paths: in transformers 5 a bare
# "visual" does not match "model.visual.blocks".
UNQUANTISED = ("model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head")
# Older versions give wrong numbers (bitsandbytes 0.46: 8 bit on a CPU) or are refused by transformers. The extras in
# setup.py must match.
QUANTISERS = {"bitsandbytes": "bitsandbytes>=0.47", "torchao": "torchao>=0.15", "accelerate": "accelerate>=1.1"}


class _Source(NamedTuple):
    """Where a checkpoint is, and its configuration.

    folder: None for a hub name. safely: arguments of every `from_pretrained`. settings: transformers' configuration.
    """

    name: str
    source: str
    folder: Path | None
    safely: dict[str, Any]
    settings: Any
    model_type: str


def local_folder(config: MllmConfig) -> Path | None:
    """The checkpoint's folder: the configured one, or that of the hub's cache; None if it has not been downloaded.

    Raises FileNotFoundError for a package:// path that is missing.
    """
    source = resolve_path(config.checkpoint)
    return Path(source) if _is_path(source) else cached_folder(source, revision=config.revision)


def outline_mllm(config: MllmConfig) -> Mllm:
    """The model without its weights, on torch's meta device: its parameters and layouts tell what it needs. Nothing is
    downloaded. Raises as `load_mllm`."""
    config = dataclasses.replace(config, local_files_only=True)
    found = _open(config)
    dtype = resolve_dtype(config.dtype, resolve_device(config.device))
    with torch.device("meta"):
        untyped: Any = AutoModelForImageTextToText
        model = untyped.from_config(found.settings, dtype=dtype)
    processor = _load_processor(config, found.source, found.folder, found.safely)
    return _adapter(found.model_type)(model.eval(), processor, config)


def load_mllm(config: MllmConfig) -> Mllm:
    """Loads a checkpoint of a supported family, by folder or hub name.

    Raises FileNotFoundError for a missing checkpoint or file, ValueError if its family is not supported, its files are
    damaged or do not belong together, or it cannot be quantised as configured.
    """
    if not config.local_files_only and not _is_here(config):
        _log.warning(
            "mllm.checkpoint %s is not on this machine: downloading it. To do so beforehand: %s",
            config.checkpoint,
            get_beforehand("mllm", config.checkpoint, config.revision),
        )
    name, source, folder, safely, settings, model_type = _open(config)
    if folder:
        require_files(folder, name)
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    options: dict[str, Any] = {"config": settings, "dtype": dtype}
    quantised = hasattr(settings, "quantization_config")
    if config.quantization != "none":
        if quantised:
            raise ValueError(f"mllm.quantization: expected none, {config.checkpoint!r} is quantised already")
        options["quantization_config"] = _quantization(config.quantization, dtype, device)
    if quantised or config.quantization != "none":
        # Some quantised weights cannot be moved afterwards.
        options["device_map"] = {"": str(device)}
    processor = _load_processor(config, source, folder, safely)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True, **safely, **options)
        model, loading_info = loaded
    except OSError as error:
        raise _unreadable(config, folder, error) from error
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError, TypeError) as error:  # TypeError: a file of settings
        raise ValueError(f"{name}: damaged or not complete: {error}") from error
    if missing := sorted(loading_info["missing_keys"]):
        # transformers initialises missing weights at random and only warns.
        raise ValueError(
            f"{name}: damaged or not complete: expected all weights of a {model_type}, "
            f"{len(missing)} are missing, {missing[0]} first"
        )
    model.eval()
    if "device_map" not in options:
        model.to(device)
    mllm = _adapter(model_type)(model, processor, config)
    _try_prompts(mllm, name)
    return mllm


def _is_here(config: MllmConfig) -> bool:
    """Whether loading needs no download: a path, or a name whose files are all in the hub's cache."""
    if _is_path(resolve_path(config.checkpoint)):
        return True
    folder = cached_folder(config.checkpoint, revision=config.revision)
    try:
        if folder is not None:
            require_files(folder, config.checkpoint)
    except (FileNotFoundError, ValueError):
        return False
    return folder is not None


def _open(config: MllmConfig) -> _Source:
    """Finds a checkpoint and reads its configuration. Raises as `load_mllm`."""
    source, name = resolve_path(config.checkpoint), f"mllm.checkpoint {config.checkpoint!r}"
    folder = Path(source) if _is_path(source) else None
    # Without the second entry transformers asks on the terminal whether to run the code of a checkpoint's folder.
    safely: dict[str, Any] = {"local_files_only": config.local_files_only, "trust_remote_code": False}
    if folder:
        require_folder(folder, name)
    elif config.revision:
        safely["revision"] = config.revision
    try:
        settings = AutoConfig.from_pretrained(source, **safely)
        # From the class: in some 4.57 releases the instance returns the type of its text model.
        model_type = type(settings).model_type
    except OSError as error:
        raise _unreadable(config, folder, error) from error
    except (AttributeError, TypeError, ValueError) as error:  # code in the folder, an unknown type, or no settings
        raise ValueError(_foreign_checkpoint(config, error)) from error
    if model_type not in FAMILIES:
        raise ValueError(f"{name}: expected a model of type {', '.join(FAMILIES)}, got {model_type!r}")
    restrain(settings, name)
    return _Source(name, source, folder, safely, settings, model_type)


def _adapter(model_type: str) -> Callable[[Any, Any, MllmConfig], Mllm]:
    module, name = FAMILIES[model_type]
    adapter: Callable[[Any, Any, MllmConfig], Mllm] = getattr(
        import_module(f"decaf_ros.grounding.families.{module}"), name
    )
    return adapter


def _is_path(source: str) -> bool:
    """Whether a checkpoint is a file or folder, or looks like one; else it is a hub name."""
    return os.path.isabs(source) or source.startswith((".", "~")) or os.path.exists(source)


def _load_processor(config: MllmConfig, source: str, folder: Path | None, safely: dict[str, Any]) -> Any:
    """The family's processor. Raises FileNotFoundError or ValueError."""
    try:
        return AutoProcessor.from_pretrained(source, **safely)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise _unreadable(config, folder, error) from error
    except Exception as error:  # a file with too little in it, or with code; tokenizers raises plain exceptions
        if "trust_remote_code" in str(error):
            raise ValueError(_foreign_checkpoint(config, error)) from error
        raise ValueError(
            f"mllm.checkpoint {config.checkpoint!r}: damaged or not complete: expected the files of a processor and "
            f"its tokenizer: {_first_line(error)}"
        ) from error


def _try_prompts(mllm: Mllm, name: str) -> None:
    """Writes two prompts, so that a tokenizer or chat template that does not fit is refused now and not at a query.

    Raises ValueError.
    """
    try:
        end_tokens(mllm)
        for layout in (None, mllm.layout("frames", 1, (480, 640))):
            highest = int(mllm.prompt(layout, "text").ids.max())
            rows = len(cast(torch.nn.Embedding, mllm.model.get_input_embeddings()).weight)
            if highest >= rows:
                raise ValueError(f"expected tokens below {rows}, the size of the model's embedding, got {highest}")
    except Exception as error:  # of transformers, Jinja or tokenizers
        raise ValueError(
            f"{name}: expected tokenizer, special tokens and chat template of this model: {_first_line(error)}"
        ) from error


def _quantization(method: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The `quantization_config` of `from_pretrained` for a method of `mllm.quantization`.

    No method requires CUDA or a certain dtype. bnb_8bit also quantises activations and searches outliers over the whole
    batch: maps then vary by some percent with the other frames in the batch.
    Raises ValueError for an unsupported device or a missing package.
    """
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"mllm.quantization {method}: expected mllm.device cuda or cpu, got {device}")
    package, unquantised = "torchao" if method == "torchao_int8" else "bitsandbytes", list(UNQUANTISED)
    for requirement in (QUANTISERS[package], QUANTISERS["accelerate"]):
        try:
            require_version(requirement)
        except ImportError as error:
            advice = f"pip install 'decaf_ros[{package}]'"
            raise ValueError(f"mllm.quantization {method}: expected {requirement} to be installed: {advice}") from error
    if method == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=unquantised)
    if method == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=unquantised)  # type: ignore[no-untyped-call]
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=unquantised
    )


def _foreign_checkpoint(config: MllmConfig, error: Exception) -> str:
    """The error text for a checkpoint that transformers itself does not know. Its advice to trust the code is left
    out."""
    expected = f"mllm.checkpoint {config.checkpoint!r}: expected a model of type {', '.join(FAMILIES)}"
    if "trust_remote_code" in str(error):
        return f"{expected}, got one that brings its own code, which is never run"
    return f"{expected}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _unreadable(config: MllmConfig, folder: Path | None, error: OSError) -> Exception:
    """The error for files that transformers cannot open. Advice to download is for hub names only."""
    name = f"mllm.checkpoint {config.checkpoint!r}"
    if folder:
        return ValueError(f"{name}: damaged or not complete: {_first_line(error)}")
    beforehand = get_beforehand("mllm", config.checkpoint, config.revision)
    advice = (
        f"local_files_only is set: download it first ({beforehand}) or clear mllm.local_files_only"
        if config.local_files_only
        else "give the folder of a downloaded checkpoint, or a name on the hub that this machine can reach"
    )
    return FileNotFoundError(f"{name}: not found or incomplete; {advice}")
