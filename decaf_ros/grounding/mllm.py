"""What the method needs of a multimodal LLM, and what every family shares.

A family is one flat adapter file (such as `qwen_vl.py`) that says how images lie in a prompt and what its vision tower
makes of them; running the language model, recording its attention and decoding its answer are the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin

from decaf_ros.grounding.attention_tap import LayerAttention, install_tap, record_attention


@dataclass(frozen=True)
class Layout:
    """How images of one size lie in one sequence.

    kind: `video` (all key frames) or `frames` (one of them). units: pieces whose vision features depend on nothing
    else, in order: a temporal pair of frames, a frame. frames_a_unit: images of each (the last one is repeated where
    they do not come out even). size_hw: of the images. grid: (t, h, w), the map's cells.
    """

    kind: str
    units: int
    frames_a_unit: int
    size_hw: tuple[int, int]
    grid: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sequence of N tokens.

    ids: (N,) int64. positions: (N,) or (3, N) int64, as the family's language model wants them. slots: (N,) bool,
    tokens whose embeddings are the vision features. cells: (t * h * w,) int64, the token of every cell of the map, row
    by row; these are the visual tokens of Eq. 4. Both are empty for a prompt without images. grid: (t, h, w).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int, int]

    def __post_init__(self) -> None:
        wanted = self.grid[0] * self.grid[1] * self.grid[2]
        if len(self.cells) != wanted:
            raise ValueError(f"Prompt: expected {wanted} visual tokens (grid {self.grid}), got {len(self.cells)}")

    @property
    def visual(self) -> torch.Tensor:
        """(N,) bool: the visual tokens."""
        mask = torch.zeros_like(self.slots)
        mask[self.cells] = True
        return mask


class Features(NamedTuple):
    """What the vision tower makes of one unit. tokens: (n, C), in the order of the prompt's slots. deep: of the same
    shape each, what is added to the hidden states after the first layers (Qwen3-VL); none elsewhere."""

    tokens: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()


class Mllm(Protocol):
    """A multimodal LLM as the method sees it; one implementation a family."""

    model: PreTrainedModel
    tokenizer: Any
    layers: int

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """How so many images lie in the video branch's sequence, or one in a sequence of the (finer) frame branch."""

    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """Preprocesses units and runs the vision tower. images: (U, frames_a_unit, H, W, 3) uint8, RGB."""

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """The family's chat format: visual content, then the text; text alone where `layout` is None.

        Raises ValueError for a text with one of the model's control tokens.
        """

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """What the language model takes instead of ids. ids, slots: (n,), some of a prompt's tokens with all of its
        slots. features: of every unit of B sequences. `embed_tokens` does it for most families."""


class Pass(NamedTuple):
    """One pass of the language model. layers: recorded attention, bottom to top. next_token: (B,) int64, the likeliest
    one; None where it was not wanted."""

    layers: list[LayerAttention]
    next_token: torch.Tensor | None


def embed_tokens(
    model: PreTrainedModel, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]
) -> dict[str, Any]:
    """The words' embeddings, in the slots the features: (B, n, C)."""
    embedded = model.get_input_embeddings()(ids)
    rows = [embedded.clone() for _ in features]
    for row, units in zip(rows, features):
        if units:
            row[slots] = torch.cat([unit.tokens for unit in units]).to(row.dtype)
    return {"inputs_embeds": torch.stack(rows)}


@torch.inference_mode()
def run(
    model: PreTrainedModel,
    given: dict[str, Any],
    positions: torch.Tensor,
    cache: DynamicCache | None,
    first_layer: int,
    wants_token: bool,
) -> Pass:
    """Runs B sequences through the language model, after what `cache` holds of them, and adds them to it.

    given: as `Mllm.embed` makes it. positions: (n,) or (3, n), of all sequences alike. first_layer: from which one on
    attention is recorded. wants_token: else nothing is computed past the last layer's queries, keys and values.
    """
    batch, count = given["inputs_embeds"].shape[:2]
    placed = positions.unsqueeze(-2).expand(*positions.shape[:-1], batch, count)
    decoder = model.get_decoder()
    last_layer = None if wants_token else decoder.config.num_hidden_layers - 1
    with record_attention(first_layer, last_layer) as recording:
        # Never without a cache: Qwen3-VL in transformers 4.57 then takes positions that repeat for several sequences.
        hidden = decoder(**given, position_ids=placed, past_key_values=cache, use_cache=True)
    if not wants_token:
        return Pass(recording.layers, None)
    logits = model.get_output_embeddings()(hidden.last_hidden_state[:, -1])
    return Pass(recording.layers, logits.argmax(dim=-1))


@torch.inference_mode()
def decode(mllm: Mllm, prompt: Prompt, cache: DynamicCache, next_token: torch.Tensor, max_new_tokens: int) -> list[str]:
    """Greedy decoding of B sequences of one prompt, each up to its end token.

    cache: of the whole prompt; what is decoded is added. next_token: (B,) int64, that of the pass over the prompt.
    Returns one line of text for each sequence, empty where the model had nothing to say.
    """
    ends = torch.as_tensor(_end_tokens(mllm), device=next_token.device)
    embedding, position = mllm.model.get_input_embeddings(), int(prompt.positions.max())
    one = prompt.positions[..., :1]
    tokens, done = [next_token], torch.isin(next_token, ends)
    while not bool(done.all()) and len(tokens) < max_new_tokens:
        position += 1
        given = {"inputs_embeds": embedding(tokens[-1])[:, None]}
        seen = run(mllm.model, given, torch.full_like(one, position), cache, mllm.layers, wants_token=True)
        tokens.append(torch.where(done, ends[0], seen.next_token))
        done = done | torch.isin(tokens[-1], ends)
    answers = []
    for sequence in torch.stack(tokens, dim=1).tolist():
        stop = next((place for place, token in enumerate(sequence) if token in ends.tolist()), len(sequence))
        text = mllm.tokenizer.decode(sequence[:stop], skip_special_tokens=True)
        # An answer goes into prompts, messages and pictures: one line, no control characters, nor what a model may say
        # and nobody may ask (some control tokens are no special ones).
        for token in control_tokens(mllm.tokenizer, text):
            text = text.replace(token, " ")
        answers.append(" ".join("".join(sign if sign.isprintable() else " " for sign in text).split()))
    return answers


def _end_tokens(mllm: Mllm) -> list[int]:
    """The checkpoint's end tokens: its generation settings know them all, its tokenizer one."""
    ends = mllm.model.generation_config.eos_token_id
    ends = mllm.tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        raise ValueError("the checkpoint names no end token: expected eos_token_id in its generation_config.json")
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def control_tokens(tokenizer: Any, text: str) -> list[str]:
    """The model's control tokens that are in a text."""
    return [token for token in tokenizer.get_added_vocab() if token in text]


def check_text(tokenizer: Any, text: str) -> None:
    """Raises ValueError for a text that holds one of the model's control tokens."""
    control = control_tokens(tokenizer, text)
    if control:
        raise ValueError(f"query: expected plain text, got the model's control token {', '.join(control)}")


def write_chat(processor: ProcessorMixin, kind: str | None, text: str, system: str, images: str) -> str:
    """The family's chat format: a system prompt, the images, a text.

    kind: that of the layout, None without images. images: takes the place of the chat template's one placeholder.
    Raises ValueError for a text with one of the model's control tokens, or a template with another number of
    placeholders.
    """
    check_text(processor.tokenizer, text)
    content = [{"type": "text", "text": text}]
    if kind is not None:
        content.insert(0, {"type": "video" if kind == "video" else "image"})
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": content}]
    chat = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if kind is None:
        return chat
    placeholder = processor.video_token if kind == "video" else processor.image_token
    if chat.count(placeholder) != 1:
        raise ValueError(f"chat template: expected one placeholder for {kind}, got {chat.count(placeholder)}")
    return chat.replace(placeholder, images)


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """Sends the language model's attention through the tap; the vision tower keeps SDPA."""
    install_tap(model.get_decoder())
    return model
