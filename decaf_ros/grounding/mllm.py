"""The interface that the method needs from a multimodal LLM, and the code that all families share.

A family is one adapter file in `families/` that defines how images lie in a prompt and how its vision tower encodes
them. Running the language model, recording its attention, and decoding its answer are the functions here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, ProcessorMixin, RepetitionPenaltyLogitsProcessor

from decaf_ros.devices import avoid_planned_attention
from decaf_ros.grounding.attention_tap import LayerAttention, install_tap, record_attention
from decaf_ros.grounding.gpu_layers import speed_up
from decaf_ros.stages import Steps


class MissingBranchError(ValueError):
    """The model has no such branch."""


@dataclass(frozen=True)
class Layout:
    """How images of one size lie in one sequence.

    Attributes:
        kind: `video` (all key frames) or `frames` (one key frame).
        units: number of units. A unit is the smallest piece that is encoded independently: a frame or a temporal pair.
        frames_per_unit: images per unit (the last image is repeated to fill the last unit).
        size_hw: image size in pixels.
        grid: (t, h, w), the map's cells.
    """

    kind: str
    units: int
    frames_per_unit: int
    size_hw: tuple[int, int]
    grid: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """Number of tokens that vision features replace; more than cells if the model also sees padding."""
        return self.grid[0] * self.grid[1] * self.grid[2]


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sequence of N tokens. `slots` and `cells` are empty for a prompt without images.

    Attributes:
        ids: (N,) int64.
        positions: (N,) or (3, N) int64, as the family's language model expects them.
        slots: (N,) bool, tokens whose embeddings are replaced by vision features.
        cells: (t * h * w,) int64, the token index of every cell of the map, row by row: the visual tokens of Eq. 4.
        grid: (t, h, w).
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int, int]

    def __post_init__(self) -> None:
        expected = self.grid[0] * self.grid[1] * self.grid[2]
        if len(self.cells) != expected:
            raise ValueError(f"Prompt: expected {expected} visual tokens (grid {self.grid}), got {len(self.cells)}")

    @property
    def visual(self) -> torch.Tensor:
        """(N,) bool: the visual tokens."""
        mask = torch.zeros_like(self.slots)
        mask[self.cells] = True
        return mask


class Features(NamedTuple):
    """Vision features of one unit.

    Attributes:
        tokens: (n, C), in the order of the prompt's slots.
        deep: DeepStack features (Qwen3-VL), each (n, C), added to the hidden states after the first layers; empty for
            other families.
    """

    tokens: torch.Tensor
    deep: tuple[torch.Tensor, ...] = ()


class Mllm(Protocol):
    """A multimodal LLM as the method uses it. Each family implements it once.

    `loading.py` constructs it as `Family(model, processor, config: MllmConfig)`.

    Attributes:
        model: the whole model, prepared by `prepare_model`.
        tokenizer: its tokenizer.
        layers: number of layers of the language model.
    """

    model: PreTrainedModel
    tokenizer: Any
    layers: int

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """Layout of `frames` images in the video branch, or of one image in the (finer) frame branch.

        Raises MissingBranchError for the video branch of a model that sees one image.
        """

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """The video's layout with the real times of its frames, in seconds from the first one, for a family whose
        prompt contains times; others return `layout`."""

    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """Preprocesses U units and runs the vision tower. images: (U, frames_per_unit, H, W, 3) uint8, RGB."""

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """Visual content, then the text, in the family's chat format. Without a layout: the text only.

        Raises ValueError if the text contains a control token of the model.
        """

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """Keyword arguments for the language model in place of ids; `embed_tokens` is enough for most families.

        ids, slots: (n,), a part of a prompt that contains all of its slots or none. features: for B sequences, the
        features of every unit in this part.
        """


class ForwardOutput(NamedTuple):
    """Output of one forward pass.

    Attributes:
        layers: recorded attention, bottom to top.
        logits: (B, V), scores of the next token; None if not requested.
    """

    layers: list[LayerAttention]
    logits: torch.Tensor | None


def embed_tokens(
    model: PreTrainedModel, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]
) -> dict[str, Any]:
    """Token embeddings (B, n, C), with the features in the slots. See `Mllm.embed`."""
    embedded = model.get_input_embeddings()(ids)
    rows = [embedded.clone() for _ in features]
    for row, units in zip(rows, features):
        if units:
            row[slots] = torch.cat([unit.tokens for unit in units]).to(row.dtype)
    return {"inputs_embeds": torch.stack(rows)}


def part_of(inputs: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The tokens `start` to `stop` of the result of `Mllm.embed`."""
    part: dict[str, Any] = {name: value[:, start:stop] for name, value in inputs.items() if torch.is_tensor(value)}
    if "deepstack_visual_embeds" in inputs:
        # One row for every visual token of every sequence.
        columns = torch.arange(inputs["inputs_embeds"].shape[1], device=inputs["inputs_embeds"].device)
        slots = inputs["visual_pos_masks"]
        wanted = ((columns >= start) & (columns < stop)).expand(slots.shape)[slots]
        part["deepstack_visual_embeds"] = [layer[wanted] for layer in inputs["deepstack_visual_embeds"]]
    return part


@torch.inference_mode()
def forward(
    model: PreTrainedModel,
    inputs: dict[str, Any],
    positions: torch.Tensor,
    cache: DynamicCache | None,
    first_layer: int,
    wants_token: bool,
) -> ForwardOutput:
    """Runs B sequences through the language model, as a continuation of the KV cache, which it extends.

    Args:
        model: the whole model.
        inputs: from `Mllm.embed`.
        positions: (n,) or (3, n), the same for all sequences.
        cache: KV cache of the preceding tokens; None starts a sequence.
        first_layer: the lowest layer whose attention is recorded.
        wants_token: compute the next token's logits. Otherwise the pass stops after the last layer's queries, keys and
            values.
    """
    untyped_model: Any = model
    batch, count = inputs["inputs_embeds"].shape[:2]
    position_ids = positions.unsqueeze(-2).expand(*positions.shape[:-1], batch, count)
    decoder = untyped_model.get_decoder()
    last_layer = None if wants_token else decoder.config.num_hidden_layers - 1
    with record_attention(first_layer, last_layer) as recording:
        # Always with a cache: without one, Qwen3-VL in transformers 4.57 mistakes the repeated positions of a batch for
        # packed sequences.
        hidden = decoder(**inputs, position_ids=position_ids, past_key_values=cache, use_cache=True)
    if not wants_token:
        return ForwardOutput(recording.layers, None)
    return ForwardOutput(recording.layers, untyped_model.get_output_embeddings()(hidden.last_hidden_state[:, -1]))


class Answer(NamedTuple):
    """A decoded answer.

    Attributes:
        text: one line, possibly empty.
        finished: whether it ended by itself; False: it reached the limit of tokens.
    """

    text: str
    finished: bool


def decode(
    mllm: Mllm, prompt: Prompt, cache: DynamicCache, logits: torch.Tensor, max_new_tokens: int
) -> Steps[list[Answer]]:
    """As `decode_ids`, the answers as text."""
    answers = []
    for ids, finished in (yield from decode_ids(mllm, prompt, cache, logits, max_new_tokens)):
        text = mllm.tokenizer.decode(ids, skip_special_tokens=True)
        # Answers enter prompts, messages and images: one line, no control characters, no control tokens (some of them
        # are not special tokens, so the tokenizer keeps them).
        for token in control_tokens(mllm.tokenizer, text):
            text = text.replace(token, " ")
        line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        answers.append(Answer(line, finished))
    return answers


@torch.inference_mode()
def decode_ids(
    mllm: Mllm, prompt: Prompt, cache: DynamicCache, logits: torch.Tensor, max_new_tokens: int
) -> Steps[list[tuple[list[int], bool]]]:
    """Greedy decoding of B sequences of one prompt, each up to its end token, as transformers' `generate` does it. A
    unit is a token.

    cache: KV cache of the whole prompt; it is extended. logits: (B, V), from the pass over the prompt.
    Returns for each sequence its tokens, without the end token, and whether it came to its end token.
    """
    ends = torch.as_tensor(end_tokens(mllm), device=logits.device)
    embedding, position = mllm.model.get_input_embeddings(), int(prompt.positions.max())
    one_position = prompt.positions[..., :1]
    # Part of greedy decoding too: Qwen2.5-VL's generation config has 1.05.
    penalise = RepetitionPenaltyLogitsProcessor(float(mllm.model.generation_config.repetition_penalty or 1.0))
    sequences = prompt.ids.expand(len(logits), -1)
    tokens = [penalise(sequences, logits.float()).argmax(dim=-1)]
    done = torch.isin(tokens[-1], ends)
    while not bool(done.all()) and len(tokens) < max_new_tokens:
        yield
        position += 1
        inputs = {"inputs_embeds": embedding(tokens[-1])[:, None]}
        positions = torch.full_like(one_position, position)
        output = forward(mllm.model, inputs, positions, cache, mllm.layers, wants_token=True)
        assert output.logits is not None
        sequences = torch.cat([sequences, tokens[-1][:, None]], dim=1)
        tokens.append(torch.where(done, ends[0], penalise(sequences, output.logits.float()).argmax(dim=-1)))
        done = done | torch.isin(tokens[-1], ends)
    answers = []
    for sequence in torch.stack(tokens, dim=1).tolist():
        stop = next((place for place, token in enumerate(sequence) if token in ends.tolist()), len(sequence))
        answers.append((sequence[:stop], stop < len(sequence)))
    return answers


def answer_margin(tokenizer: Any, logits: torch.Tensor, answer: str, other: str) -> torch.Tensor:
    """Log-odds of one answer against another as the next token: (B,) float32. logits: (B, V).

    Sums the probabilities of the casings. Only the first token of an answer counts.
    answer, other: one word each, in lower case. Raises ValueError if they begin with the same token.
    """
    first, second = (
        {tokenizer(form, add_special_tokens=False)["input_ids"][0] for form in (word.title(), word, word.upper())}
        for word in (answer, other)
    )
    if first & second:
        raise ValueError(f'expected a tokenizer that tells "{answer}" from "{other}" by the first token')
    values = logits.float()
    return values[:, sorted(first)].logsumexp(dim=-1) - values[:, sorted(second)].logsumexp(dim=-1)


def end_tokens(mllm: Mllm) -> list[int]:
    """The end tokens of the generation config and of the tokenizer: without its file the former may lack the one that
    ends a turn. Raises ValueError if there is none.
    """
    configured = mllm.model.generation_config.eos_token_id
    ends = {mllm.tokenizer.eos_token_id, *(configured if isinstance(configured, (list, tuple)) else [configured])}
    if ends == {None}:
        raise ValueError("expected eos_token_id in generation_config.json, got no end token")
    return sorted(ends - {None})


def control_tokens(tokenizer: Any, text: str) -> list[str]:
    """The model's control tokens that a text contains."""
    return [token for token in tokenizer.get_added_vocab() if token in text]


def check_text(tokenizer: Any, text: str) -> None:
    """Raises ValueError if a text contains a control token of the model."""
    control = control_tokens(tokenizer, text)
    if control:
        raise ValueError(f"query: expected plain text, got the model's control token {', '.join(control)}")


def write_chat(processor: ProcessorMixin, kind: str | None, text: str, system: str, images: str) -> str:
    """The family's chat format: a system prompt, the images, a text.

    Args:
        processor: the family's processor.
        kind: the layout's kind, None without images.
        text: the user's text.
        system: the system prompt.
        images: replaces the chat template's placeholder.

    Raises:
        ValueError: if the text contains a control token, or the template has not exactly one placeholder.
    """
    untyped_processor: Any = processor
    check_text(untyped_processor.tokenizer, text)
    content = [{"type": "text", "text": text}]
    if kind is not None:
        content.insert(0, {"type": "video" if kind == "video" else "image"})
    turns = [{"role": "system", "content": [{"type": "text", "text": system}]}, {"role": "user", "content": content}]
    chat: str = untyped_processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    if kind is None:
        return chat
    placeholder = untyped_processor.video_token if kind == "video" else untyped_processor.image_token
    if chat.count(placeholder) != 1:
        raise ValueError(f"chat template: expected one placeholder for {kind}, got {chat.count(placeholder)}")
    return chat.replace(placeholder, images)


def prepare_model(model: PreTrainedModel) -> PreTrainedModel:
    """Routes the language model's attention through the tap; the vision tower keeps SDPA. On a GPU also changes layers
    (`speed_up`)."""
    untyped_model: Any = model
    install_tap(untyped_model.get_decoder())
    avoid_planned_attention(model.device)
    if model.device.type == "cuda":
        speed_up(model)
    return model
