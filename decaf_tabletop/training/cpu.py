"""What makes training on a CPU fast. None of it changes a result by more than rounding."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

Item, Made = TypeVar("Item"), TypeVar("Made")


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed: the same large blocks come and go at every step, and giving their pages back
    to the system each time costs as much as the training itself. Elsewhere nothing happens."""
    trim_threshold, mmap_max = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        tune = ctypes.CDLL("libc.so.6").mallopt
        tune(mmap_max, 0)
        tune(trim_threshold, -1)


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float = 0.0) -> torch.Tensor:
    """Attention as two products, (..., N, C) each: the backward pass of the fused one takes five times as long at
    these sizes. The parameters are those of `scaled_dot_product_attention`."""
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(weights, -1, dtype=weights.dtype) @ value


def speed_up(tower: nn.Module) -> None:
    """From now on a Qwen2.5-VL vision tower takes the images of a batch, all of one size, together, where its own
    attention takes one after the other in every layer; and its patches by a product instead of a convolution."""
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
        raise ValueError(f"expected images of one size, got patches {lengths.tolist()}")
    shape = (len(lengths), int(lengths[0]), 3, self.num_heads, -1)
    query, key, value = self.qkv(hidden_states).view(shape).permute(2, 0, 3, 1, 4)
    cos, sin = (turn.view(shape[0], 1, shape[1], -1).to(query.dtype) for turn in position_embeddings)
    heads = attention(_turned(query, cos, sin), _turned(key, cos, sin), value)
    return self.proj(heads.transpose(1, 2).reshape(hidden_states.shape))


def _turned(vectors: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cos + torch.cat([-second, first], dim=-1) * sin


def in_parallel(make: Callable[[Item], Made], items: Iterable[Item], workers: int) -> Iterator[Made]:
    """make(item) of every item, in order, made by other processes of one thread each."""
    # Spawned: a fork of a process in which OpenMP has run may hang.
    with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(make, items, chunksize=8)
