"""Qwen3-VL: as its predecessors, but every temporal pair of frames is a run of its own, after a text with its time.

    <0.2 seconds><|vision_start|> h * w visual tokens <|vision_end|><1.2 seconds><|vision_start|> ...

That is how the family was published, and what the processor of transformers 4.57 makes. Since 5.10 transformers leaves
the chat template's <|vision_start|> and <|vision_end|> around the whole of it; the adapter does not, with any release.

Rotary positions know no time: a run is like an image of its own, and what follows goes on from its largest position.
With one temporal row a run, what some releases of transformers get wrong for Qwen2.5-VL (`visual_positions`) is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decaf_ros.grounding.families.qwen_vl import ASSUMED_FPS, QwenVl
from decaf_ros.grounding.mllm import Features, Layout


@dataclass(frozen=True)
class TimedLayout(Layout):
    """A layout in whose text times stand. frames: images, without the last one's repetition."""

    frames: int


class Qwen3Vl(QwenVl):
    """Adapter for `Qwen3VLForConditionalGeneration`."""

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> TimedLayout:
        """See `QwenVl.layout`."""
        return TimedLayout(**vars(super().layout(kind, frames, size_hw)), frames=frames)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`. The deep features go with it: the first layers add one of them each to the slots."""
        given = super().embed(ids, slots, features)
        units = [unit for sequence in features for unit in sequence]
        if units:
            given["visual_pos_masks"] = slots.expand(len(features), -1)
            given["deepstack_visual_embeds"] = [torch.cat(layer) for layer in zip(*(unit.deep for unit in units))]
        return given

    def _features(self, found: Any) -> list[Features]:
        # transformers 4 returns a pair, with the deep features of all units in one.
        tokens, deep = (found.pooler_output, found.deepstack_features) if hasattr(found, "pooler_output") else found
        deep = [layer.split(len(tokens[0])) if torch.is_tensor(layer) else layer for layer in deep]
        return [Features(tokens[unit], tuple(layer[unit] for layer in deep)) for unit in range(len(tokens))]

    def _chat(self, layout: TimedLayout | None, text: str) -> str:
        chat = super()._chat(layout, text)
        if layout is None or layout.kind != "video":
            return chat
        run = "<|vision_start|><|video_pad|><|vision_end|>"
        if run not in chat:
            raise ValueError(f"chat template: expected {run} for a video, got {chat!r}")
        return chat.replace(run, "".join(f"<{time:.1f} seconds>{run}" for time in self._times(layout)))

    def _times(self, layout: TimedLayout) -> list[float]:
        """Of every temporal pair, in seconds: half-way between its first and its last frame."""
        starts = range(0, layout.frames, self._pair)
        ends = (min(start + self._pair, layout.frames) - 1 for start in starts)
        return [(start + end) / 2 / ASSUMED_FPS for start, end in zip(starts, ends)]

    def _positions(self, seen: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        _, height, width = grid
        # Text advances by one a token; a run by its larger side, at its last token.
        advance = (~seen).long()
        (places,) = seen.nonzero(as_tuple=True)
        advance[places[height * width - 1 :: height * width]] = max(height, width)
        positions = (advance.cumsum(0) - advance).repeat(3, 1)
        cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
        positions[1:, places] += cells.reshape(2, -1).repeat(1, grid[0])
        return positions
