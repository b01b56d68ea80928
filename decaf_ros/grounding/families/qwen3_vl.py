"""Qwen3-VL: as Qwen2.5-VL, but every temporal pair of frames is a separate run of visual tokens after its timestamp.

    <0.2 seconds><|vision_start|> h * w visual tokens <|vision_end|><1.2 seconds><|vision_start|> ...

This is the published format and the output of the processor of transformers 4.57. Since 5.10 transformers keeps the
chat template's <|vision_start|> and <|vision_end|> around the whole video; the adapter never does.

Rotary positions do not encode time: a run counts as a separate image, and the next token continues from its largest
position. A run has one temporal row, so the transformers error described in `visual_positions` does not occur.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decaf_ros.grounding.families.qwen_vl import ASSUMED_FPS, QwenVl
from decaf_ros.grounding.mllm import Features, Layout


@dataclass(frozen=True)
class TimedLayout(Layout):
    """A layout whose text contains timestamps.

    Attributes:
        frames: number of images, without the repetition of the last one.
        pair_times_s: real time of every temporal pair, to a tenth of a second; empty: ASSUMED_FPS.
    """

    frames: int
    pair_times_s: tuple[float, ...] = ()


class Qwen3Vl(QwenVl):
    """Adapter for `Qwen3VLForConditionalGeneration`."""

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> TimedLayout:
        """See `QwenVl.layout`."""
        return TimedLayout(**vars(super().layout(kind, frames, size_hw)), frames=frames)

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """See `Mllm.timed`. The prompt writes the times, so caches tell windows with other times apart."""
        assert isinstance(layout, TimedLayout)
        return dataclasses.replace(layout, pair_times_s=tuple(round(time, 1) for time in self._pair_times(times_s)))

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`. The first layers each add one level of the deep features to the slots."""
        inputs = super().embed(ids, slots, features)
        units = [unit for sequence in features for unit in sequence]
        if units:
            inputs["visual_pos_masks"] = slots.expand(len(features), -1)
            inputs["deepstack_visual_embeds"] = [torch.cat(layer) for layer in zip(*(unit.deep for unit in units))]
        return inputs

    def _features(self, output: Any) -> list[Features]:
        # transformers 4 returns a pair, with the deep features of all units in one tensor per layer.
        tokens, deep = (output.pooler_output, output.deepstack_features) if hasattr(output, "pooler_output") else output
        deep = [torch.split(layer, len(tokens[0])) if torch.is_tensor(layer) else layer for layer in deep]
        return [Features(tokens[unit], tuple(layer[unit] for layer in deep)) for unit in range(len(tokens))]

    def _chat(self, layout: Layout | None, text: str) -> str:
        chat = super()._chat(layout, text)
        if layout is None or layout.kind != "video":
            return chat
        assert isinstance(layout, TimedLayout)
        run = "<|vision_start|><|video_pad|><|vision_end|>"
        if run not in chat:
            raise ValueError(f"chat template: expected {run} for a video, got {chat!r}")
        assumed = [index / ASSUMED_FPS for index in range(layout.frames)]
        times = layout.pair_times_s or self._pair_times(assumed)
        return chat.replace(run, "".join(f"<{time:.1f} seconds>{run}" for time in times))

    def _pair_times(self, times_s: Sequence[float]) -> list[float]:
        """Time of every temporal pair in seconds: half-way between its first and its last frame."""
        size = self._frames_per_pair
        pairs = [times_s[start : start + size] for start in range(0, len(times_s), size)]
        return [(pair[0] + pair[-1]) / 2 for pair in pairs]

    def _positions(self, visual: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        _, height, width = grid
        # Each text token advances the position by one; a run by its larger side, at its last token.
        advance = (~visual).long()
        (places,) = visual.nonzero(as_tuple=True)
        advance[places[height * width - 1 :: height * width]] = max(height, width)
        positions = (advance.cumsum(0) - advance).repeat(3, 1)
        cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        positions[1:, places] += cells.reshape(2, -1).repeat(1, grid[0])
        return positions
