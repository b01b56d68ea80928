"""Loads the multimodal LLM: whichever family the checkpoint is of."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, TorchAoConfig
from transformers.utils.versions import require_version

from decaf_ros.config import MllmConfig
from decaf_ros.devices import resolve_device
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.resources import resolve_path

# The adapter of each model type that transformers knows: module and class.
FAMILIES = {
    "qwen2_vl": ("qwen_vl", "QwenVl"),
    "qwen2_5_vl": ("qwen_vl", "QwenVl"),
    "qwen3_vl": ("qwen3_vl", "Qwen3Vl"),
    "internvl": ("internvl", "InternVl"),
    "llava_onevision": ("llava_onevision", "LlavaOnevision"),
}

# What is not quantised: the vision tower and what leads from it to the language model (a small part of the weights, and
# maps are about where something is), and the head, which picks the answer and may be the embeddings as well.
# By full path: in transformers 5 a bare "visual" does not mean "model.visual.blocks".
UNQUANTISED = ("model.visual", "model.vision_tower", "model.multi_modal_projector", "lm_head")
# Older ones give wrong numbers (bitsandbytes 0.46: 8 bit on a CPU), or transformers refuses them. setup.py: extras.
QUANTISERS = {"bitsandbytes": "bitsandbytes>=0.47", "torchao": "torchao>=0.15", "accelerate": "accelerate>=1.1"}


def load_mllm(config: MllmConfig) -> Mllm:
    """Loads a checkpoint of a supported family, by folder or hub name.

    Raises FileNotFoundError with advice where it cannot be found, ValueError where its family is not supported, its
    files are damaged, or it cannot be quantised as configured.
    """
    folder_or_name = resolve_path(config.checkpoint)
    where = {"pretrained_model_name_or_path": folder_or_name, "local_files_only": config.local_files_only}
    try:
        # Of the class: in some 4.57 releases the instance answers with its text model's type.
        settings = AutoConfig.from_pretrained(**where)
        model_type = type(settings).model_type
    except OSError as error:
        raise FileNotFoundError(_missing_checkpoint(config)) from error
    if model_type not in FAMILIES:
        raise ValueError(
            f"mllm.checkpoint {config.checkpoint!r}: expected a model of type {', '.join(FAMILIES)}, got {model_type!r}"
        )
    device = resolve_device(config.device)
    given: dict[str, Any] = {"dtype": _resolve_dtype(config.dtype, device)}
    quantised = hasattr(settings, "quantization_config")
    if config.quantization != "none":
        if quantised:
            raise ValueError(f"mllm.quantization: expected none, {config.checkpoint!r} is quantised already")
        given["quantization_config"] = _quantization(config.quantization, given["dtype"], device)
    if quantised or config.quantization != "none":
        # Some quantised weights cannot be moved later.
        given["device_map"] = {"": str(device)}
    try:
        processor = AutoProcessor.from_pretrained(**where)
        model, told = AutoModelForImageTextToText.from_pretrained(**where, **given, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(_missing_checkpoint(config)) from error
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"mllm.checkpoint {config.checkpoint!r}: damaged or not complete: {error}") from error
    if missing := sorted(told["missing_keys"]):
        # transformers makes up what a checkpoint lacks, at random, and goes on.
        raise ValueError(
            f"mllm.checkpoint {config.checkpoint!r}: damaged or not complete: expected all weights of a {model_type}, "
            f"{len(missing)} are missing, {missing[0]} first"
        )
    model.eval()
    if "device_map" not in given:
        model.to(device)
    module, adapter = FAMILIES[model_type]
    return getattr(import_module(f"decaf_ros.grounding.families.{module}"), adapter)(model, processor, config)


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def _quantization(method: str, dtype: torch.dtype, device: torch.device) -> Any:
    """What `from_pretrained` wants to know of one of the methods of `mllm.quantization`.

    None asks for CUDA or for a certain dtype. bnb_8bit quantises what goes into a layer too, and looks for
    outliers in a whole batch: maps then depend, by some percent, on what a frame is batched with.
    Raises ValueError where it cannot work here.
    """
    if device.type not in ("cuda", "cpu"):
        raise ValueError(f"mllm.quantization {method}: expected mllm.device cuda or cpu, got {device}")
    package, kept = "torchao" if method == "torchao_int8" else "bitsandbytes", list(UNQUANTISED)
    for needed in (QUANTISERS[package], QUANTISERS["accelerate"]):
        try:
            require_version(needed)
        except ImportError as error:
            advice = f"pip install 'decaf_ros[{package}]'"
            raise ValueError(f"mllm.quantization {method}: expected {needed} to be installed: {advice}") from error
    if method == "torchao_int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=kept)
    if method == "bnb_8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=kept
    )


def _missing_checkpoint(config: MllmConfig) -> str:
    advice = (
        "local_files_only is set: download it first (hf download NAME) or clear mllm.local_files_only"
        if config.local_files_only
        else "give the folder of a downloaded checkpoint, or a name on the hub that this machine can reach"
    )
    return f"mllm.checkpoint {config.checkpoint!r}: not found or incomplete; {advice}"
