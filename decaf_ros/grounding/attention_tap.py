"""Records a language model's queries and keys while it runs, without a subclass or a hook.

transformers asks `AttentionInterface` for the attention function of a model's configuration; ours keeps what the
rollout needs and hands the work on to SDPA. Registering the mask function under the same name matters: without it
transformers builds no mask at all for an unknown name, and a padded batch or a cached prefix gives wrong logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TAP = "decaf_tap"


class LayerAttention(NamedTuple):
    """One layer's inputs to attention: query (B, H, n, D) after RoPE, key (B, H_kv, N, D) after RoPE and not yet
    repeated for grouped queries, and the factor on their product. The queries are those of the last n of N tokens."""

    query: torch.Tensor
    key: torch.Tensor
    scaling: float


class Recording:
    """The layers from `first_layer` up, in the order in which they ran. last_layer: the pass ends with it."""

    def __init__(self, first_layer: int, last_layer: int | None = None) -> None:
        self.first_layer = first_layer
        self.last_layer = last_layer
        self.layers: list[LayerAttention] = []


class _PassOverError(Exception):
    """Everything that was wanted of a pass is recorded."""


_recording: ContextVar[Recording | None] = ContextVar("decaf_attention_recording", default=None)


def _tapped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    recording = _recording.get()
    if recording is not None and module.layer_idx >= recording.first_layer:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        recording.layers.append(LayerAttention(query, key, factor))
    if recording is not None and module.layer_idx == recording.last_layer:
        raise _PassOverError
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(TAP, _tapped_attention)
AttentionMaskInterface.register(TAP, sdpa_mask)


def install_tap(language_model: PreTrainedModel) -> None:
    """Sends the attention of this language model through the tap. The vision tower keeps its own."""
    language_model.set_attn_implementation(TAP)


@contextmanager
def record_attention(first_layer: int, last_layer: int | None = None) -> Iterator[Recording]:
    """Within the block, every pass of a tapped model in this thread is recorded from `first_layer` (from 0) up.

    last_layer: once it has its queries and keys (and its part of a cache), the pass is over: the block ends there.
    """
    recording = Recording(first_layer, last_layer)
    token = _recording.set(recording)
    try:
        yield recording
    except _PassOverError:
        # Only thrown in here: nothing of the pass is left but what is recorded.
        pass
    finally:
        _recording.reset(token)
