"""Eq. 1-4 as they stand: attention of every head, N x N products. The oracle and denominator of speed claims."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decaf_ros.grounding.attention_tap import LayerAttention


def literal_rollout(layers: Sequence[LayerAttention], visual: torch.Tensor, method: str = "v_max") -> torch.Tensor:
    """(B, N) float32: the last row of R = A^(L) ... A^(start).

    Arguments as those of `rollout_last_row`; padding is not known here.
    """
    rollout = None
    for query, key, scaling in layers:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.float() @ key.float().transpose(2, 3) * scaling
        tokens = scores.shape[-1]
        scores.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1), float("-inf"))
        attention = scores.softmax(dim=-1)
        columns = visual if method == "v_max" else torch.ones_like(visual)
        weight = attention.masked_fill(~columns[:, None, None], 0).amax(dim=-1).mean(dim=-1)
        weight = torch.ones_like(weight) if method == "mean" else weight / weight.amax(dim=1, keepdim=True)
        aggregated = (weight[..., None, None] * attention).mean(dim=1)
        step = (aggregated + torch.eye(tokens, device=scores.device)) / 2
        rollout = step if rollout is None else step @ rollout
    return rollout[:, -1]
