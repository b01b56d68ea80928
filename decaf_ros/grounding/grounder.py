"""The first half of the method: what does the multimodal LLM look at when it is asked about the target?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from decaf_ros.config import DecafConfig, GroundingConfig
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, fuse
from decaf_ros.grounding.mllm import Mllm, Prompt, Visual, decode, prefill
from decaf_ros.grounding.prompts import background_prompt, choice_prompt, object_prompt
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.stages import StageClock
from decaf_ros.types import AttentionMaps, BranchMaps, Grounding, Window

STAGES = ("video_object", "frames_object", "category", "video_background", "frames_background", "fusion")


class Look(NamedTuple):
    """What one prompt about one visual input showed.

    maps: rollout of the last prompt token, (T', h, w) float32, T' the temporal rows of all sequences. answers: the
    decoded one of each sequence; none where nothing was decoded.
    """

    maps: np.ndarray
    answers: list[str]


# (mllm, visual, text, start_layer, config, decodes) -> Look; `look` is the one that runs the model.
Looker = Callable[[Mllm, Visual, str, int, DecafConfig, bool], Look]


def look(mllm: Mllm, visual: Visual, text: str, start_layer: int, config: DecafConfig, decodes: bool) -> Look:
    """Puts a text to the model about a visual input, once. decodes: the answer is wanted too."""
    prompt = mllm.prompt(visual, text)
    seen = prefill(mllm.model, prompt, start_layer, keep_cache=decodes)
    maps = rollout_maps(seen.layers, prompt, config.grounding)
    return Look(maps, decode(mllm, prompt, seen, config.mllm.max_new_tokens) if decodes else [])


@torch.inference_mode()
def rollout_maps(layers: Sequence[LayerAttention], prompt: Prompt, options: GroundingConfig) -> np.ndarray:
    """What the last token of a prompt makes of its visual tokens: (T', h, w) float32, sequences one after another."""
    # On a CPU a block should fit into its caches; a GPU wants few large ones.
    block = options.query_block or (64 if prompt.visual.device.type == "cpu" else 512)
    row = rollout_last_row(layers, prompt.visual, method=options.rollout, block=block)
    return row[prompt.visual].reshape(-1, *prompt.grid[1:]).cpu().numpy()


class Grounder:
    """Asks one multimodal LLM. looker: how a prompt is put to it."""

    def __init__(self, mllm: Mllm, looker: Looker = look) -> None:
        self.mllm = mllm
        self.looker = looker

    def ground(self, window: Window, query: str, config: DecafConfig, clock: StageClock) -> Grounding:
        """Object and background maps of the video and of its frames, fused.

        Mode `paper` decodes the category (candidates from the video and every frame, then one choice) and names it in
        the background prompt; mode `fast` names the target by the query and decodes nothing.
        Raises ValueError for an empty query or a start layer that the model does not have.
        """
        return _Conversation(self, window, query, config, clock).run()


class _Conversation:
    """One grounding: the images are preprocessed once and put into both prompts."""

    def __init__(
        self, grounder: Grounder, window: Window, query: str, config: DecafConfig, clock: StageClock
    ) -> None:
        self.mllm = grounder.mllm
        self.looker = grounder.looker
        self.query = query
        self.config = config
        self.options: GroundingConfig = config.grounding
        self.clock = clock
        self.frame_count = len(window)
        self.start_layer = resolve_start_layer(self.options.start_layer, self.mllm.layers)
        self.images = window.images
        self.frame_batches = [
            self.images[start : start + config.mllm.frame_batch]
            for start in range(0, self.frame_count, config.mllm.frame_batch)
        ]

    def run(self) -> Grounding:
        options = self.options
        decodes = options.mode == "paper"
        text = object_prompt(self.query, options.object_prompt)
        videos = [self.mllm.video(self.images)] if options.branches != "frames" else []
        frames = [self.mllm.frames(batch) for batch in self.frame_batches] if options.branches != "video" else []

        video_object, video_answers = self._look("video_object", videos, text, decodes)
        frames_object, frame_answers = self._look("frames_object", frames, text, decodes)
        answers = tuple(answer.lower() for answer in video_answers + frame_answers)
        category = self._choose(answers) if decodes else ""
        variant = options.background_prompt if decodes else "v3"
        text = background_prompt(self.query, category, variant)
        video_background, _ = self._look("video_background", videos if options.contrast else [], text)
        frames_background, _ = self._look("frames_background", frames if options.contrast else [], text)

        self.clock.start("fusion")
        video = _branch(video_object, video_background)
        frame = _branch(frames_object, frames_background)
        fused = fuse(
            None if video is None else contrast(video, VIDEO_KERNEL, per_frame=False),
            None if frame is None else contrast(frame, FRAME_KERNEL, per_frame=True),
            self.frame_count,
        )
        return Grounding(AttentionMaps(fused, video, frame), category, answers)

    def _look(
        self, stage: str, visuals: list[Visual], text: str, decodes: bool = False
    ) -> tuple[np.ndarray | None, list[str]]:
        """Rollout maps (T', h, w) float32 of one prompt over one branch, None without images; and the answers."""
        looks = []
        for visual in visuals:
            self.clock.start(stage)
            looks.append(self.looker(self.mllm, visual, text, self.start_layer, self.config, decodes))
        answers = [answer for one in looks for answer in one.answers]
        return (np.concatenate([one.maps for one in looks]) if looks else None), answers

    def _choose(self, answers: tuple[str, ...]) -> str:
        """The category that the model settles on, from the query and all candidates (text only)."""
        self.clock.start("category")
        prompt = self.mllm.prompt(None, choice_prompt(self.query, answers, self.options.choice_prompt))
        # No attention of this prompt is read: record from past the last layer.
        seen = prefill(self.mllm.model, prompt, self.mllm.layers, keep_cache=True)
        (choice,) = decode(self.mllm, prompt, seen, self.config.mllm.max_new_tokens)
        # The prompt in which it is put has a full stop of its own.
        return choice.rstrip(".")


def resolve_start_layer(configured: int, layers: int) -> int:
    """Half of the layers for -1 (Tab. 5b: 14 of 28, 18 of 36, 24 of 48), else as configured.

    Raises ValueError for a layer that the model does not have.
    """
    if configured >= layers:
        raise ValueError(f"grounding.start_layer: expected a layer below {layers}, got {configured}")
    return layers // 2 if configured < 0 else configured


def _branch(target: np.ndarray | None, background: np.ndarray | None) -> BranchMaps | None:
    """None without images; without contrast the background is zero."""
    if target is None:
        return None
    return BranchMaps(target, np.zeros_like(target) if background is None else background)
