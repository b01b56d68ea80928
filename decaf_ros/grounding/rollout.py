"""Attention rollout with vision-aware head weights (paper, Eq. 1-4), as row vectors.

Only the last row of R = A^(L) ... A^(start) is needed. A row vector pushed from the top layer down gives exactly this
row: v <- v A^ = (v + mean_h w_h (v A_h)) / 2. One pass over a layer's softmax, in blocks of rows, gives both the head
weights w_h and the products v A_h. Neither the N x N matrices of all heads nor an N^3 product are ever formed.

Prompts with a common prefix share its rows of A: one pass serves the vectors of all prompts. `PrefixAttention` keeps
the results that do not depend on the vectors.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Hashable, Sequence

import torch

from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.stages import Steps, finish

METHODS = ("v_max", "max", "mean")
KERNELS = ("auto", "torch", "triton")
_log = logging.getLogger(__name__)
# Fastest kernel by device, dtype, heads, key heads, head size, sequence length (power of two) and block.
_fastest_kernel: dict[tuple[Hashable, ...], str] = {}
# Key columns that head strengths are computed over, as half-open intervals (first, end).
ColumnRanges = Sequence[tuple[int, int]]


class PrefixAttention:
    """Attention of the tokens that several prompts share, and its statistics that no suffix changes.

    Attributes:
        layers: bottom to top, queries and keys of the same P tokens.
        visual: (P,) bool.
        log_total: by layer, log of the softmax denominator (B, H, P).
        strength: by layer and method, head strengths (B, H).
    """

    def __init__(self, layers: Sequence[LayerAttention], visual: torch.Tensor) -> None:
        self.layers = list(layers)
        self.visual = visual
        self.log_total: dict[int, torch.Tensor] = {}
        self.strength: dict[tuple[int, str], torch.Tensor] = {}


def rollout_steps(
    prefix: PrefixAttention,
    suffixes: Sequence[Sequence[LayerAttention]],
    method: str = "v_max",
    block: int = 64,
    skipped: int = 0,
    kernel: str = "auto",
) -> Steps[torch.Tensor]:
    """Rollout from the last token of each prompt to every token of their common prefix.

    Args:
        prefix: attention of the prefix.
        suffixes: for S prompts, the rollout's layers bottom to top, with queries and keys of the n tokens after the
            prefix only. None of these tokens is visual.
        method: `v_max` weighs a head by its mean maximum over visual columns (Eq. 4), `max` over all columns (Lin et
            al., 2024), `mean` weighs all heads equally (Abnar & Zuidema, 2020).
        block: number of attention rows that `torch` holds at once.
        skipped: number of prefix layers below the rollout.
        kernel: `torch`, `triton` (CUDA only), or `auto`: the faster one, measured once per kind of layer on CUDA.

    Returns:
        (S, B, P) float32. Rows do not sum to 1: the weighted heads are averaged, not normalised (as published).

    Raises:
        ValueError: unknown method or kernel, no layers, no visual token, or `triton` cannot run.
    """
    _check(method, len(prefix.layers), prefix.visual)
    kernel = _resolve_kernel(kernel, prefix.layers[skipped], block)
    tokens = len(prefix.visual)
    vectors = [_unit_vector(suffix[0]) for suffix in suffixes]
    rows = torch.zeros(len(suffixes), len(vectors[0]), tokens, device=prefix.visual.device)
    for index in reversed(range(skipped, len(prefix.layers))):
        layer = prefix.layers[index]
        ranges = _ranges(prefix.visual) if method == "v_max" else [(0, tokens)]
        strength, products = yield from _prefix_rows(prefix, index, rows, ranges, method, block, kernel)
        new_rows = []
        for place, (suffix, vector) in enumerate(zip(suffixes, vectors)):
            query, key, scaling = suffix[index - skipped]
            whole = LayerAttention(query, torch.cat([layer.key, key], dim=2), scaling)
            suffix_ranges = ranges if method == "v_max" else [(0, whole.key.shape[2])]
            suffix_strength, product, _ = yield from _attend(whole, vector[None], suffix_ranges, block, kernel)
            assert suffix_strength is not None
            weight = _weights(strength + suffix_strength, method)
            product = product[0]
            product[..., :tokens] += products[place]
            mean = torch.einsum("bh,bhn->bn", weight, product) / weight.shape[1]
            vectors[place] = (vector + mean[:, tokens:]) / 2
            new_rows.append((rows[place] + mean[:, :tokens]) / 2)
        rows = torch.stack(new_rows)
    return rows


def prepare_rollout(
    prefix: PrefixAttention, method: str = "v_max", block: int = 64, skipped: int = 0, kernel: str = "auto"
) -> Steps[None]:
    """Computes the top layer's statistics of the prefix, with which a rollout skips the prefix in that layer.

    Arguments and errors as `rollout_steps`.
    """
    _check(method, len(prefix.layers), prefix.visual)
    index = len(prefix.layers) - 1
    if (index, method) in prefix.strength:
        return
    layer, tokens = prefix.layers[index], len(prefix.visual)
    kernel = _resolve_kernel(kernel, prefix.layers[skipped], block)
    rows = torch.zeros(1, len(layer.query), tokens, device=prefix.visual.device)
    ranges = _ranges(prefix.visual) if method == "v_max" else [(0, tokens)]
    strength, _, log_total = yield from _attend(layer, rows, ranges, block, kernel)
    assert strength is not None
    prefix.log_total[index], prefix.strength[index, method] = log_total, strength


def rollout_last_row(
    layers: Sequence[LayerAttention],
    visual: torch.Tensor,
    valid: torch.Tensor | None = None,
    method: str = "v_max",
    block: int = 64,
    kernel: str = "auto",
) -> torch.Tensor:
    """Rollout from the last token of a whole sequence to every token.

    Args:
        layers: layers of the rollout, bottom to top.
        visual: (B, N) bool, the visual tokens.
        valid: (B, N) bool, False at padding (left or right). The row is that of the last valid token.
        method: see `rollout_steps`.
        block: see `rollout_steps`.
        kernel: see `rollout_steps`.

    Returns:
        (B, N) float32, 0 at padding.

    Raises:
        ValueError: shapes that do not fit, or as `rollout_steps`.
    """
    _check(method, len(layers), visual)
    batch, tokens = visual.shape
    if layers[0].key.shape[0] != batch or layers[0].key.shape[2] != tokens:
        raise ValueError(f"rollout: expected keys for {(batch, tokens)} tokens, got {tuple(layers[0].key.shape)}")
    kernel = _resolve_kernel(kernel, layers[0], block)
    valid = torch.ones_like(visual) if valid is None else valid
    rows = torch.zeros(batch, tokens, device=visual.device)
    for place in range(batch):
        kept = valid[place].nonzero()[:, 0]
        first, end = int(kept[0]), int(kept[-1]) + 1
        if len(kept) != end - first:
            raise ValueError("rollout: expected padding at the ends only, got some between valid tokens")
        one = slice(place, place + 1)
        sequence = [
            LayerAttention(layer.query[one, :, first:end], layer.key[one, :, first:end], layer.scaling)
            for layer in layers
        ]
        ranges = _ranges(visual[place, first:end]) if method == "v_max" else [(0, end - first)]
        vector = _unit_vector(sequence[0])
        for layer in reversed(sequence):
            strength, products, _ = finish(_attend(layer, vector[None], ranges, block, kernel))
            assert strength is not None
            weight = _weights(strength, method)
            vector = (vector + torch.einsum("bh,bhn->bn", weight, products[0]) / weight.shape[1]) / 2
        rows[place, first:end] = vector[0]
    return rows


def _check(method: str, layers: int, visual: torch.Tensor) -> None:
    if method not in METHODS:
        raise ValueError(f"rollout method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not layers:
        raise ValueError("rollout: expected at least one recorded layer, got none")
    if method == "v_max" and not bool(visual.any(dim=-1).all()):
        raise ValueError("rollout: expected visual tokens in every sequence, got one without any")


def _unit_vector(layer: LayerAttention) -> torch.Tensor:
    """(B, n) float32: 1 at the last query, 0 elsewhere."""
    batch, _, tokens, _ = layer.query.shape
    vector = torch.zeros(batch, tokens, device=layer.query.device)
    vector[:, -1] = 1.0
    return vector


def _weights(strength: torch.Tensor, method: str) -> torch.Tensor:
    """Head weights (B, H), scaled to a maximum of 1."""
    return torch.ones_like(strength) if method == "mean" else strength / strength.amax(dim=1, keepdim=True)


def _prefix_rows(
    prefix: PrefixAttention, index: int, rows: torch.Tensor, ranges: ColumnRanges, method: str, block: int, kernel: str
) -> Steps[tuple[torch.Tensor, torch.Tensor]]:
    """The prefix's share of a layer's head strengths (B, H), and rows (S, B, P) @ A as (S, B, H, P)."""
    layer, known_strength = prefix.layers[index], prefix.strength.get((index, method))
    if known_strength is not None and not bool(rows.any()):
        # At the top layer no weight has reached the prefix yet.
        return known_strength, rows.new_zeros(()).expand(len(rows), *layer.query.shape[:3])
    strength, products, log_total = yield from _attend(
        layer, rows, ranges if known_strength is None else None, block, kernel, prefix.log_total.get(index)
    )
    prefix.log_total[index] = log_total
    if known_strength is None:
        assert strength is not None
        known_strength = prefix.strength[index, method] = strength
    return known_strength, products


def _resolve_kernel(kernel: str, layer: LayerAttention, block: int) -> str:
    """`torch` or `triton`. Raises ValueError for an unknown kernel, or for `triton` if it cannot run."""
    if kernel not in KERNELS:
        raise ValueError(f"rollout kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    device = layer.query.device
    has_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if kernel == "triton" and not has_triton:
        raise ValueError(f"rollout kernel triton: expected a cuda device and the package triton, got device {device}")
    if kernel != "auto" or not has_triton:
        return "triton" if kernel == "triton" else "torch"
    # Timings depend on the sequence length: one measurement for each power of two.
    length_class = layer.key.shape[2].bit_length()
    kind = (device, layer.query.dtype, layer.query.shape[1], *layer.key.shape[1::2], length_class, block)
    if kind not in _fastest_kernel:
        _fastest_kernel[kind] = _measure_kernels(layer, block)
    return _fastest_kernel[kind]


def _measure_kernels(layer: LayerAttention, block: int) -> str:
    """The faster kernel for this layer; `torch` if Triton cannot run."""
    batch, _, count, _ = layer.query.shape
    rows = torch.full((2, batch, count), 1.0 / count, device=layer.query.device)
    milliseconds: dict[str, float] = {}
    for kernel in ("torch", "triton"):
        try:
            finish(_attend(layer, rows, [(0, layer.key.shape[2])], block, kernel))
        except Exception as error:
            # Out of memory does not depend on the kernel.
            if kernel == "torch" or isinstance(error, torch.OutOfMemoryError):
                raise
            # Triton uses compilers of the machine, whose errors can be of any type.
            _log.warning("rollout kernel: Triton cannot run here, using PyTorch (%s)", str(error).split("\n")[0])
            return "torch"
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.device(layer.query.device):
            start.record()
            for _ in range(3):
                finish(_attend(layer, rows, [(0, layer.key.shape[2])], block, kernel))
            stop.record()
            stop.synchronize()
        milliseconds[kernel] = start.elapsed_time(stop) / 3
    fastest = min(milliseconds, key=lambda kernel: milliseconds[kernel])
    _log.info("rollout kernel: %s (ms per layer: %s)", fastest, milliseconds)
    return fastest


def _attend(
    layer: LayerAttention,
    rows: torch.Tensor,
    ranges: ColumnRanges | None,
    block: int,
    kernel: str = "torch",
    log_total: torch.Tensor | None = None,
) -> Steps[tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]]:
    """One pass over a layer's attention A. Its n queries belong to the last n of N tokens. A unit is a block of rows
    (`torch`), or the pass (`triton`).

    Args:
        layer: the layer's queries and keys.
        rows: (S, B, n), vectors over the queries.
        ranges: key columns for the head strengths; None skips them.
        block: number of attention rows held at once (`torch`).
        kernel: `torch` or `triton`.
        log_total: (B, H, n), log of the softmax denominators, if known.

    Returns:
        Head strengths (B, H), the sum over queries of the largest attention in `ranges`, or None; rows @ A
        (S, B, H, N); log_total. The softmax is never normalised as a matrix: the largest attention follows from the
        largest score, and the product divides the vectors instead.
    """
    batch, heads, count, _ = layer.query.shape
    tokens, groups = layer.key.shape[2], heads // layer.key.shape[1]
    if kernel == "triton":
        from decaf_ros.grounding.rollout_triton import attend

        columns = None if ranges is None else _columns(ranges, tokens, rows.device)
        found = attend(layer, rows, columns, log_total)
        yield
        return found
    earlier = tokens - count
    key = layer.key.float().transpose(2, 3)
    strength = None if ranges is None else rows.new_zeros(batch, heads)
    products = rows.new_zeros(batch, heads, len(rows), tokens)
    new_log_total = rows.new_empty(batch, heads, count) if log_total is None else log_total
    future = torch.ones(block, block, dtype=torch.bool, device=rows.device).triu(1)
    by_query = rows.permute(1, 2, 0)
    # In the top layer most queries have weight 0.
    has_weight = by_query.any(dim=2).any(dim=0)
    for start in range(0, count, block):
        stop = min(start + block, count)
        size, end = stop - start, earlier + stop
        needs_product = bool(has_weight[start:stop].any())
        if not needs_product and ranges is None and log_total is not None:
            continue
        # Causal: no query of this block sees a key past its end. Query heads of one key head share a product.
        query = layer.query[:, :, start:stop].float() * layer.scaling
        query = query.reshape(batch, heads // groups, groups * size, -1)
        scores = (query @ key[..., :end]).reshape(batch, heads, size, end)
        scores[..., earlier + start :].masked_fill_(future[:size, :size], float("-inf"))
        if log_total is None:
            top = scores.amax(dim=-1)
        else:
            top = log_total[:, :, start:stop]
        best = None
        if ranges is not None:
            maxima = [scores[..., a : min(b, end)].amax(dim=-1) for a, b in ranges if a < end]
            best = torch.stack(maxima).amax(dim=0) if maxima else None
        attention = scores.sub_(top[..., None]).exp_()
        # Softmax denominators relative to `top`: (B, H, size), and with a trailing axis. 1 where `top` includes them.
        total: torch.Tensor | float = 1.0
        total_column: torch.Tensor | float = 1.0
        if log_total is None:
            sums = attention.sum(dim=-1)
            new_log_total[:, :, start:stop] = top + sums.log()
            total, total_column = sums, sums[..., None]
        if strength is not None and best is not None:
            strength += ((best - top).exp() / total).sum(dim=-1)
        if needs_product:
            weighted = by_query[:, None, start:stop] / total_column
            products[..., :end] += weighted.transpose(2, 3) @ attention
        del scores, attention  # nothing large may wait for the next unit
        yield
    return strength, products.permute(2, 0, 1, 3), new_log_total


def _columns(ranges: ColumnRanges, tokens: int, device: torch.device) -> torch.Tensor:
    """(N,) bool, the inverse of `_ranges`."""
    columns = torch.zeros(tokens, dtype=torch.bool, device=device)
    for first, end in ranges:
        columns[first:end] = True
    return columns


def _ranges(visual: torch.Tensor) -> list[tuple[int, int]]:
    """The runs of True in (N,) bool, as half-open intervals (first, end)."""
    edges = torch.nn.functional.pad(visual.int(), (1, 1)).diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()))
