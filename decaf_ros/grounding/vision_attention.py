"""Vision tower attention over a packed sequence: chunks (images or windows) of equal length run as one SDPA batch.

transformers calls an attention function once per chunk, which makes a hundred calls per frame and layer for the windows
of Qwen2.5-VL. It passes all chunks at once only to an implementation with "flash" in its name.
"""

from __future__ import annotations

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
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    output = torch.empty_like(query[0].transpose(0, 1))  # (N, H, D)
    for length in lengths.unique().tolist():  # type: ignore[no-untyped-call]
        tokens = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
        chunk_query, chunk_key, chunk_value = (
            part[0].index_select(1, tokens).unflatten(1, (-1, length)).transpose(0, 1)  # type: ignore[no-untyped-call]
            for part in (query, key, value)
        )
        chunks = F.scaled_dot_product_attention(chunk_query, chunk_key, chunk_value, scale=scaling)
        output[tokens] = chunks.transpose(1, 2).flatten(0, 1)
    return output[None], None


AttentionInterface.register(CHUNKED, _chunked_attention)


def install_chunked_attention(tower: PreTrainedModel) -> None:
    """Routes the attention of this vision tower through `_chunked_attention`."""
    tower.config._attn_implementation = CHUNKED
