"""Qwen2-VL and Qwen2.5-VL (and what Qwen3-VL shares with them).

Visual tokens are laid out (t, h, w): t temporal pairs of frames (an odd last frame is paired with itself), h and w
patches after the 2x2 merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.mllm import Features, Layout, Prompt, check_text, embed_tokens, prepare_model
from decaf_ros.grounding.vision_attention import install_chunks

# Frames that are given as a list carry no rate; the published models then assume two frames a second. A robot's key
# frames have stamps, but the model's time embedding is kept at what the method was measured with.
ASSUMED_FPS = 2.0


class QwenVl:
    """Adapter for `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        self.model = prepare_model(model)
        install_chunks(model.model.visual)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        # Images come resized; saying so keeps newer releases from warning about a cap that they would apply.
        processor.video_processor.cap_pixels_per_frame = False
        self.layers = model.config.get_text_config().num_hidden_layers
        self._tokens = {"video": model.config.video_token_id, "frames": model.config.image_token_id}
        vision = model.config.vision_config
        self._side, self._pair = vision.patch_size * vision.spatial_merge_size, vision.temporal_patch_size
        # Qwen2-VL counts temporal pairs; Qwen2.5-VL counts time, truncated to whole steps.
        self._time_step = getattr(vision, "tokens_per_second", None)
        self._time_step = 1.0 if self._time_step is None else self._time_step * self._pair / ASSUMED_FPS

    def token_grid(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the video branch for images of this size: at most `mllm.video_tokens`, aspect ratio kept."""
        side = self._side
        height, width = smart_resize(
            *size_hw, factor=side, min_pixels=4 * side**2, max_pixels=max(self.config.video_tokens, 4) * side**2
        )
        return height // side, width // side

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """See `Mllm.layout`. Grids: (temporal pairs, h, w), and (1, h, w) times `mllm.frame_scale`."""
        height, width = self.token_grid(size_hw)
        if kind == "video":
            pairs = -(-frames // self._pair)
            return Layout(kind, pairs, self._pair, size_hw, (pairs, height, width))
        scale = self.config.frame_scale
        return Layout(kind, 1, 1, size_hw, (1, height * scale, width * scale))

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        size = [side * self._side for side in layout.grid[1:]]
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        device = self.model.device
        if layout.kind == "video":
            given = self.processor.video_processor(
                videos=list(pixels.unflatten(0, images.shape[:2])),
                do_resize=False,
                do_sample_frames=False,
                return_tensors="pt",
            ).to(device)
            found = self.model.get_video_features(given["pixel_values_videos"], given["video_grid_thw"])
        else:
            given = self.processor.image_processor(images=list(pixels), do_resize=False, return_tensors="pt").to(device)
            found = self.model.get_image_features(given["pixel_values"], given["image_grid_thw"])
        return self._features(found)

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        check_text(self.tokenizer, text)
        ids = self.tokenizer(self._chat(layout, text), return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        if layout is None:
            grid, seen = (0, 0, 0), torch.zeros_like(ids, dtype=torch.bool)
            positions = torch.arange(len(ids)).expand(3, -1)
        else:
            grid, token = layout.grid, self._tokens[layout.kind]
            runs = ids == token
            ids = ids.repeat_interleave(torch.where(runs, grid[0] * grid[1] * grid[2] // int(runs.sum()), 1))
            seen = ids == token
            positions = self._positions(seen, grid)
        ids, positions, seen = (part.to(self.model.device) for part in (ids, positions, seen))
        return Prompt(ids, positions, seen, seen.nonzero()[:, 0], grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`."""
        return embed_tokens(self.model, ids, slots, features)

    def _features(self, found: Any) -> list[Features]:
        """Of every unit, from what the model answers: transformers 5 has it in an object, 4 did not."""
        return [Features(tokens) for tokens in getattr(found, "pooler_output", found)]

    def _chat(self, layout: Layout | None, text: str) -> str:
        """The prompt with one placeholder for every run of visual tokens, which are all of one length."""
        content = [{"type": "text", "text": text}]
        if layout is not None:
            content.insert(0, {"type": "video" if layout.kind == "video" else "image"})
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if layout is not None:
            found = chat.count(self.tokenizer.convert_ids_to_tokens(self._tokens[layout.kind]))
            if found != 1:
                raise ValueError(f"chat template: expected one placeholder for {layout.kind}, got {found}")
        return chat

    def _positions(self, seen: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """(3, N) int64. seen: (N,) bool, the visual tokens."""
        return visual_positions(seen[None], grid, self._time_step)[:, 0]


def visual_positions(
    visual: torch.Tensor, grid: tuple[int, int, int], time_step: float, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Three-dimensional rotary positions (time, height, width) of sequences with one run of visual tokens each.

    visual: (B, N) bool. grid: (t, h, w) of the run. time_step: positions from one temporal row to the next,
    truncated to whole ones. valid: (B, N) bool, False at padding (position 1, as published; it is never attended to).

    Text after the visual tokens goes on from the largest position among them. Some transformers releases go on from
    the larger of h and w instead, which is wrong where the time extent is the largest (long windows).
    Returns (3, B, N) int64.
    """
    t, h, w = grid
    times = (torch.arange(t) * time_step).long()
    cells = torch.stack(torch.meshgrid(times, torch.arange(h), torch.arange(w), indexing="ij")).reshape(3, -1)
    positions = torch.ones(3, *visual.shape, dtype=torch.int64)
    for row, seen in enumerate(visual):
        kept = torch.ones_like(seen) if valid is None else valid[row]
        places = seen[kept].nonzero()[:, 0]
        before, after = int(places[0]), int(kept.sum()) - int(places[-1]) - 1
        image = cells + before
        tail = torch.arange(after) + int(image.max()) + 1
        positions[:, row, kept] = torch.cat([torch.arange(before).expand(3, -1), image, tail.expand(3, -1)], dim=1)
    return positions
