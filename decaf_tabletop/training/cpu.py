"""Speed-ups for training on a CPU. They change results only by rounding."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

Item, Result = TypeVar("Item"), TypeVar("Result")


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory; does nothing with another C library.

    Every step allocates and frees the same large blocks. Returning their pages to the system took half of the time.
    """
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
    """Attention as two matrix products, (..., N, C) each; parameters as in `scaled_dot_product_attention`.

    At these sizes the backward pass of the fused kernel takes five times as long.
    """
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(weights, -1, dtype=weights.dtype) @ value


def patch_vision_tower(tower: nn.Module) -> None:
    """Patches a Qwen2.5-VL vision tower in place for batches of equally large images.

    All images attend in one product (the original loops over them), and the patch embedding is a linear layer instead
    of a convolution. `forward` then raises ValueError for images of different sizes.
    """
    tower.patch_embed.forward = types.MethodType(_embed, tower.patch_embed)
    for block in tower.blocks:
        block.attn.forward = types.MethodType(_attend, block.attn)


def _embed(self: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    return nn.functional.linear(hidden_states, self.proj.weight.flatten(1))


def _attend(
    self: nn.Module,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: object,
) -> torch.Tensor:
    lengths = cu_seqlens.diff()
    if (lengths != lengths[0]).any():
        raise ValueError(f"images: expected one size, got patch counts {lengths.tolist()}")
    shape = (len(lengths), int(lengths[0]), 3, self.num_heads, -1)
    query, key, value = self.qkv(hidden_states).view(shape).permute(2, 0, 3, 1, 4)
    cos, sin = (table.view(shape[0], 1, shape[1], -1).to(query.dtype) for table in position_embeddings)
    heads = attention(_rotated(query, cos, sin), _rotated(key, cos, sin), value)
    return self.proj(heads.transpose(1, 2).reshape(hidden_states.shape))


def _rotated(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos + torch.cat([-second, first], dim=-1) * sin


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`function` of every item, in order, from `workers` processes with one thread each."""
    # Spawned: a forked process may hang once OpenMP has run in its parent.
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(function, items, chunksize=8)
