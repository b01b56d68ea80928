"""Records the queries and keys of a language model while it runs, without subclasses or hooks.

transformers looks up a model's attention function in `AttentionInterface`. The function registered here keeps the
rollout's inputs and delegates to SDPA. The mask function must be registered under the same name: for an unknown name
transformers builds no mask, and a padded batch or a cached prefix then gives wrong logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TAP = "decaf_tap"


class LayerAttention(NamedTuple):
    """Attention inputs of one layer. The n queries belong to the last n of the N tokens.

    Attributes:
        query: (B, H, n, D), after RoPE.
        key: (B, H_kv, N, D), after RoPE, not repeated for grouped queries.
        scaling: factor on their product.
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float


class Recording:
    """Attention of the layers from `first_layer` up, in execution order. The pass stops at `last_layer`, if given."""

    def __init__(self, first_layer: int, last_layer: int | None = None) -> None:
        self.first_layer = first_layer
        self.last_layer = last_layer
        self.layers: list[LayerAttention] = []


class _PassCompleteError(Exception):
    """Stops a pass once everything requested is recorded."""


_recording: ContextVar[Recording | None] = ContextVar("decaf_attention_recording", default=None)


def _tapped_attention(
    module: Any,  # a family's attention module, which has `layer_idx`
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    recording = _recording.get()
    if recording is not None and module.layer_idx >= recording.first_layer:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        recording.layers.append(LayerAttention(query, key, factor))
    if recording is not None and module.layer_idx == recording.last_layer:
        raise _PassCompleteError
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(TAP, _tapped_attention)
AttentionMaskInterface.register(TAP, sdpa_mask)


def install_tap(language_model: PreTrainedModel) -> None:
    """Routes the attention of this language model through the tap. The vision tower keeps its own."""
    language_model.set_attn_implementation(TAP)


@contextmanager
def record_attention(first_layer: int, last_layer: int | None = None) -> Iterator[Recording]:
    """Records every pass of a tapped model in this thread from layer `first_layer` (from 0) up, within the block.

    If `last_layer` is given, the pass and the block end once this layer has its queries and keys (and its KV cache
    entries).
    """
    recording = Recording(first_layer, last_layer)
    token = _recording.set(recording)
    try:
        yield recording
    except _PassCompleteError as complete:
        # The rest of the pass is not needed. On Python 3.12 its traceback is part of a reference cycle, which would
        # keep the tensors of the pass in memory until the garbage collector runs.
        complete.__traceback__ = None
    finally:
        _recording.reset(token)
