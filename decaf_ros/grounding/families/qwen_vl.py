"""Qwen2-VL and Qwen2.5-VL, and the base of Qwen3-VL.

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
from decaf_ros.grounding.vision_attention import install_chunked_attention

# A list of frames has no rate; the published models then assume two frames per second. Key frames have stamps, but the
# method was measured with this time embedding.
ASSUMED_FPS = 2.0


class QwenVl:
    """Adapter for `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        untyped_model: Any = model
        self.model = prepare_model(model)
        install_chunked_attention(untyped_model.model.visual)
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config = config
        # Frames are resized before; this keeps newer releases from warning about a cap.
        self.processor.video_processor.cap_pixels_per_frame = False
        self.layers = model.config.get_text_config().num_hidden_layers
        self._tokens = {"video": model.config.video_token_id, "frames": model.config.image_token_id}
        vision = model.config.vision_config
        self._token_px = vision.patch_size * vision.spatial_merge_size
        self._frames_per_pair = vision.temporal_patch_size
        # Rotary positions per temporal pair: Qwen2-VL counts pairs; Qwen2.5-VL counts time, truncated to whole steps.
        tokens_per_second = getattr(vision, "tokens_per_second", None)
        self._time_step: float = (
            1.0 if tokens_per_second is None else tokens_per_second * self._frames_per_pair / ASSUMED_FPS
        )

    def token_grid(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Video branch grid (h, w) for this image size: at most `mllm.video_tokens` cells, aspect ratio kept."""
        side = self._token_px
        height, width = smart_resize(
            *size_hw, factor=side, min_pixels=4 * side**2, max_pixels=max(self.config.video_tokens, 4) * side**2
        )
        return height // side, width // side

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """See `Mllm.layout`. Grids: video (temporal pairs, h, w); frames (1, h, w), scaled by `mllm.frame_scale`."""
        height, width = self.token_grid(size_hw)
        if kind == "video":
            pairs = -(-frames // self._frames_per_pair)
            return Layout(kind, pairs, self._frames_per_pair, size_hw, (pairs, height, width))
        scale = self.config.frame_scale
        return Layout(kind, 1, 1, size_hw, (1, height * scale, width * scale))

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """See `Mllm.timed`. The prompt contains no times."""
        return layout

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        size = [side * self._token_px for side in layout.grid[1:]]
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        untyped_model: Any = self.model
        # Bytes to the device: the processor then makes patches there, of numbers that are eight times as large.
        pixels = pixels.to(self.model.device)
        if layout.kind == "video":
            inputs = self.processor.video_processor(
                videos=list(pixels.unflatten(0, images.shape[:2])),
                do_resize=False,
                do_sample_frames=False,
                return_tensors="pt",
            )
            inputs = inputs.to(self.model.device)
            output = untyped_model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
        else:
            inputs = self.processor.image_processor(images=list(pixels), do_resize=False, return_tensors="pt")
            inputs = inputs.to(self.model.device)
            output = untyped_model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        return self._features(output)

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        check_text(self.tokenizer, text)
        ids = self.tokenizer(self._chat(layout, text), return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        if layout is None:
            grid, visual = (0, 0, 0), torch.zeros_like(ids, dtype=torch.bool)
            positions = torch.arange(len(ids)).expand(3, -1)
        else:
            grid, token = layout.grid, self._tokens[layout.kind]
            placeholders = ids == token
            repeats = grid[0] * grid[1] * grid[2] // int(placeholders.sum())
            ids = ids.repeat_interleave(torch.where(placeholders, repeats, 1))
            visual = ids == token
            positions = self._positions(visual, grid)
        ids, positions, visual = (part.to(self.model.device) for part in (ids, positions, visual))
        return Prompt(ids, positions, visual, visual.nonzero()[:, 0], grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`."""
        return embed_tokens(self.model, ids, slots, features)

    def _features(self, output: Any) -> list[Features]:
        """Features of every unit, from the vision tower's output: an object in transformers 5, a tuple in 4."""
        return [Features(tokens) for tokens in getattr(output, "pooler_output", output)]

    def _chat(self, layout: Layout | None, text: str) -> str:
        """The prompt with one placeholder for every run of visual tokens; all runs have the same length."""
        content = [{"type": "text", "text": text}]
        if layout is not None:
            content.insert(0, {"type": "video" if layout.kind == "video" else "image"})
        chat: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if layout is not None:
            count = chat.count(self.tokenizer.convert_ids_to_tokens(self._tokens[layout.kind]))
            if count != 1:
                raise ValueError(f"chat template: expected one placeholder for {layout.kind}, got {count}")
        return chat

    def _positions(self, visual: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """Rotary positions (3, N) int64. visual: (N,) bool."""
        return visual_positions(visual[None], grid, self._time_step)[:, 0]


def visual_positions(
    visual: torch.Tensor, grid: tuple[int, int, int], time_step: float, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """M-RoPE positions (time, height, width) of sequences with one run of visual tokens each.

    Text after the visual tokens continues from their largest position. Some transformers releases continue from the
    larger of h and w instead, which is wrong if the time extent is larger (long windows).

    Args:
        visual: (B, N) bool, the visual tokens.
        grid: (t, h, w) of the run.
        time_step: positions per temporal row; each row's position is truncated to an integer.
        valid: (B, N) bool, False at padding, which gets position 1 (as published; it is never attended to).

    Returns:
        (3, B, N) int64.
    """
    t, h, w = grid
    times = (torch.arange(t) * time_step).long()
    cells = torch.stack(torch.meshgrid(times, torch.arange(h), torch.arange(w), indexing="ij")).reshape(3, -1)
    positions = torch.ones(3, *visual.shape, dtype=torch.int64)
    for row, row_visual in enumerate(visual):
        kept = torch.ones_like(row_visual) if valid is None else valid[row]
        places = row_visual[kept].nonzero()[:, 0]
        before, after = int(places[0]), int(kept.sum()) - int(places[-1]) - 1
        image = cells + before
        tail = torch.arange(after) + int(image.max()) + 1
        positions[:, row, kept] = torch.cat([torch.arange(before).expand(3, -1), image, tail.expand(3, -1)], dim=1)
    return positions
