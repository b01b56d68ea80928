"""First half of the method: where does the multimodal LLM look when it is asked about the target?"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Generator, Sequence

import numpy as np

from decaf_ros.config import DecafConfig, EngineConfig, GroundingConfig
from decaf_ros.devices import in_background
from decaf_ros.grounding.engine import Engine, MoreTexts
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, fuse
from decaf_ros.grounding.mllm import Answer, Mllm
from decaf_ros.grounding.prompts import (
    background_prompt,
    choice_prompt,
    number_prompt,
    object_prompt,
    presence_prompt,
    verification_prompt,
)
from decaf_ros.grounding.views import ReadOptions, View, ViewResult
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import AttentionMaps, BranchMaps, Frame, Grounding, Window

STAGES = (
    "video_object",
    "frames_object",
    "category",
    "video_background",
    "frames_background",
    "questions",
    "fusion",
)

# Whether several objects are meant, by `grounding.number`.
_NUMBERS = {"any": None, "one": False, "several": True}


# Other queries, at the time when they are needed.
OtherQueries = Callable[[], Sequence[str]]


class Grounder:
    """Grounds queries with one multimodal LLM. record_from: see `Engine`."""

    def __init__(self, mllm: Mllm, config: EngineConfig | None = None, record_from: int | None = None) -> None:
        self.mllm = mllm
        self.engine = Engine(mllm, config or EngineConfig(), record_from)

    def ground(
        self, window: Window, query: str, config: DecafConfig, clock: StageClock, others: OtherQueries = tuple
    ) -> Steps[Grounding]:
        """Object and background maps of the video and of its frames, fused.

        Mode `paper` decodes the category (candidates from the video and every frame, then one choice) and names it in
        the background prompt. Mode `fast` names the target by the query and decodes nothing, so both prompts run
        together, in the object stages. In both modes `presence.ask` adds one question about the video, and number
        `ask` one about the words.

        others: queries that will be grounded on this window next, with this configuration. Their prompts share this
        one's rollouts as far as their words are known (mode `paper`: not those that name the category).
        Raises ValueError for an empty query or a start layer that the model does not have.
        """
        run = _GroundingRun(self, window, query, config, clock, others)
        return in_background(run.run(), self.mllm.model.device)

    def verify(self, marked: Window, query: str) -> Steps[float]:
        """Log-odds of "yes" to the question whether the query means the object that is marked in these frames.

        Nothing of it is cached: the same marks hardly come again.
        """
        # The attention is not read: the fewest layers are recorded.
        options = ReadOptions(self.mllm.layers - 1)
        text = verification_prompt(query, "video")
        steps = self.engine.yes_margins([video_view(self.mllm, marked)], text, options, keep=False)
        (margin,) = yield from in_background(steps, self.mllm.model.device)
        return margin

    def prepare(
        self, window: Window, config: DecafConfig, others: Sequence[Window] = ()
    ) -> Generator[tuple[Frame, ...], None, None]:
        """Makes what a question about this window will need of it, whatever it is: the frame branch first, which is
        most of the work and stays useful when the window moves on, then the video branch.

        Yields after each unit, as Steps do: the key frames of unfinished work that is useful for every window with
        these frames; none if there is no such work. The newest come first, because they stay longest.

        others: windows of which nothing is dropped for it.
        """
        return in_background(self._prepare(window, config, others), self.mllm.model.device)

    def _prepare(
        self, window: Window, config: DecafConfig, others: Sequence[Window]
    ) -> Generator[tuple[Frame, ...], None, None]:
        looks = _Looks(self.mllm, window, config.grounding)
        text = object_prompt("it", config.grounding.object_prompt, config.grounding.wording)
        self.engine.new_round([*looks.frames, *looks.video], text)
        for other in others:
            kept = _Looks(self.mllm, other, config.grounding)
            for views in (kept.frames, kept.video):
                self.engine.use_prefixes(views, kept.read_options)
        for views, outlasts in ((looks.frames[::-1], True), (looks.video, False)):
            if views:
                with contextlib.closing(self.engine.prepare(views, text, looks.read_options)) as steps:
                    for in_work in steps:
                        yield tuple(frame for view in in_work for frame in view.frames) if outlasts else ()

    def means_several(self, query: str, options: GroundingConfig) -> bool | None:
        """Whether the query means several objects, see `Grounding.means_several`. The same for all its windows."""
        if options.number == "ask":
            return self.engine.margin(number_prompt(query), "several", "one") > 0
        return _NUMBERS[options.number]

    def ready_share(self, window: Window, config: DecafConfig) -> float:
        """Share of the window's visual tokens of which a question needs nothing any more, in [0, 1]."""
        looks = _Looks(self.mllm, window, config.grounding)
        tokens = np.array([np.prod(view.layout.grid) for view in (*looks.video, *looks.frames)])
        ready = np.array(
            [one for views in (looks.video, looks.frames) for one in self.engine.are_ready(views, looks.read_options)]
        )
        return float(tokens[ready].sum() / tokens.sum())


class _Looks:
    """The views that the model looks at, and how its attention is read.

    video: one view, or none without the branch. frames: one view per key frame, or none without the branch.
    """

    def __init__(self, mllm: Mllm, window: Window, options: GroundingConfig) -> None:
        # On a CPU a block should fit into the CPU caches; a GPU prefers few large blocks.
        block = options.query_block or (64 if mllm.model.device.type == "cpu" else 512)
        start_layer = resolve_start_layer(options.start_layer, mllm.layers)
        self.read_options = ReadOptions(start_layer, options.rollout, block, options.rollout_kernel)
        self.video = [video_view(mllm, window)] if options.branches != "frames" else []
        self.frames: list[View] = []
        if options.branches != "video":
            self.frames = frame_views(mllm, window)


class _GroundingRun:
    """One grounding."""

    def __init__(
        self,
        grounder: Grounder,
        window: Window,
        query: str,
        config: DecafConfig,
        clock: StageClock,
        others: OtherQueries,
    ) -> None:
        self.grounder = grounder
        self.engine = grounder.engine
        self.query = query
        self.others = others
        self.options: GroundingConfig = config.grounding
        self.asks_presence = config.presence.ask
        self.max_new_tokens = config.mllm.max_new_tokens
        self.clock = clock
        self.frame_count = len(window)
        looks = _Looks(grounder.mllm, window, self.options)
        self.video, self.frames, self.read_options = looks.video, looks.frames, looks.read_options

    def run(self) -> Steps[Grounding]:
        options = self.options
        self.engine.new_round([*self.video, *self.frames], self._first_texts(self.query)[0])
        answers: tuple[str, ...] = ()
        category = ""
        video = yield from self._ask_first("video_object", self.video)
        frames = yield from self._ask_first("frames_object", self.frames)
        if options.mode == "paper":
            candidates = [Answer(result.answer.lower(), result.finished) for result in (*video[0], *frames[0])]
            answers = tuple(candidate.text for candidate in candidates)
            category = yield from self._choose(candidates)
            if options.contrast:
                text = background_prompt(self.query, category, options.background_prompt, options.wording)
                video += yield from self._ask("video_background", self.video, [text], self.read_options)
                frames += yield from self._ask("frames_background", self.frames, [text], self.read_options)
        asked = (yield from self._ask_presence()) if self.asks_presence else None
        if options.number == "ask":
            self.clock.start("questions")
        means_several = self.grounder.means_several(self.query, options)

        self.clock.start("fusion")
        video_maps, frame_maps = _branch_maps(video), _branch_maps(frames)
        fused = fuse(
            None if video_maps is None else contrast(video_maps, VIDEO_KERNEL, per_frame=False),
            None if frame_maps is None else contrast(frame_maps, FRAME_KERNEL, per_frame=True),
            self.frame_count,
        )
        self.clock.pause()
        return Grounding(AttentionMaps(fused, video_maps, frame_maps), category, answers, asked, means_several)

    def _first_texts(self, query: str) -> list[str]:
        """The prompts about the views that need no category: the object's, and in mode `fast` the background's."""
        options = self.options
        texts = [object_prompt(query, options.object_prompt, options.wording)]
        if options.mode == "fast" and options.contrast:
            texts.append(background_prompt(query, "", "v3", options.wording))
        return texts

    def _ask_first(self, stage: str, views: list[View]) -> Steps[list[list[ViewResult]]]:
        """Asks the first texts of this query, beside those of the other ones."""
        options = self.read_options
        if self.options.mode == "paper":
            options = dataclasses.replace(options, max_new_tokens=self.max_new_tokens)

        def more() -> list[str]:
            return [text for query in self.others() for text in self._first_texts(query)]

        return (yield from self._ask(stage, views, self._first_texts(self.query), options, more))

    def _ask(
        self, stage: str, views: list[View], texts: list[str], options: ReadOptions, more: MoreTexts = tuple
    ) -> Steps[list[list[ViewResult]]]:
        """Results of the views for each text; empty lists without views."""
        if not views:
            return [[] for _ in texts]
        return (yield from self.clock.run(stage, self.engine.ask(views, texts, options, more)))

    def _ask_presence(self) -> Steps[float]:
        """The model's probability of "yes" (against "no") when asked whether the target is there.

        Asked about the video, because one frame does not show an event. Without the video branch: about every frame;
        the highest probability counts.
        """
        views, medium = (self.video, "video") if self.video else (self.frames, "image")
        text = presence_prompt(self.query, medium)
        margins = yield from self.clock.run("questions", self.engine.yes_margins(views, text, self.read_options))
        margin = max(margins)
        return 1 / (1 + math.exp(-min(max(margin, -60.0), 60.0)))

    def _choose(self, candidates: list[Answer]) -> Steps[str]:
        """The model's choice of a category, from the query and all candidates (text only)."""
        texts = tuple(candidate.text for candidate in candidates)
        text = choice_prompt(self.query, texts, self.options.choice_prompt, self.options.wording)
        choice = yield from self.clock.run("category", self.engine.answer(text, self.max_new_tokens))
        return category_of(choice, candidates, self.options.wording)


def category_of(choice: Answer, candidates: Sequence[Answer], wording: str = "paper") -> str:
    """The chosen category. In place of a choice that was cut off or is empty: the most frequent candidate that is
    neither, of equals the first; empty without one.

    The final full stop is left out: the background prompt has its own. In the published wording a choice keeps it and
    is lower-cased.
    """
    name = choice.text.lower() if wording == "published" else choice.text.rstrip(".")
    if choice.finished and name:
        return name
    names = Counter(answer.text.rstrip(".") for answer in candidates if answer.finished and answer.text)
    return names.most_common(1)[0][0] if names else ""


def video_view(mllm: Mllm, window: Window) -> View:
    """All key frames as one sequence, with their real times if the family's prompt contains times."""
    first_ns = window.frames[0].stamp_ns
    times_s = [(frame.stamp_ns - first_ns) / 1e9 for frame in window.frames]
    return View(mllm.timed(mllm.layout("video", len(window), window.size_hw), times_s), window.frames)


def check_branches(mllm: Mllm, options: GroundingConfig) -> None:
    """Raises MissingBranchError if the model cannot see the video that `grounding.branches` asks for."""
    if options.branches != "frames":
        mllm.layout("video", 2, (480, 640))


def frame_views(mllm: Mllm, window: Window) -> list[View]:
    """Every key frame by itself."""
    layout = mllm.layout("frames", 1, window.size_hw)
    return [View(layout, (frame,)) for frame in window.frames]


def resolve_start_layer(configured: int, layers: int) -> int:
    """Half of the layers for -1 (Tab. 5b: 14 of 28, 18 of 36, 24 of 48), otherwise the configured layer.

    Raises ValueError for a layer that the model does not have.
    """
    if configured >= layers:
        raise ValueError(f"grounding.start_layer: expected a layer below {layers}, got {configured}")
    return layers // 2 if configured < 0 else configured


def _branch_maps(results: list[list[ViewResult]]) -> BranchMaps | None:
    """The maps of one branch. None without views; a zero background without contrast."""
    if not results[0]:
        return None
    maps = [np.concatenate([result.map for result in text_results]) for text_results in results]
    return BranchMaps(maps[0], maps[1] if len(maps) > 1 else np.zeros_like(maps[0]))
