"""Loads the multimodal LLM: whichever family the checkpoint is of."""

from __future__ import annotations

from importlib import import_module

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from decaf_ros.config import MllmConfig
from decaf_ros.devices import resolve_device
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.resources import resolve_path

# The adapter of each model type that transformers knows: module and class.
FAMILIES = {
    "qwen2_vl": ("qwen_vl", "QwenVl"),
    "qwen2_5_vl": ("qwen_vl", "QwenVl"),
}


def load_mllm(config: MllmConfig) -> Mllm:
    """Loads a checkpoint of a supported family, by folder or hub name.

    Raises FileNotFoundError with advice where it cannot be found, ValueError where its family is not supported or its
    files are damaged.
    """
    folder_or_name = resolve_path(config.checkpoint)
    where = {"pretrained_model_name_or_path": folder_or_name, "local_files_only": config.local_files_only}
    try:
        # Of the class: in some 4.57 releases the instance answers with its text model's type.
        model_type = type(AutoConfig.from_pretrained(**where)).model_type
    except OSError as error:
        raise FileNotFoundError(_missing_checkpoint(config)) from error
    if model_type not in FAMILIES:
        raise ValueError(
            f"mllm.checkpoint {config.checkpoint!r}: expected a model of type {', '.join(FAMILIES)}, got {model_type!r}"
        )
    device = resolve_device(config.device)
    try:
        processor = AutoProcessor.from_pretrained(**where)
        model = AutoModelForImageTextToText.from_pretrained(**where, dtype=_resolve_dtype(config.dtype, device))
    except OSError as error:
        raise FileNotFoundError(_missing_checkpoint(config)) from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"mllm.checkpoint {config.checkpoint!r}: damaged or not complete: {error}") from error
    module, adapter = FAMILIES[model_type]
    return getattr(import_module(f"decaf_ros.grounding.{module}"), adapter)(model.to(device).eval(), processor, config)


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


def _missing_checkpoint(config: MllmConfig) -> str:
    advice = (
        "local_files_only is set: download it first (hf download NAME) or clear mllm.local_files_only"
        if config.local_files_only
        else "give the folder of a downloaded checkpoint, or a name on the hub that this machine can reach"
    )
    return f"mllm.checkpoint {config.checkpoint!r}: not found or incomplete; {advice}"
