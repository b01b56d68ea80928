"""The first half of the method: what does the multimodal LLM look at when it is asked about the target?"""

from __future__ import annotations

import dataclasses

import numpy as np

from decaf_ros.config import DecafConfig, EngineConfig, GroundingConfig
from decaf_ros.grounding.engine import Engine, Look, Reading, View
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, fuse
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.prompts import background_prompt, choice_prompt, object_prompt
from decaf_ros.stages import StageClock
from decaf_ros.types import AttentionMaps, BranchMaps, Grounding, Window

STAGES = ("video_object", "frames_object", "category", "video_background", "frames_background", "fusion")


class Grounder:
    """Asks one multimodal LLM. record_from: see `Engine`."""

    def __init__(self, mllm: Mllm, config: EngineConfig | None = None, record_from: int | None = None) -> None:
        self.mllm = mllm
        self.engine = Engine(mllm, config or EngineConfig(), record_from)

    def ground(self, window: Window, query: str, config: DecafConfig, clock: StageClock) -> Grounding:
        """Object and background maps of the video and of its frames, fused.

        Mode `paper` decodes the category (candidates from the video and every frame, then one choice) and names it in
        the background prompt; mode `fast` names the target by the query, decodes nothing, and so puts both prompts at
        once, in the object's stages.
        Raises ValueError for an empty query or a start layer that the model does not have.
        """
        self.engine.new_round()
        return _Conversation(self, window, query, config, clock).run()


class _Conversation:
    """One grounding."""

    def __init__(self, grounder: Grounder, window: Window, query: str, config: DecafConfig, clock: StageClock) -> None:
        self.engine = grounder.engine
        self.query = query
        self.options: GroundingConfig = config.grounding
        self.max_new_tokens = config.mllm.max_new_tokens
        self.clock = clock
        self.frame_count = len(window)
        mllm = grounder.mllm
        # On a CPU a block should fit into its caches; a GPU wants few large ones.
        block = self.options.query_block or (64 if mllm.model.device.type == "cpu" else 512)
        start_layer = resolve_start_layer(self.options.start_layer, mllm.layers)
        self.reading = Reading(start_layer, self.options.rollout, block, self.options.rollout_kernel)
        self.video, self.frames = [], []
        if self.options.branches != "frames":
            self.video = [View(mllm.layout("video", len(window), window.size_hw), window.frames)]
        if self.options.branches != "video":
            layout = mllm.layout("frames", 1, window.size_hw)
            self.frames = [View(layout, (frame,)) for frame in window.frames]

    def run(self) -> Grounding:
        options = self.options
        text = object_prompt(self.query, options.object_prompt)
        if options.mode == "fast":
            answers, category = (), ""
            texts = [text, background_prompt(self.query, "", "v3")] if options.contrast else [text]
            video = self._look("video_object", self.video, texts)
            frames = self._look("frames_object", self.frames, texts)
        else:
            video = self._look("video_object", self.video, [text], decodes=True)
            frames = self._look("frames_object", self.frames, [text], decodes=True)
            answers = tuple(look.answer.lower() for looks in (video[0], frames[0]) for look in looks)
            category = self._choose(answers)
            if options.contrast:
                text = background_prompt(self.query, category, options.background_prompt)
                video += self._look("video_background", self.video, [text])
                frames += self._look("frames_background", self.frames, [text])

        self.clock.start("fusion")
        of_video, of_frames = _branch(video), _branch(frames)
        fused = fuse(
            None if of_video is None else contrast(of_video, VIDEO_KERNEL, per_frame=False),
            None if of_frames is None else contrast(of_frames, FRAME_KERNEL, per_frame=True),
            self.frame_count,
        )
        return Grounding(AttentionMaps(fused, of_video, of_frames), category, answers)

    def _look(self, stage: str, views: list[View], texts: list[str], decodes: bool = False) -> list[list[Look]]:
        """For each text the looks at the views; nothing to see without views."""
        if not views:
            return [[] for _ in texts]
        self.clock.start(stage)
        reading = dataclasses.replace(self.reading, max_new_tokens=self.max_new_tokens) if decodes else self.reading
        return self.engine.look(views, texts, reading, self.clock.tick)

    def _choose(self, answers: tuple[str, ...]) -> str:
        """The category that the model settles on, from the query and all candidates (text only)."""
        self.clock.start("category")
        choice = self.engine.answer(choice_prompt(self.query, answers, self.options.choice_prompt), self.max_new_tokens)
        # The prompt in which it is put has a full stop of its own.
        return choice.rstrip(".")


def resolve_start_layer(configured: int, layers: int) -> int:
    """Half of the layers for -1 (Tab. 5b: 14 of 28, 18 of 36, 24 of 48), else as configured.

    Raises ValueError for a layer that the model does not have.
    """
    if configured >= layers:
        raise ValueError(f"grounding.start_layer: expected a layer below {layers}, got {configured}")
    return layers // 2 if configured < 0 else configured


def _branch(looks: list[list[Look]]) -> BranchMaps | None:
    """None without images; without contrast the background is zero."""
    if not looks[0]:
        return None
    maps = [np.concatenate([look.map for look in some]) for some in looks]
    return BranchMaps(maps[0], maps[1] if len(maps) > 1 else np.zeros_like(maps[0]))
