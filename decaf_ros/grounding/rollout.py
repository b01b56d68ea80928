"""Attention rollout with vision-aware head weights (paper, Eq. 1-4), as row vectors.

Only the last row of R = A^(L) ... A^(start) is wanted. A row vector pushed from the top layer down gives just that:
v <- v A^ = (v + mean_h w_h (v A_h)) / 2. One pass over the softmax of a layer, in blocks of rows, gives both the head
weights w_h and the products v A_h, so neither an N x N matrix of all heads nor an N^3 product ever exists.

Prompts that share a prefix share its rows of A: one pass serves the vectors of all of them, and what no vector changes
(`PrefixAttention`) is not computed again for later ones.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence

import torch

from decaf_ros.grounding.attention_tap import LayerAttention

METHODS = ("v_max", "max", "mean")
KERNELS = ("auto", "torch", "triton")
_log = logging.getLogger(__name__)
# By device, type, heads, key heads, size of a head and block: which kernel was the faster one.
_faster: dict[tuple, str] = {}
# Which keys a head is weighed by: (first, one past the last) of every run of columns that count.
Runs = Sequence[tuple[int, int]]


class PrefixAttention:
    """Attention of the tokens that several prompts begin with, and what of it stays the same whatever follows.

    layers: bottom to top, queries and keys of the same P tokens. visual: (P,) bool.
    """

    def __init__(self, layers: Sequence[LayerAttention], visual: torch.Tensor) -> None:
        self.layers = list(layers)
        self.visual = visual
        # Of each layer: log of the softmax's denominator (B, H, P), and by method the heads' strength (B, H).
        self.log_total: dict[int, torch.Tensor] = {}
        self.strength: dict[tuple[int, str], torch.Tensor] = {}


def rollout_of_suffixes(
    prefix: PrefixAttention,
    suffixes: Sequence[Sequence[LayerAttention]],
    method: str = "v_max",
    block: int = 64,
    skipped: int = 0,
    kernel: str = "auto",
) -> torch.Tensor:
    """How much every token of a prefix counts for the last token of each prompt that goes on from it.

    suffixes: of S prompts, the rollout's layers bottom to top; queries and keys of the n tokens after the prefix alone,
    none of which is visual. skipped: so many of the prefix's layers lie below the rollout. method: `v_max` weighs a
    head by its mean maximum over visual columns (Eq. 4), `max` over all columns (Lin et al., 2024), `mean` not at all
    (Abnar & Zuidema, 2020). block: rows of the attention matrix that `torch` holds at once. kernel: `torch`, `triton`
    (CUDA only), or `auto`: the faster one, which on CUDA is measured once for each kind of layer.

    Returns (S, B, P) float32. Rows do not sum to 1: the weighted heads are averaged, not normalised (as published).
    Raises ValueError for an unknown method, no layers, or no visual token; for `triton` where it cannot run.
    """
    _check(method, len(prefix.layers), prefix.visual)
    kernel = _resolved(kernel, prefix.layers[skipped], block)
    tokens = len(prefix.visual)
    vectors = [_last(suffix[0]) for suffix in suffixes]
    rows = torch.zeros(len(suffixes), len(vectors[0]), tokens, device=prefix.visual.device)
    for index in reversed(range(skipped, len(prefix.layers))):
        layer = prefix.layers[index]
        runs = _runs(prefix.visual) if method == "v_max" else [(0, tokens)]
        strength, products = _prefix_rows(prefix, index, rows, runs, method, block, kernel)
        passed = []
        for place, (suffix, vector) in enumerate(zip(suffixes, vectors)):
            query, key, scaling = suffix[index - skipped]
            whole = LayerAttention(query, torch.cat([layer.key, key], dim=2), scaling)
            ends = runs if method == "v_max" else [(0, whole.key.shape[2])]
            more, product, _ = _attend(whole, vector[None], ends, block, kernel)
            weight = _weights(strength + more, method)
            product = product[0]
            product[..., :tokens] += products[place]
            mean = torch.einsum("bh,bhn->bn", weight, product) / weight.shape[1]
            vectors[place] = (vector + mean[:, tokens:]) / 2
            passed.append((rows[place] + mean[:, :tokens]) / 2)
        rows = torch.stack(passed)
    return rows


def rollout_last_row(
    layers: Sequence[LayerAttention],
    visual: torch.Tensor,
    valid: torch.Tensor | None = None,
    method: str = "v_max",
    block: int = 64,
    kernel: str = "auto",
) -> torch.Tensor:
    """How much every token counts for the last one of a whole sequence.

    layers: of the rollout, bottom to top. visual: (B, N) bool, the visual tokens. valid: (B, N) bool, False at padding
    (left or right); the row is that of the last valid token. method, block, kernel: as in `rollout_of_suffixes`.

    Returns (B, N) float32. Raises ValueError for shapes that do not fit or an unknown method.
    """
    _check(method, len(layers), visual)
    batch, tokens = visual.shape
    if layers[0].key.shape[0] != batch or layers[0].key.shape[2] != tokens:
        raise ValueError(f"rollout: expected keys for {(batch, tokens)} tokens, got {tuple(layers[0].key.shape)}")
    kernel = _resolved(kernel, layers[0], block)
    valid = torch.ones_like(visual) if valid is None else valid
    rows = torch.zeros(batch, tokens, device=visual.device)
    for place in range(batch):
        kept = valid[place].nonzero()[:, 0]
        first, last = int(kept[0]), int(kept[-1]) + 1
        if len(kept) != last - first:
            raise ValueError("rollout: expected padding at the ends only, got some between valid tokens")
        one = [
            LayerAttention(*(part[place : place + 1, :, first:last] for part in layer[:2]), layer.scaling)
            for layer in layers
        ]
        runs = _runs(visual[place, first:last]) if method == "v_max" else [(0, last - first)]
        vector = _last(one[0])
        for layer in reversed(one):
            strength, products, _ = _attend(layer, vector[None], runs, block, kernel)
            weight = _weights(strength, method)
            vector = (vector + torch.einsum("bh,bhn->bn", weight, products[0]) / weight.shape[1]) / 2
        rows[place, first:last] = vector[0]
    return rows


def _check(method: str, layers: int, visual: torch.Tensor) -> None:
    if method not in METHODS:
        raise ValueError(f"rollout method: expected one of {', '.join(METHODS)}, got {method!r}")
    if not layers:
        raise ValueError("rollout: expected at least one recorded layer, got none")
    if method == "v_max" and not bool(visual.any(dim=-1).all()):
        raise ValueError("rollout: expected visual tokens in every sequence, got one without any")


def _last(layer: LayerAttention) -> torch.Tensor:
    """(B, n) float32: the last query's unit vector."""
    batch, _, tokens, _ = layer.query.shape
    vector = torch.zeros(batch, tokens, device=layer.query.device)
    vector[:, -1] = 1.0
    return vector


def _weights(strength: torch.Tensor, method: str) -> torch.Tensor:
    """Head weights (B, H), the largest 1."""
    return torch.ones_like(strength) if method == "mean" else strength / strength.amax(dim=1, keepdim=True)


def _prefix_rows(
    prefix: PrefixAttention, index: int, rows: torch.Tensor, runs: Runs, method: str, block: int, kernel: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The prefix's part of a layer's strengths (B, H), and of the products (S, B, H, P) of its rows (S, B, P)."""
    layer, known = prefix.layers[index], prefix.strength.get((index, method))
    if known is not None and not bool(rows.any()):
        # At the top layer nothing has reached the prefix yet.
        return known, rows.new_zeros(()).expand(len(rows), *layer.query.shape[:3])
    strength, products, log_total = _attend(
        layer, rows, runs if known is None else None, block, kernel, prefix.log_total.get(index)
    )
    prefix.log_total[index] = log_total
    if known is None:
        known = prefix.strength[index, method] = strength
    return known, products


def _resolved(kernel: str, layer: LayerAttention, block: int) -> str:
    """`torch` or `triton`. Raises ValueError for an unknown kernel, and for `triton` where it cannot run."""
    if kernel not in KERNELS:
        raise ValueError(f"rollout kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    device = layer.query.device
    runs_triton = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    if kernel == "triton" and not runs_triton:
        raise ValueError(f"rollout kernel triton: expected a cuda device and the package triton, got device {device}")
    if kernel != "auto" or not runs_triton:
        return "triton" if kernel == "triton" else "torch"
    # Short sequences say little about long ones: one choice for each power of two.
    tokens = layer.key.shape[2].bit_length()
    kind = (device, layer.query.dtype, layer.query.shape[1], *layer.key.shape[1::2], tokens, block)
    if kind not in _faster:
        _faster[kind] = _measured(layer, block)
    return _faster[kind]


def _measured(layer: LayerAttention, block: int) -> str:
    """The kernel that takes less time for this layer, or the one that runs at all."""
    batch, _, count, _ = layer.query.shape
    rows = torch.full((2, batch, count), 1.0 / count, device=layer.query.device)
    milliseconds = {}
    for kernel in ("torch", "triton"):
        try:
            _attend(layer, rows, [(0, layer.key.shape[2])], block, kernel)
        except Exception as error:
            # Out of memory says nothing about a kernel.
            if kernel == "torch" or isinstance(error, torch.OutOfMemoryError):
                raise
            # Triton compiles with what it finds on the machine, and raises whatever its compilers do.
            _log.warning("rollout kernel: Triton cannot run here, PyTorch is used (%s)", str(error).split("\n")[0])
            return "torch"
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(layer.query.device):
            start.record()
            for _ in range(3):
                _attend(layer, rows, [(0, layer.key.shape[2])], block, kernel)
            stop.record()
            stop.synchronize()
        milliseconds[kernel] = start.elapsed_time(stop) / 3
    fastest = min(milliseconds, key=milliseconds.get)
    _log.info("rollout kernel: %s, of %s ms a layer", fastest, milliseconds)
    return fastest


def _attend(
    layer: LayerAttention,
    rows: torch.Tensor,
    runs: Runs | None,
    block: int,
    kernel: str = "torch",
    log_total: torch.Tensor | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """One pass over a layer's attention A, whose n queries are the last ones of its N keys' tokens.

    rows: (S, B, n), vectors over the queries. runs: the columns that heads are weighed by; None: not wanted. log_total:
    (B, H, n), log of the softmax's denominators, where they are known.

    Returns the sum over queries of the largest attention in `runs` (B, H), or None; rows @ A (S, B, H, N); log_total.
    The softmax is never divided out: a query's largest attention follows from its largest score, and in the product
    the division is done on the vector.
    """
    batch, heads, count, _ = layer.query.shape
    tokens, groups = layer.key.shape[2], heads // layer.key.shape[1]
    if kernel == "triton":
        from decaf_ros.grounding.rollout_triton import attend

        return attend(layer, rows, None if runs is None else _columns(runs, tokens, rows.device), log_total)
    earlier = tokens - count
    key = layer.key.float().transpose(2, 3)
    strength = None if runs is None else rows.new_zeros(batch, heads)
    products = rows.new_zeros(batch, heads, len(rows), tokens)
    found = rows.new_empty(batch, heads, count) if log_total is None else log_total
    future = torch.ones(block, block, dtype=torch.bool, device=rows.device).triu(1)
    by_query = rows.permute(1, 2, 0)
    # Most queries of the top layer have nothing to hand on.
    weighty = by_query.any(dim=2).any(dim=0)
    for start in range(0, count, block):
        stop = min(start + block, count)
        size, end = stop - start, earlier + stop
        matters = bool(weighty[start:stop].any())
        if not matters and runs is None and log_total is not None:
            continue
        # Causal: no query of this block sees a key past its end. Query heads that share a key head ride together.
        query = layer.query[:, :, start:stop].float() * layer.scaling
        query = query.reshape(batch, heads // groups, groups * size, -1)
        scores = (query @ key[..., :end]).reshape(batch, heads, size, end)
        scores[..., earlier + start :].masked_fill_(future[:size, :size], float("-inf"))
        if log_total is None:
            top = scores.amax(dim=-1)
        else:
            top = log_total[:, :, start:stop]
        if runs is not None:
            seen = [scores[..., a : min(b, end)].amax(dim=-1) for a, b in runs if a < end]
            best = torch.stack(seen).amax(dim=0) if seen else None
        attention = scores.sub_(top[..., None]).exp_()
        total = 1.0
        if log_total is None:
            total = attention.sum(dim=-1)
            found[:, :, start:stop] = top + total.log()
        if runs is not None and best is not None:
            strength += ((best - top).exp() / total).sum(dim=-1)
        if matters:
            weighted = by_query[:, None, start:stop] / (total if log_total is not None else total[..., None])
            products[..., :end] += weighted.transpose(2, 3) @ attention
    return strength, products.permute(2, 0, 1, 3), found


def _columns(runs: Runs, tokens: int, device: torch.device) -> torch.Tensor:
    """(N,) bool, the inverse of `_runs`."""
    columns = torch.zeros(tokens, dtype=torch.bool, device=device)
    for first, last in runs:
        columns[first:last] = True
    return columns


def _runs(visual: torch.Tensor) -> list[tuple[int, int]]:
    """The stretches of True in (N,) bool: (first, one past the last)."""
    edges = torch.nn.functional.pad(visual.int(), (1, 1)).diff()
    return list(zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist()))
