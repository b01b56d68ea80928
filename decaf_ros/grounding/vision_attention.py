"""Vision tower attention over a packed sequence: chunks (images or windows) of equal length run as one SDPA batch.

transformers calls an attention function once per chunk, which makes a hundred calls per frame and layer for the windows
of Qwen2.5-VL. It passes all chunks at once only to an implementation with "flash" in its name.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

CHUNKED = "decaf_flash_chunks"


def _chunked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within chunks, for query, key, value (1, H, N, D).

    cu_seq_lens_q: the first token of each chunk, then N; None for a single chunk (older transformers releases).
    Returns (1, N, H, D).
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    output = torch.empty_like(query[0].transpose(0, 1))  # (N, H, D)
    for length, tokens in _chunks(cu_seq_lens_q):
        chosen = (part[0] if tokens is None else part[0].index_select(1, tokens) for part in (query, key, value))
        chunk_query, chunk_key, chunk_value = (
            part.unflatten(1, (-1, length)).transpose(0, 1)  # type: ignore[no-untyped-call]
            for part in chosen
        )
        chunks = F.scaled_dot_product_attention(chunk_query, chunk_key, chunk_value, scale=scaling)
        chunks = chunks.transpose(1, 2).flatten(0, 1)
        if tokens is None:
            return chunks[None], None
        output[tokens] = chunks
    return output[None], None


# The newest results of `_chunks`. A pass has one or two kinds of chunks, which all its layers share.
_newest: deque[tuple[torch.Tensor, list[tuple[int, torch.Tensor | None]]]] = deque(maxlen=4)


def _chunks(bounds: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """For each length of chunks, the indices of their tokens; None: all tokens, in order.

    Found once per tensor: reading the bounds makes the host wait for a GPU.
    """
    for known, found in _newest:
        if known is bounds:
            return found
    places = torch.tensor(bounds.tolist())
    starts, lengths = places[:-1], places.diff()
    kinds = sorted(set(lengths.tolist()) - {0})
    found = [
        (length, (starts[lengths == length, None] + torch.arange(length)).flatten().to(bounds.device))
        for length in kinds
    ]
    if len(kinds) == 1:
        found = [(kinds[0], None)]
    _newest.append((bounds, found))
    return found


AttentionInterface.register(CHUNKED, _chunked_attention)


def install_chunked_attention(tower: PreTrainedModel) -> None:
    """Routes the attention of this vision tower through `_chunked_attention`."""
    tower.config._attn_implementation = CHUNKED
