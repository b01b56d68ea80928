"""Puts prompts to a multimodal LLM and computes nothing twice (paper, Sec. 3.2; docs/architecture.md, "The engine").

Visual tokens come before the text, so all prompts about the same images share a prefix: it runs once, every text is a
short suffix on its keys and values, and their rollouts share one pass over its attention. What later windows and
queries ask again is kept: vision features of a unit, prefixes, and finished maps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from decaf_ros.config import EngineConfig
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.caches import ByteCache
from decaf_ros.grounding.mllm import Features, Layout, Mllm, Prompt, decode, run
from decaf_ros.grounding.rollout import PrefixAttention, rollout_of_suffixes
from decaf_ros.types import Frame

_MIB = 2**20
_log = logging.getLogger(__name__)


class View(NamedTuple):
    """Frames as they are put into one sequence."""

    layout: Layout
    frames: tuple[Frame, ...]

    @property
    def units(self) -> list[tuple[Frame, ...]]:
        """The frames of every unit; the last frame fills up the last one."""
        size = self.layout.frames_a_unit
        padded = [*self.frames, *[self.frames[-1]] * (-len(self.frames) % size)]
        return [tuple(padded[start : start + size]) for start in range(0, len(padded), size)]

    @property
    def key(self) -> Hashable:
        return self.layout, tuple(frame.digest for frame in self.frames)


@dataclass(frozen=True)
class Reading:
    """What is made of the attention, and whether an answer is decoded. start_layer: first of the rollout, from 0.
    method, block, kernel: as in `rollout_of_suffixes`. max_new_tokens: 0 decodes nothing."""

    start_layer: int
    method: str = "v_max"
    block: int = 64
    kernel: str = "auto"
    max_new_tokens: int = 0


class Look(NamedTuple):
    """What one prompt about one view showed: the map of its cells (t, h, w) float32, and the answer, if one was
    wanted."""

    map: np.ndarray
    answer: str


class _Prefix:
    """What B sequences of one layout begin with, after its pass. views: their keys. keys and values: in `cache`, of
    every layer."""

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
        self._held = [(layer.keys, layer.values) for layer in cache.layers]
        self.first_layer = len(cache.layers) - len(layers)
        self.attention = PrefixAttention(layers, prompt.visual[:length])

    @property
    def bytes(self) -> int:
        """Of everything that is held, with the statistics that the rollout will add."""
        held = [part for pair in self._held for part in pair]
        held += [layer.query for layer in self.attention.layers]
        statistics = sum(4 * layer.query[..., 0].numel() for layer in self.attention.layers)
        return statistics + sum(part.numel() * part.element_size() for part in held)

    def shorten(self) -> None:
        """Forgets the tokens that were put after the prefix."""
        for layer, (keys, values) in zip(self.cache.layers, self._held):
            layer.keys, layer.values = keys, values


class _Batch(NamedTuple):
    """Views that go through the model together. held: the key of their prefix where one is held, which may be of other
    views besides. (Not the prefix itself: out of memory, nothing but the cache may keep it.)"""

    views: list[View]
    held: tuple[Hashable, ...] | None = None


class Engine:
    """Looks at views with one multimodal LLM. config: its bounds, in bytes and tokens. record_from: the lowest layer
    that prefixes are recorded from, for readings that differ in their start layer; None: as each reading wants."""

    def __init__(self, mllm: Mllm, config: EngineConfig, record_from: int | None = None) -> None:
        self.mllm = mllm
        self.config = config
        self.record_from = record_from
        self.features: ByteCache[Features] = ByteCache(config.feature_cache_mib * _MIB)
        self.prefixes: ByteCache[_Prefix] = ByteCache(config.prefix_cache_mib * _MIB)
        self.looks: ByteCache[Look] = ByteCache(config.map_cache_mib * _MIB)
        self._prompt = lru_cache(maxsize=64)(mllm.prompt)

    def new_round(self) -> None:
        """To be called when a grounding begins: what it uses is not thrown out for what it brings."""
        for cache in (self.features, self.prefixes, self.looks):
            cache.new_round()

    def look(
        self,
        views: Sequence[View],
        texts: Sequence[str],
        reading: Reading,
        tick: Callable[[], None] = lambda: None,
    ) -> list[list[Look]]:
        """Puts every text to the model about every view, which all have one layout. tick: called between batches; it
        may raise, and nothing has changed then.

        Returns for each text the looks at the views, in order.
        """
        found: dict[tuple[Hashable, str], Look] = {}
        missing: dict[Hashable, View] = {}
        for view in views:
            for text in texts:
                look = self.looks.get((view.key, text, reading))
                if look is not None:
                    found[view.key, text] = look
            if any((view.key, text) not in found for text in texts):
                missing[view.key] = view
        for number, batch in enumerate(self._batches(missing, texts[0], reading)):
            if number:
                tick()
            for text, looks in zip(texts, self._look_with_room(batch, texts, reading)):
                for view, look in zip(batch.views, looks):
                    self.looks.put((view.key, text, reading), look, look.map.nbytes + 1024)
                    found[view.key, text] = look
        return [[found[view.key, text] for view in views] for text in texts]

    def answer(self, text: str, max_new_tokens: int) -> str:
        """What the model says to a text alone."""
        prompt = self._prompt(None, text)
        cache = DynamicCache()
        given = self.mllm.embed(prompt.ids, prompt.slots, [()])
        # No attention of this prompt is read: record from past the last layer.
        seen = run(self.mllm.model, given, prompt.positions, cache, self.mllm.layers, wants_token=True)
        return decode(self.mllm, prompt, cache, seen.next_token, max_new_tokens)[0]

    def _batches(self, views: dict[Hashable, View], text: str, reading: Reading) -> Iterator[_Batch]:
        """All of these views, as they came together before where that is still held."""
        for key in self.prefixes:
            wanted = [one for one in key if one in views]
            # What is not wanted goes along through the suffix: not too much of that.
            if 2 * len(wanted) >= len(key) and self._serves(key, reading):
                yield _Batch([views.pop(one) for one in wanted], key)
        rest = list(views.values())
        if not rest:
            return
        size = max(1, self.config.batch_tokens // len(self._prompt(rest[0].layout, text).ids))
        for start in range(0, len(rest), size):
            yield _Batch(rest[start : start + size])

    def _serves(self, key: tuple[Hashable, ...], reading: Reading) -> bool:
        prefix = self.prefixes.peek(key)
        return prefix is not None and prefix.first_layer <= self._first_layer(reading)

    def _look_with_room(self, batch: _Batch, texts: Sequence[str], reading: Reading) -> list[list[Look]]:
        """Where memory runs out, once more without what is only held for later, and one view after the other."""
        try:
            return self._look(batch, texts, reading)
        except torch.OutOfMemoryError as error:
            _log.warning("out of memory: prefixes and features are dropped, and it is tried again (%s)", str(error))
        # Here, where the error no longer keeps what the failed pass has made.
        self.release()
        alone = [self._look(_Batch([view]), texts, reading, keeps=False) for view in batch.views]
        return [[look for (look,) in looks] for looks in zip(*alone)]

    def release(self) -> None:
        """Drops what is held on the device for later, for whoever has found no room there."""
        self.prefixes.clear()
        self.features.clear()
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _look(self, batch: _Batch, texts: Sequence[str], reading: Reading, keeps: bool = True) -> list[list[Look]]:
        prompts = [self._prompt(batch.views[0].layout, text) for text in texts]
        prefix = self.prefixes.get(batch.held) if batch.held else None
        prefix = prefix or self._new_prefix(batch.views, prompts[0], reading, keeps)
        suffixes, answers = [], []
        for prompt in prompts:
            layers, said = self._suffix(prefix, prompt, reading)
            suffixes.append(layers)
            answers.append(said)
        skipped = reading.start_layer - prefix.first_layer
        attention = prefix.attention
        rows = rollout_of_suffixes(attention, suffixes, reading.method, reading.block, skipped, reading.kernel)
        places = [prefix.views.index(view.key) for view in batch.views]
        looks = []
        for prompt, row, said in zip(prompts, rows, answers):
            maps = row[:, prompt.cells].reshape(-1, *prompt.grid).cpu().numpy()
            # Copies: a part of a batch's array would keep all of it.
            looks.append([Look(maps[place].copy(), said[place]) for place in places])
        return looks

    def _first_layer(self, reading: Reading) -> int:
        return reading.start_layer if self.record_from is None else min(reading.start_layer, self.record_from)

    def _new_prefix(self, views: list[View], prompt: Prompt, reading: Reading, keeps: bool) -> _Prefix:
        """Of these views together; keeps: for the next text, if there is room, and the features too."""
        key = tuple(view.key for view in views)
        length = int(prompt.slots.nonzero()[-1, 0]) + 1
        given = self.mllm.embed(prompt.ids[:length], prompt.slots[:length], self._features(views, keeps))
        cache, first_layer = DynamicCache(), self._first_layer(reading)
        seen = run(self.mllm.model, given, prompt.positions[..., :length], cache, first_layer, wants_token=False)
        prefix = _Prefix(key, prompt, length, cache, seen.layers)
        if keeps:
            self.prefixes.put(key, prefix, prefix.bytes)
        return prefix

    def _suffix(self, prefix: _Prefix, prompt: Prompt, reading: Reading) -> tuple[list[LayerAttention], list[str]]:
        """Attention of the tokens after the prefix among themselves, and the answer of every sequence."""
        batch = len(prefix.views)
        ids, slots = prompt.ids[prefix.length :], prompt.slots[prefix.length :]
        given = self.mllm.embed(ids, slots, [()] * batch)
        positions = prompt.positions[..., prefix.length :]
        wants, said = reading.max_new_tokens > 0, [""] * batch
        try:
            seen = run(self.mllm.model, given, positions, prefix.cache, reading.start_layer, wants_token=wants)
            if wants:
                said = decode(self.mllm, prompt, prefix.cache, seen.next_token, reading.max_new_tokens)
        finally:
            # Also where the pass failed, out of memory perhaps: the prefix is kept for the next text.
            prefix.shorten()
        layers = [
            LayerAttention(layer.query, layer.key[:, :, prefix.length :].clone(), layer.scaling)
            for layer in seen.layers
        ]
        return layers, said

    def _features(self, views: list[View], keeps: bool) -> list[list[Features]]:
        """Of every unit of every view; those that are not held are encoded, in batches."""
        layout = views[0].layout
        units = {self._unit_key(layout, unit): unit for view in views for unit in view.units}
        found = {key: self.features.get(key) for key in units}
        missing = [key for key, features in found.items() if features is None]
        tokens = max(1, layout.grid[0] * layout.grid[1] * layout.grid[2] // layout.units)
        size = max(1, self.config.batch_tokens // tokens)
        for start in range(0, len(missing), size):
            keys = missing[start : start + size]
            images = np.stack([np.stack([frame.image for frame in units[key]]) for key in keys])
            for key, (tokens, deep) in zip(keys, self.mllm.encode(layout, images)):
                # Copies: a part of a batch's tensor would keep all of it.
                features = found[key] = Features(tokens.clone(), tuple(part.clone() for part in deep))
                held = (features.tokens, *features.deep)
                if keeps:
                    self.features.put(key, features, sum(part.numel() * part.element_size() for part in held))
        return [[found[self._unit_key(layout, unit)] for unit in view.units] for view in views]

    @staticmethod
    def _unit_key(layout: Layout, unit: tuple[Frame, ...]) -> Hashable:
        return layout.kind, layout.size_hw, layout.grid[1:], tuple(frame.digest for frame in unit)
