"""The first half of the method: what does the multimodal LLM look at when it is asked about the target?"""

from __future__ import annotations

import numpy as np
import torch

from decaf_ros.config import DecafConfig, GroundingConfig
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, fuse
from decaf_ros.grounding.mllm import Mllm, Prefill, Prompt, Visual, decode, prefill
from decaf_ros.grounding.prompts import background_prompt, choice_prompt, object_prompt
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.stages import StageClock
from decaf_ros.types import AttentionMaps, BranchMaps, Grounding, Window

STAGES = ("video_object", "frames_object", "category", "video_background", "frames_background", "fusion")


class Grounder:
    """Asks one multimodal LLM."""

    def __init__(self, mllm: Mllm) -> None:
        self.mllm = mllm

    def ground(self, window: Window, query: str, config: DecafConfig, clock: StageClock) -> Grounding:
        """Object and background maps of the video and of its frames, fused.

        Mode `paper` decodes the category (candidates from the video and every frame, then one choice) and names it in
        the background prompt; mode `fast` names the target by the query and decodes nothing.
        Raises ValueError for an empty query or a start layer that the model does not have.
        """
        return _Conversation(self.mllm, window, query, config, clock).run()


class _Conversation:
    """One grounding: the images are preprocessed once and put into both prompts."""

    def __init__(self, mllm: Mllm, window: Window, query: str, config: DecafConfig, clock: StageClock) -> None:
        self.mllm = mllm
        self.query = query
        self.options: GroundingConfig = config.grounding
        self.max_new_tokens = config.mllm.max_new_tokens
        self.clock = clock
        self.frame_count = len(window)
        self.start_layer = _start_layer(self.options.start_layer, mllm.layers)
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
        maps, answers = [], []
        for visual in visuals:
            self.clock.start(stage)
            prompt = self.mllm.prompt(visual, text)
            seen = prefill(self.mllm.model, prompt, self.start_layer, keep_cache=decodes)
            maps.append(self._rollout(seen, prompt))
            if decodes:
                answers += decode(self.mllm, prompt, seen, self.max_new_tokens)
        return (np.concatenate(maps) if maps else None), answers

    @torch.inference_mode()
    def _rollout(self, seen: Prefill, prompt: Prompt) -> np.ndarray:
        # On a CPU a block should fit into its caches; a GPU wants few large ones.
        block = self.options.query_block or (64 if prompt.visual.device.type == "cpu" else 512)
        row = rollout_last_row(seen.layers, prompt.visual, method=self.options.rollout, block=block)
        return row[prompt.visual].reshape(-1, *prompt.grid[1:]).cpu().numpy()

    def _choose(self, answers: tuple[str, ...]) -> str:
        """The category that the model settles on, from the query and all candidates (text only)."""
        self.clock.start("category")
        prompt = self.mllm.prompt(None, choice_prompt(self.query, answers, self.options.choice_prompt))
        # No attention of this prompt is read: record from past the last layer.
        seen = prefill(self.mllm.model, prompt, self.mllm.layers, keep_cache=True)
        (choice,) = decode(self.mllm, prompt, seen, self.max_new_tokens)
        # The prompt in which it is put has a full stop of its own.
        return choice.rstrip(".")


def _start_layer(configured: int, layers: int) -> int:
    """Half of the layers unless configured (Tab. 5b: 14 of 28, 18 of 36, 24 of 48)."""
    if configured >= layers:
        raise ValueError(f"grounding.start_layer: expected a layer below {layers}, got {configured}")
    return layers // 2 if configured < 0 else configured


def _branch(target: np.ndarray | None, background: np.ndarray | None) -> BranchMaps | None:
    """None without images; without contrast the background is zero."""
    if target is None:
        return None
    return BranchMaps(target, np.zeros_like(target) if background is None else background)
