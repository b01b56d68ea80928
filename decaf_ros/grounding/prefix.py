"""A prompt in two passes: the prefix up to its last visual token, and a text as a short suffix on the KV cache."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch
from transformers import DynamicCache

from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.mllm import Answer, Features, ForwardOutput, Mllm, Prompt, decode, forward, part_of
from decaf_ros.grounding.pace import Pace
from decaf_ros.grounding.rollout import PrefixAttention
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.stages import Steps


class Prefix:
    """The common prefix of B sequences of one layout, after its pass.

    Attributes:
        views: cache key of each sequence's view.
        length: number of tokens.
        cache: keys and values of every layer.
        first_layer: the lowest layer whose attention is recorded.
        attention: recorded attention for the rollout.
    """

    def __init__(
        self,
        views: tuple[Hashable, ...],
        prompt: Prompt,
        length: int,
        cache: DynamicCache,
        layers: list[LayerAttention],
    ) -> None:
        self.views = views
        self.length = length
        self.cache = cache
        self._keys_values: list[tuple[torch.Tensor, torch.Tensor]] = [
            (layer.keys, layer.values) for layer in self._cache_layers()
        ]
        self.first_layer = len(cache.layers) - len(layers)
        self.attention = PrefixAttention(layers, prompt.visual[:length])

    @property
    def bytes(self) -> int:
        """Size of all tensors, including the statistics that the rollout will add."""
        tensors = [tensor for pair in self._keys_values for tensor in pair]
        tensors += [layer.query for layer in self.attention.layers]
        statistics = sum(4 * layer.query[..., 0].numel() for layer in self.attention.layers)
        return statistics + sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def truncate(self) -> None:
        """Removes the tokens after the prefix from the KV cache."""
        for layer, (keys, values) in zip(self._cache_layers(), self._keys_values):
            layer.keys, layer.values = keys, values

    def run_suffix(
        self, mllm: Mllm, prompt: Prompt, options: ReadOptions
    ) -> Steps[tuple[list[LayerAttention], list[Answer]]]:
        """Attention among the tokens of a prompt after the prefix, and the answer of each sequence."""
        wants_answer, answers = options.max_new_tokens > 0, [Answer("", True)] * len(self.views)
        try:
            output = self.forward_suffix(mllm, prompt, options.start_layer, wants_answer)
            if output.logits is not None:
                answers = yield from decode(mllm, prompt, self.cache, output.logits, options.max_new_tokens)
        finally:
            # Also after a failure such as out of memory, or if abandoned: the prefix stays valid for the next text.
            self.truncate()
        layers = [
            LayerAttention(layer.query, layer.key[:, :, self.length :].clone(), layer.scaling)
            for layer in output.layers
        ]
        return layers, answers

    def forward_suffix(self, mllm: Mllm, prompt: Prompt, first_layer: int, wants_token: bool) -> ForwardOutput:
        """Runs the tokens of a prompt after the prefix. Extends the KV cache; the caller calls `truncate`.

        first_layer, wants_token: see `forward`.
        """
        ids, slots = prompt.ids[self.length :], prompt.slots[self.length :]
        inputs = mllm.embed(ids, slots, [()] * len(self.views))
        positions = prompt.positions[..., self.length :]
        return forward(mllm.model, inputs, positions, self.cache, first_layer, wants_token)

    def _cache_layers(self) -> list[Any]:
        # Full-attention layers only, which all have `keys` and `values`; transformers types the union of all kinds.
        return cast("list[Any]", self.cache.layers)


def prefix_length(prompt: Prompt) -> int:
    """Number of tokens up to the last visual one."""
    return int(prompt.slots.nonzero()[-1, 0]) + 1


def run_prefix(
    mllm: Mllm,
    views: Sequence[View],
    prompt: Prompt,
    features: Sequence[Sequence[Features]],
    first_layer: int,
    pace: Pace,
) -> Steps[Prefix]:
    """Runs the common prefix of these views as one batch, in chunks of `pace`.

    prompt: any prompt about them. features: of every unit of every view. first_layer: the lowest one to record.
    """
    length = prefix_length(prompt)
    inputs = mllm.embed(prompt.ids[:length], prompt.slots[:length], features)
    cache = DynamicCache()
    queries: list[list[torch.Tensor]] = []
    layers: list[LayerAttention] = []
    start = 0
    while start < length:
        stop = start + -(-pace.size("prefix", (length - start) * len(views)) // len(views))
        with pace.measured("prefix", (stop - start) * len(views)):
            positions = prompt.positions[..., start:stop]
            part = part_of(inputs, start, stop)
            # Earlier chunks need to keep their queries only: the last one has all keys.
            layers = forward(mllm.model, part, positions, cache, first_layer, wants_token=False).layers
            queries.append([layer.query for layer in layers])
        start = stop
        yield
    if len(queries) > 1:
        layers = [
            LayerAttention(torch.cat(parts, dim=2), layer.key, layer.scaling)
            for parts, layer in zip(zip(*queries), layers)
        ]
    return Prefix(tuple(view.key for view in views), prompt, length, cache, layers)
