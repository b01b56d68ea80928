"""Attention of a vision tower whose images and windows are chunks of one sequence: chunks of one length go together.

transformers calls its attention function once a chunk, which for the windows of Qwen2.5-VL is a hundred calls a frame
and layer. Only to one that calls itself a flash attention does it hand over all of them at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

CHUNKS = "decaf_flash_chunks"


def _chunked_attention(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
    """query, key, value: (1, H, N, D). cu_seq_lens_q: where chunks begin, and N; None for a single one, as older
    releases of transformers give it. Returns (1, N, H, D)."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    starts, lengths = cu_seq_lens_q[:-1], cu_seq_lens_q.diff()
    found = torch.empty_like(query[0].transpose(0, 1))  # (N, H, D)
    for length in lengths.unique().tolist():
        places = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
        parts = [part[0].index_select(1, places).unflatten(1, (-1, length)) for part in (query, key, value)]
        chunks = F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts), scale=scaling)
        found[places] = chunks.transpose(1, 2).flatten(0, 1)
    return found[None], None


AttentionInterface.register(CHUNKS, _chunked_attention)


def install_chunks(tower: PreTrainedModel) -> None:
    """Sends the attention of this vision tower through the function above."""
    tower.config._attn_implementation = CHUNKS
