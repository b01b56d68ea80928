"""Attention rollout with vision-aware head weights (paper, Eq. 1-4), as one row vector.

Only the last row of R = A^(L) ... A^(start) is wanted. A row vector pushed from the top layer down gives just that:
v <- v A^ = (v + mean_h w_h (v A_h)) / 2. One pass over the softmax of a layer, in blocks of rows, gives both the head
weights w_h and the products v A_h, so neither an N x N matrix of all heads nor an N^3 product ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decaf_ros.grounding.attention_tap import LayerAttention

METHODS = ("v_max", "max", "mean")


def rollout_last_row(
    layers: Sequence[LayerAttention],
    visual: torch.Tensor,
    valid: torch.Tensor | None = None,
    method: str = "v_max",
    block: int = 512,
) -> torch.Tensor:
    """How much every token counts for the last one.

    layers: of the rollout, bottom to top. visual: (B, N) bool, the visual tokens. valid: (B, N) bool, False at padding
    (left or right); the row is that of the last valid token. block: rows of the attention matrix held at once.
    method: `v_max` weighs a head by its mean maximum over visual columns (Eq. 4), `max` over all columns
    (Lin et al., 2024), `mean` not at all (Abnar & Zuidema, 2020).

    Returns (B, N) float32. Rows do not sum to 1: the weighted heads are averaged, not normalised (as published).
    Raises ValueError for shapes that do not fit or an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"rollout method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not layers:
        raise ValueError("rollout: expected at least one recorded layer, got none")
    batch, tokens = visual.shape
    if layers[0].key.shape[0] != batch or layers[0].key.shape[2] != tokens:
        raise ValueError(f"rollout: expected keys for {(batch, tokens)} tokens, got {tuple(layers[0].key.shape)}")
    if method == "v_max" and not bool(visual.any(dim=1).all()):
        raise ValueError("rollout: expected visual tokens in every row of the batch, got a row without any")

    if valid is None:
        valid = torch.ones_like(visual)
    columns = visual if method == "v_max" else valid
    last = tokens - 1 - valid.flip(1).int().argmax(dim=1)
    row = torch.zeros(batch, tokens, dtype=torch.float32, device=visual.device)
    row[torch.arange(batch, device=row.device), last] = 1.0
    for layer in reversed(layers):
        strength, attended = _strength_and_product(layer, row, columns, valid, block)
        weight = torch.ones_like(strength) if method == "mean" else strength / strength.amax(dim=1, keepdim=True)
        row = (row + torch.einsum("bh,bhn->bn", weight, attended) / weight.shape[1]) / 2
    return row


def _strength_and_product(
    layer: LayerAttention, row: torch.Tensor, columns: torch.Tensor, valid: torch.Tensor, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per head, the sum over query rows of the largest attention in `columns` (B, H), and row @ A (B, H, N)."""
    batch, heads, tokens, _ = layer.query.shape
    groups = heads // layer.key.shape[1]
    key = layer.key.float().transpose(2, 3)
    strength = row.new_zeros(batch, heads)
    attended = row.new_zeros(batch, heads, tokens)
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        # Causal: no query of this block sees a key past its end. Query heads that share a key head ride together.
        query = layer.query[:, :, start:stop].float() * layer.scaling
        query = query.reshape(batch, heads // groups, groups * (stop - start), -1)
        scores = (query @ key[..., :stop]).reshape(batch, heads, stop - start, stop)
        future = torch.ones(stop - start, stop, dtype=torch.bool, device=row.device).triu(start + 1)
        scores.masked_fill_(future | ~valid[:, None, None, :stop], float("-inf"))
        attention = scores.softmax(dim=-1)
        # A padded query sees no key at all: its row is NaN, and counts for nothing.
        attention.masked_fill_(~valid[:, None, start:stop, None], 0.0)
        largest = attention.masked_fill(~columns[:, None, None, :stop], 0.0).amax(dim=-1)
        strength += largest.sum(dim=-1)
        attended[..., :stop] += torch.einsum("br,bhrn->bhn", row[:, start:stop], attention)
    return strength, attended
