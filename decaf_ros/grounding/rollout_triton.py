"""The rollout's pass over a layer's attention as two Triton kernels, for CUDA.

The PyTorch version (`rollout.py`) writes blocks of scores to memory; these kernels keep them on the chip. Inputs may be
bfloat16, sums are float32. The first kernel iterates over the keys for a block of queries and writes softmax
denominators and head strengths. The second iterates over the queries for a block of keys and writes the products. Both
compute the scores, which is cheaper than storing them.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl

from decaf_ros.grounding.attention_tap import LayerAttention

_QUERIES, _KEYS = 64, 64


def attend(
    layer: LayerAttention, rows: torch.Tensor, columns: torch.Tensor | None, log_total: torch.Tensor | None = None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """As `rollout._attend`. columns: (N,) bool, the key columns for the head strengths; None skips them."""
    # Triton launches on the current device, not on that of the tensors.
    with torch.cuda.device(layer.query.device) if layer.query.is_cuda else contextlib.nullcontext():
        return _attend(layer, rows, columns, log_total)


def _attend(
    layer: LayerAttention, rows: torch.Tensor, columns: torch.Tensor | None, log_total: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    query, key, scaling = layer
    query, key, rows = query.contiguous(), key.contiguous(), rows.float().contiguous()
    batch, heads, count, size = query.shape
    tokens, groups = key.shape[2], heads // key.shape[1]
    shape: dict[str, Any] = {
        "SIZE": size,
        "WIDTH": triton.next_power_of_2(size),
        "QUERIES": _QUERIES,
        "KEYS": _KEYS,
    }
    # By default tensor cores round float32 inputs to TF32.
    shape["PRECISION"] = "ieee" if query.dtype == torch.float32 else "tf32"
    strength = None
    if columns is not None or log_total is None:
        blocks = triton.cdiv(count, _QUERIES)
        found = query.new_empty(batch, heads, count, dtype=torch.float32)
        parts = query.new_empty(batch, heads, blocks, dtype=torch.float32)
        chosen = query.new_zeros(tokens, dtype=torch.int8) if columns is None else columns.to(torch.int8)
        _statistics[blocks, heads, batch](query, key, chosen, found, parts, scaling, count, tokens, groups, **shape)
        strength = None if columns is None else parts.sum(dim=-1)
        log_total = found if log_total is None else log_total
    products = query.new_empty(len(rows), batch, heads, tokens, dtype=torch.float32)
    vectors = triton.next_power_of_2(len(rows))
    _products[triton.cdiv(tokens, _KEYS), heads, batch](
        query, key, rows, log_total, products, scaling, count, tokens, groups, len(rows), VECTORS=vectors, **shape
    )
    return strength, products, log_total


# Triton compiles kernels from source, so they stay untyped. Names in `_at` are pointers; `place` is an index in a head.
@triton.jit  # type: ignore[untyped-decorator]
def _scores(  # type: ignore[no-untyped-def]
            query, key_at, first, rows, scaling, count, tokens, SIZE: tl.constexpr, WIDTH: tl.constexpr,
            KEYS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Scores of a block of queries against the keys from `first` on; -inf where masked."""
    place, keys = tl.arange(0, WIDTH), first + tl.arange(0, KEYS)
    inside = (place[:, None] < SIZE) & (keys[None, :] < tokens)
    key = tl.load(key_at + keys[None, :].to(tl.int64) * SIZE + place[:, None], mask=inside, other=0.0)
    scores = tl.dot(query, key, input_precision=PRECISION) * scaling
    allowed = (keys[None, :] <= rows[:, None] + (tokens - count)) & (keys[None, :] < tokens)
    return tl.where(allowed, scores, float("-inf"))


# Without do_not_specialize a kernel is recompiled for many lengths, depending on their divisors.
@triton.jit(do_not_specialize=["count", "tokens"])  # type: ignore[untyped-decorator]
def _statistics(  # type: ignore[no-untyped-def]
                query_at, key_at, columns_at, total_at, strength_at, scaling, count, tokens, groups,
                SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
                PRECISION: tl.constexpr):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    offset = (batch * heads + head).to(tl.int64)
    rows, place = block * QUERIES + tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    inside = rows < count
    query_at += offset * count * SIZE
    query = tl.load(
        query_at + rows[:, None] * SIZE + place[None, :], mask=inside[:, None] & (place[None, :] < SIZE), other=0.0
    )
    key_at += (batch * (heads // groups) + head // groups).to(tl.int64) * tokens * SIZE
    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    end = tl.minimum(tokens - count + (block + 1) * QUERIES, tokens)
    for first in range(0, end, KEYS):
        scores = _scores(query, key_at, first, rows, scaling, count, tokens, SIZE, WIDTH, KEYS, PRECISION)
        higher = tl.maximum(top, tl.max(scores, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        top = higher
        keys = first + tl.arange(0, KEYS)
        chosen = tl.load(columns_at + keys, mask=keys < tokens, other=0)
        best = tl.maximum(best, tl.max(tl.where(chosen[None, :] != 0, scores, float("-inf")), 1))
    log_total = top + tl.log(total)
    tl.store(total_at + offset * count + rows, log_total, mask=inside)
    share = tl.where(inside, tl.exp(best - log_total), 0.0)
    tl.store(strength_at + offset * tl.num_programs(0) + block, tl.sum(share, 0))


@triton.jit(do_not_specialize=["count", "tokens"])  # type: ignore[untyped-decorator]
def _products(  # type: ignore[no-untyped-def]
              query_at, key_at, rows_at, total_at, products_at, scaling, count, tokens, groups, vectors,
              SIZE: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
              PRECISION: tl.constexpr, VECTORS: tl.constexpr):  # fmt: skip
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads, batches = tl.num_programs(1), tl.num_programs(2)
    offset = (batch * heads + head).to(tl.int64)
    query_at += offset * count * SIZE
    key_at += (batch * (heads // groups) + head // groups).to(tl.int64) * tokens * SIZE
    place, vector = tl.arange(0, WIDTH), tl.arange(0, VECTORS)
    found = tl.zeros((VECTORS, KEYS), tl.float32)
    # Causal: earlier queries do not see these keys.
    begin = tl.maximum(block * KEYS - (tokens - count), 0) // QUERIES * QUERIES
    for start in range(begin, count, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        inside = rows < count
        query = tl.load(
            query_at + rows[:, None] * SIZE + place[None, :], mask=inside[:, None] & (place[None, :] < SIZE), other=0.0
        )
        scores = _scores(query, key_at, block * KEYS, rows, scaling, count, tokens, SIZE, WIDTH, KEYS, PRECISION)
        log_total = tl.load(total_at + offset * count + rows, mask=inside, other=float("inf"))
        attention = tl.exp(scores - log_total[:, None])
        weights = tl.load(
            rows_at + (vector[:, None] * batches + batch) * count + rows[None, :],
            mask=(vector[:, None] < vectors) & inside[None, :],
            other=0.0,
        )
        found += tl.sum(weights[:, :, None] * attention[None, :, :], 1)
    keys = block * KEYS + tl.arange(0, KEYS)
    tl.store(
        products_at + (vector[:, None] * batches * heads + offset) * tokens + keys[None, :],
        found,
        mask=(vector[:, None] < vectors) & (keys[None, :] < tokens),
    )
