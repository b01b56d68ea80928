"""What the method needs of a multimodal LLM, and what every family shares.

A family is one flat adapter file (`qwen_vl.py`) that turns images and a text into a `Prompt`; running it, recording
its attention and decoding its answer are the functions here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, DynamicCache, PreTrainedModel

from decaf_ros.config import MllmConfig
from decaf_ros.devices import resolve_device
from decaf_ros.grounding.attention_tap import LayerAttention, install_tap, record_attention
from decaf_ros.resources import resolve_path

SUPPORTED_MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A batch of B token sequences of one length N, ready for the model.

    inputs: what the model's forward takes besides positions (ids, pixels, grids). positions: (..., B, N) int64.
    visual: (B, N) bool, the visual tokens. grid: (t, h, w), how a sequence's visual tokens are laid out; (0, 0, 0)
    for a prompt without any.
    """

    inputs: dict[str, Any]
    positions: torch.Tensor
    visual: torch.Tensor
    grid: tuple[int, int, int]

    def __post_init__(self) -> None:
        wanted = self.grid[0] * self.grid[1] * self.grid[2]
        counts = self.visual.sum(dim=1).tolist()
        if any(count != wanted for count in counts):
            raise ValueError(f"Prompt: expected {wanted} visual tokens (grid {self.grid}), got {counts}")


@dataclass(frozen=True, eq=False)
class Visual:
    """Images after the family's own preprocessing, to be put into several prompts.

    inputs: the model's pixel arguments. grid: (t, h, w) visual tokens of one sequence. batch: sequences. kind: the
    family's own name for this sort of input.
    """

    inputs: dict[str, torch.Tensor]
    grid: tuple[int, int, int]
    batch: int
    kind: str


class Mllm(Protocol):
    """A multimodal LLM as the method sees it; one implementation a family."""

    model: PreTrainedModel
    tokenizer: Any
    layers: int

    def video(self, images: np.ndarray) -> Visual:
        """All frames as one video. images: (T, H, W, 3) uint8, RGB. Grid rows in time may stand for several frames."""

    def frames(self, images: np.ndarray) -> Visual:
        """Every frame as an image of its own, batch = T, on a grid finer than the video's."""

    def prompt(self, visual: Visual | None, text: str) -> Prompt:
        """The family's chat format: visual content, then the text; text alone where `visual` is None."""


@dataclass(frozen=True, eq=False)
class Prefill:
    """One pass over a prompt. layers: recorded attention, bottom to top. next_token: (B,) int64, the likeliest.
    cache: keys and values of the prompt, or None."""

    layers: list[LayerAttention]
    next_token: torch.Tensor
    cache: DynamicCache | None


@torch.inference_mode()
def prefill(model: PreTrainedModel, prompt: Prompt, start_layer: int, keep_cache: bool) -> Prefill:
    """Runs a prompt once and records attention from `start_layer` (from 0) to the last layer."""
    cache = DynamicCache() if keep_cache else None
    with record_attention(start_layer) as recording:
        output = model(
            **prompt.inputs,
            position_ids=prompt.positions,
            past_key_values=cache,
            use_cache=keep_cache,
            logits_to_keep=1,
        )
    return Prefill(recording.layers, output.logits[:, -1].argmax(dim=-1), cache)


@torch.inference_mode()
def decode(mllm: Mllm, prompt: Prompt, start: Prefill, max_new_tokens: int) -> list[str]:
    """Greedy decoding of the whole batch after a prefill with `keep_cache`, each sequence up to its end token.

    Returns one line of text for each sequence, empty where the model had nothing to say.
    """
    ends = torch.as_tensor(_end_tokens(mllm), device=start.next_token.device)
    tokens, position = [start.next_token], prompt.positions.amax(dim=tuple(range(prompt.positions.ndim - 2)))
    position = position.amax(dim=-1)
    done = torch.isin(tokens[-1], ends)
    while not bool(done.all()) and len(tokens) < max_new_tokens:
        position = position + 1
        output = mllm.model(
            input_ids=tokens[-1][:, None],
            position_ids=position[:, None].expand(*prompt.positions.shape[:-1], 1),
            past_key_values=start.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens.append(torch.where(done, ends[0], output.logits[:, -1].argmax(dim=-1)))
        done = done | torch.isin(tokens[-1], ends)
    answers = []
    for sequence in torch.stack(tokens, dim=1).tolist():
        stop = next((place for place, token in enumerate(sequence) if token in ends.tolist()), len(sequence))
        text = mllm.tokenizer.decode(sequence[:stop], skip_special_tokens=True)
        # An answer goes into prompts, messages and pictures: one line, no control characters.
        answers.append(" ".join("".join(sign if sign.isprintable() else " " for sign in text).split()))
    return answers


def _end_tokens(mllm: Mllm) -> list[int]:
    """The checkpoint's end tokens: its generation settings know them all, its tokenizer one."""
    ends = mllm.model.generation_config.eos_token_id
    ends = mllm.tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError("the checkpoint names no end token: expected eos_token_id in its generation_config.json")
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, dtype)


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
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise ValueError(
            f"mllm.checkpoint {config.checkpoint!r}: expected a model of type {', '.join(SUPPORTED_MODEL_TYPES)}, "
            f"got {model_type!r}"
        )
    device = resolve_device(config.device)
    try:
        processor = AutoProcessor.from_pretrained(**where)
        model = AutoModelForImageTextToText.from_pretrained(**where, dtype=_resolve_dtype(config.dtype, device))
    except OSError as error:
        raise FileNotFoundError(_missing_checkpoint(config)) from error
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"mllm.checkpoint {config.checkpoint!r}: damaged or not complete: {error}") from error
    model = model.to(device).eval()

    from decaf_ros.grounding.qwen_vl import QwenVl

    return QwenVl(model, processor, config)


def _missing_checkpoint(config: MllmConfig) -> str:
    advice = (
        "local_files_only is set: download it first (hf download NAME) or clear mllm.local_files_only"
        if config.local_files_only
        else "give the folder of a downloaded checkpoint, or a name on the hub that this machine can reach"
    )
    return f"mllm.checkpoint {config.checkpoint!r}: not found or incomplete; {advice}"


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """Sends the language model's attention through the tap; the vision tower keeps SDPA."""
    install_tap(model.get_decoder())
    return model
