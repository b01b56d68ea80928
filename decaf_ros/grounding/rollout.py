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
    block: int = 64,
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
    """Per head, the sum over query rows of the largest attention in `columns` (B, H), and row @ A (B, H, N).

    The softmax is never divided out: a row's largest attention follows from its largest score, and in the product the
    division is done on the row vector.
    """
    batch, heads, tokens, _ = layer.query.shape
    groups = heads // layer.key.shape[1]
    key = layer.key.float().transpose(2, 3)
    strength = row.new_zeros(batch, heads)
    attended = row.new_zeros(batch, heads, tokens)
    is_padded = not bool(valid.all())
    first, last = _span(columns)
    # The row starts as the last token's alone: at the top layer most queries have nothing to hand on.
    weighty, _ = _span(row != 0)
    for start in range(0, tokens, block):
        stop = min(start + block, tokens)
        # Causal: no query of this block sees a key past its end. Query heads that share a key head ride together.
        query = layer.query[:, :, start:stop].float() * layer.scaling
        query = query.reshape(batch, heads // groups, groups * (stop - start), -1)
        scores = (query @ key[..., :stop]).reshape(batch, heads, stop - start, stop)
        future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=row.device).triu(1)
        scores[..., start:].masked_fill_(future, float("-inf"))
        if is_padded:
            known = valid[:, None, start:stop, None] & valid[:, None, None, :stop]
            scores.masked_fill_(~known, float("-inf"))
        # A padded query sees no key at all: its scores are all -inf, and it counts for nothing.
        top = scores.amax(dim=-1).masked_fill(~valid[:, None, start:stop], 0.0)
        seen = scores[..., first : min(last, stop)].masked_fill(
            ~columns[:, None, None, first : min(last, stop)], float("-inf")
        )
        attention = scores.sub_(top[..., None]).exp_()
        total = attention.sum(dim=-1).masked_fill_(~valid[:, None, start:stop], 1.0)
        if seen.shape[-1]:
            strength += ((seen.amax(dim=-1) - top).exp() / total).sum(dim=-1)
        if stop > weighty:
            weighted = row[:, None, None, start:stop] / total[:, :, None]
            attended[..., :stop] += (weighted @ attention)[:, :, 0]
    return strength, attended


def _span(columns: torch.Tensor) -> tuple[int, int]:
    """First and one past the last column that any row of (B, N) bool holds."""
    places = columns.any(dim=0).nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
