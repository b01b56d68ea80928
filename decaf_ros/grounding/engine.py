"""Runs prompts through a multimodal LLM without repeated work (paper, Sec. 3.2; docs/architecture.md, "The engine").

All work is a task (`Steps`) of bounded units: a batch of vision features, a chunk of a prefix, a suffix, a token of an
answer, a block of rows of the rollout.

Visual tokens come before the text, so all prompts about the same images share a prefix. The prefix runs once. Each text
is a short suffix on its KV cache, and all suffixes share one rollout over the prefix. Vision features of units,
prefixes, and finished maps are cached for later windows and queries.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import torch
from transformers import DynamicCache

from decaf_ros.config import EngineConfig
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.caches import ByteCache, PrefixBudget
from decaf_ros.grounding.features import view_features
from decaf_ros.grounding.mllm import Answer, Features, Mllm, Prompt, answer_margin, decode, forward
from decaf_ros.grounding.pace import Pace
from decaf_ros.grounding.prefix import Prefix, prefix_length, run_prefix
from decaf_ros.grounding.rollout import prepare_rollout, rollout_steps
from decaf_ros.grounding.views import ReadOptions, View, ViewResult, digests_of
from decaf_ros.stages import Steps
from decaf_ros.types import Frame

_T = TypeVar("_T")
# More texts, at the time when they are needed.
MoreTexts = Callable[[], Sequence[str]]
# Makes a value of each of B sequences from the prompt and, bottom to top, the layers of its prefix and of the tokens
# after it (their own queries and keys only).
Reader = Callable[[Prompt, Sequence[LayerAttention], Sequence[LayerAttention]], list[_T]]
_MIB = 2**20
_log = logging.getLogger(__name__)


def _is_wanted(wanted: int, total: int) -> bool:
    """Whether a prefix of so many views is used for so many wanted ones: the others run through the suffix too."""
    return wanted > 0 and 2 * wanted >= total


class _Batch(NamedTuple):
    """Views that run through the model together.

    prefix_key: key of a cached prefix that contains these views, and perhaps others. (A key, not the prefix itself:
    only the cache may own the prefix, so that it can be freed when memory runs out.)
    """

    views: list[View]
    prefix_key: tuple[Hashable, ...] | None = None


class Engine:
    """Asks one multimodal LLM about views.

    Args:
        mllm: the model.
        config: bounds in bytes and tokens.
        record_from: lowest layer recorded in prefixes, for read options with different start layers; None: the start
            layer of each call.
    """

    def __init__(self, mllm: Mllm, config: EngineConfig, record_from: int | None = None) -> None:
        self.mllm = mllm
        self.config = config
        self.record_from = record_from
        self.features: ByteCache[Hashable, Features] = ByteCache(config.feature_cache_mib * _MIB)
        self.prefixes: ByteCache[tuple[Hashable, ...], Prefix] = ByteCache(max(0, config.prefix_cache_mib) * _MIB)
        self._budget = PrefixBudget(mllm.model.device) if config.prefix_cache_mib < 0 else None
        self.results: ByteCache[tuple[Hashable, str, ReadOptions], ViewResult] = ByteCache(config.map_cache_mib * _MIB)
        self.pace = Pace(mllm.model.device)
        # Streams that ask about windows of their own: the automatic size of the prefix cache is for all of them.
        self.streams = 1
        # Size of the newest prefix; 0 before the first one.
        self._bytes_per_token = 0.0
        self._prompt = lru_cache(maxsize=64)(mllm.prompt)

    def new_round(self, views: Sequence[View], text: str) -> None:
        """Call at the start of a grounding: entries it uses are not evicted by its later entries.

        views: all views that it will ask about. text: any prompt.
        """
        self._expect(views, text)
        self.features.new_round()
        self.prefixes.new_round()
        self.results.new_round()

    def prepare(
        self, views: Sequence[View], text: str, options: ReadOptions
    ) -> Generator[tuple[View, ...], None, None]:
        """Makes what any text about these views needs of them, as far as the prefix cache has room for it beside the
        prefixes used in this round: features, prefixes, and the top layer's statistics. text: any prompt.

        Yields after each unit, as Steps do: the views of the unfinished batch, or none if all that is begun is cached.
        """
        self._expect(views, text)
        if self._budget is None and not self.prefixes.max_bytes:
            return
        usable = self.use_prefixes(views, options)
        missing = {view.key: view for view in views if not any(view.key in key for key in usable)}
        for batch in self._batches(missing, text, options):
            prompt = self._prompt(batch.views[0].layout, text)
            tokens = len(batch.views) * prefix_length(prompt)
            size = round(self._bytes_per_token * tokens)
            if self._budget and size:
                self._budget.apply(self.prefixes, size, tokens)
            if size > self.prefixes.free_bytes:
                return
            with contextlib.closing(self._prepare_batch(batch, prompt, options)) as steps:
                for _ in steps:
                    yield tuple(batch.views)
            yield ()

    def _prepare_batch(self, batch: _Batch, prompt: Prompt, options: ReadOptions) -> Steps[None]:
        prefix = yield from self._prefix(batch, prompt, options, keep=True)
        skipped = options.start_layer - prefix.first_layer
        yield from prepare_rollout(prefix.attention, options.method, options.block, skipped, options.kernel)

    def use_prefixes(self, views: Sequence[View], options: ReadOptions) -> list[tuple[Hashable, ...]]:
        """Marks cached prefixes that a question about these views uses as used in this round; returns their keys."""
        usable = self._usable_prefixes(views, options)
        for key in usable:
            self.prefixes.get(key)
        return usable

    def are_ready(self, views: Sequence[View], options: ReadOptions) -> list[bool]:
        """For each of these views, which a question asks about together, whether it needs its suffix only."""
        usable = self._usable_prefixes(views, options)
        return [any(view.key in key for key in usable) for view in views]

    def _usable_prefixes(self, views: Sequence[View], options: ReadOptions) -> list[tuple[Hashable, ...]]:
        """Keys of the cached prefixes that a question about these views uses."""
        wanted = {view.key for view in views}
        return [
            key
            for key in self.prefixes
            if self._is_usable(key, options) and _is_wanted(len(wanted.intersection(key)), len(key))
        ]

    def ask(
        self,
        views: Sequence[View],
        texts: Sequence[str],
        options: ReadOptions,
        more: MoreTexts = tuple,
    ) -> Steps[list[list[ViewResult]]]:
        """Asks the model every text about every view. All views have the same layout.

        Returns for each text the results of the views, in order. Another task of this engine may begin when this one
        has ended or is closed, which leaves the engine in a valid state.

        more: called before each rollout; texts that will be asked about these views next, with the same options. They
        share the rollout, and their results are cached.
        """
        self._expect(views, texts[0])
        results: dict[tuple[Hashable, str], ViewResult] = {}
        missing: dict[Hashable, View] = {}
        for view in views:
            for text in texts:
                result = self.results.get((view.key, text, options))
                if result is not None:
                    results[view.key, text] = result
            if any((view.key, text) not in results for text in texts):
                missing[view.key] = view
        for batch in self._batches(missing, texts[0], options):
            batch_results = yield from self._within_memory(
                # Short of memory, a question is alone.
                batch,
                lambda batch, keep: self._ask(batch, texts, options, more if keep else tuple, keep),
            )
            yield
            for view, view_results in zip(batch.views, batch_results):
                for text, result in view_results.items():
                    self.results.put((view.key, text, options), result, result.map.nbytes + 1024)
                    results[view.key, text] = result
        return [[results[view.key, text] for view in views] for text in texts]

    def yes_margins(
        self, views: Sequence[View], text: str, options: ReadOptions, keep: bool = True
    ) -> Steps[list[float]]:
        """Log-odds of "yes" against "no" as the first token of the answer about each view.

        One suffix on the views' prefixes, without a rollout. Uncached, because an equal question about equal images is
        rare. options: those of earlier calls of `ask`, whose prefixes are used. keep: cache new prefixes and features,
        for images that will be asked about again.
        """
        margins: dict[Hashable, float] = {}
        for batch in self._batches({view.key: view for view in views}, text, options):
            values = yield from self._within_memory(
                batch, lambda batch, fits: self._yes_margins(batch, text, options, keep and fits)
            )
            margins.update(zip([view.key for view in batch.views], values))
            yield
        return [margins[view.key] for view in views]

    def answers(self, views: Sequence[View], text: str, max_new_tokens: int) -> Steps[list[Answer]]:
        """The answer about each view, without a rollout. Features and prefixes are cached, answers are not."""
        options = ReadOptions(self.mllm.layers, max_new_tokens=max_new_tokens)
        found: dict[Hashable, Answer] = {}
        for batch in self._batches({view.key: view for view in views}, text, options):
            answered = yield from self._within_memory(
                batch, lambda batch, keep: self._answers(batch, text, options, keep)
            )
            found.update(zip([view.key for view in batch.views], answered))
            yield
        return [found[view.key] for view in views]

    def read(self, views: Sequence[View], text: str, options: ReadOptions, reader: Reader[_T]) -> Steps[list[_T]]:
        """A reader's values from the recorded attention of one text about each view, without a rollout; uncached.

        options: the start layer counts; it is the lowest layer that the reader gets.
        """
        self._expect(views, text)
        values: dict[Hashable, _T] = {}
        for batch in self._batches({view.key: view for view in views}, text, options):
            read = yield from self._within_memory(
                batch, lambda batch, keep: self._read_attention(batch, text, options, reader, keep)
            )
            values.update(zip([view.key for view in batch.views], read))
            yield
        return [values[view.key] for view in views]

    def answer(self, text: str, max_new_tokens: int) -> Steps[Answer]:
        """The model's answer to a text without images."""
        prompt, cache, logits = self._read(text)
        return (yield from decode(self.mllm, prompt, cache, logits, max_new_tokens))[0]

    def margin(self, text: str, answer: str, other: str) -> float:
        """Log-odds of one answer against another as the first token of the answer to a text without images."""
        return float(answer_margin(self.mllm.tokenizer, self._read(text)[2], answer, other))

    @torch.inference_mode()
    def _read(self, text: str) -> tuple[Prompt, DynamicCache, torch.Tensor]:
        """Runs a prompt without images; returns it, its cache and the logits (1, V) of the next token."""
        prompt, cache = self._prompt(None, text), DynamicCache()
        inputs = self.mllm.embed(prompt.ids, prompt.slots, [()])
        # Past the last layer: no attention of this prompt is recorded.
        output = forward(self.mllm.model, inputs, prompt.positions, cache, self.mllm.layers, wants_token=True)
        assert output.logits is not None
        return prompt, cache, output.logits

    def _expect(self, views: Sequence[View], text: str) -> None:
        """Announces the views of a window. text: any prompt."""
        if self._budget:
            tokens = sum(prefix_length(self._prompt(view.layout, text)) for view in views)
            self._budget.expect(self.streams * tokens)

    def _batches(self, views: dict[Hashable, View], text: str, options: ReadOptions) -> Iterator[_Batch]:
        """Splits these views into batches; views with a cached common prefix stay together."""
        for key in self.prefixes:
            wanted = [view_key for view_key in key if view_key in views]
            if _is_wanted(len(wanted), len(key)) and self._is_usable(key, options):
                yield _Batch([views.pop(view_key) for view_key in wanted], key)
        rest = list(views.values())
        if not rest:
            return
        size = max(1, self.config.batch_tokens // len(self._prompt(rest[0].layout, text).ids))
        for start in range(0, len(rest), size):
            yield _Batch(rest[start : start + size])

    def _is_usable(self, key: tuple[Hashable, ...], options: ReadOptions) -> bool:
        prefix = self.prefixes.peek(key)
        return prefix is not None and prefix.first_layer <= self._first_layer(options)

    def _within_memory(self, batch: _Batch, run: Callable[[_Batch, bool], Steps[list[_T]]]) -> Steps[list[_T]]:
        """One result per view. On out of memory, frees the caches on the device and retries view by view.

        run: runs a batch; its second argument says whether to cache prefix and features.
        """
        try:
            return (yield from run(batch, True))
        except torch.OutOfMemoryError as error:
            _log.warning("out of memory: dropping prefixes and features, then retrying view by view (%s)", str(error))
        # Outside the handler, where the error no longer keeps the tensors of the failed pass alive.
        self.release()
        results = []
        for view in batch.views:
            results += yield from run(_Batch([view]), False)
        return results

    def keep_only(self, frames: Iterable[Frame]) -> None:
        """Drops prefixes and features that only questions about other frames could use, but none used in this round."""
        if not (len(self.prefixes) or len(self.features)):
            return
        digests = {frame.digest for frame in frames}

        def is_usable(prefix: tuple[Hashable, ...]) -> bool:
            return _is_wanted(sum(digests.issuperset(digests_of(view)) for view in prefix), len(prefix))

        self.prefixes.drop_unless(is_usable)
        self.features.drop_unless(lambda unit: digests.issuperset(digests_of(unit)))

    def release(self) -> None:
        """Frees the caches on the device, for a caller that ran out of memory."""
        self.prefixes.clear()
        self.features.clear()
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _yes_margins(self, batch: _Batch, text: str, options: ReadOptions, keep: bool) -> Steps[list[float]]:
        prompt = self._prompt(batch.views[0].layout, text)
        prefix = yield from self._prefix(batch, prompt, options, keep)
        try:
            # Past the last layer: no attention of this prompt is recorded.
            output = prefix.forward_suffix(self.mllm, prompt, self.mllm.layers, wants_token=True)
        finally:
            prefix.truncate()
        assert output.logits is not None
        margins = answer_margin(self.mllm.tokenizer, output.logits, "yes", "no").tolist()
        return [margins[prefix.views.index(view.key)] for view in batch.views]

    @torch.inference_mode()
    def _answers(self, batch: _Batch, text: str, options: ReadOptions, keep: bool) -> Steps[list[Answer]]:
        prompt = self._prompt(batch.views[0].layout, text)
        prefix = yield from self._prefix(batch, prompt, options, keep)
        _, answers = yield from prefix.run_suffix(self.mllm, prompt, options)
        return [answers[prefix.views.index(view.key)] for view in batch.views]

    @torch.inference_mode()
    def _read_attention(
        self, batch: _Batch, text: str, options: ReadOptions, reader: Reader[_T], keep: bool
    ) -> Steps[list[_T]]:
        prompt = self._prompt(batch.views[0].layout, text)
        prefix = yield from self._prefix(batch, prompt, options, keep)
        suffix, _ = yield from prefix.run_suffix(self.mllm, prompt, options)
        values = reader(prompt, prefix.attention.layers[options.start_layer - prefix.first_layer :], suffix)
        return [values[prefix.views.index(view.key)] for view in batch.views]

    @torch.inference_mode()
    def _ask(
        self, batch: _Batch, texts: Sequence[str], options: ReadOptions, more: MoreTexts, keep: bool
    ) -> Steps[list[dict[str, ViewResult]]]:
        """The results of each view, by text; also those of `more` that are not cached yet."""
        layout = batch.views[0].layout
        prefix = yield from self._prefix(batch, self._prompt(layout, texts[0]), options, keep)
        by_text = {text: self._prompt(layout, text) for text in texts}
        for text in more():
            if any(not self.results.peek((view.key, text, options)) for view in batch.views):
                with contextlib.suppress(ValueError):  # a text that no prompt can have: its own question reports it
                    by_text.setdefault(text, self._prompt(layout, text))
        texts, prompts = tuple(by_text), list(by_text.values())
        suffixes, answers = [], []
        for prompt in prompts:
            layers, prompt_answers = yield from prefix.run_suffix(self.mllm, prompt, options)
            suffixes.append(layers)
            answers.append(prompt_answers)
            yield
        skipped = options.start_layer - prefix.first_layer
        attention = prefix.attention
        rows = yield from rollout_steps(attention, suffixes, options.method, options.block, skipped, options.kernel)
        places = [prefix.views.index(view.key) for view in batch.views]
        results: list[dict[str, ViewResult]] = [{} for _ in places]
        for text, prompt, row, prompt_answers in zip(texts, prompts, rows, answers):
            maps = row[:, prompt.cells].reshape(-1, *prompt.grid).cpu().numpy()
            for place, view_results in zip(places, results):
                # Copy: a cached slice would keep the whole batch's array.
                view_results[text] = ViewResult(maps[place].copy(), *prompt_answers[place])
        return results

    def _prefix(self, batch: _Batch, prompt: Prompt, options: ReadOptions, keep: bool) -> Steps[Prefix]:
        """The batch's cached prefix, or a new one."""
        prefix = self.prefixes.get(batch.prefix_key) if batch.prefix_key else None
        return prefix or (yield from self._new_prefix(batch.views, prompt, options, keep))

    def _first_layer(self, options: ReadOptions) -> int:
        return options.start_layer if self.record_from is None else min(options.start_layer, self.record_from)

    def _new_prefix(self, views: list[View], prompt: Prompt, options: ReadOptions, keep: bool) -> Steps[Prefix]:
        """Runs the prefix of these views as one batch. keep: cache it, and the features, where they fit."""
        features = yield from view_features(self.mllm, views, self.features, keep, self.config.batch_tokens, self.pace)
        prefix = yield from run_prefix(self.mllm, views, prompt, features, self._first_layer(options), self.pace)
        tokens = prefix.length * len(views)
        self._bytes_per_token = prefix.bytes / tokens
        if keep:
            if self._budget:
                self._budget.apply(self.prefixes, prefix.bytes, tokens)
            self.prefixes.put(prefix.views, prefix, prefix.bytes)
        return prefix
