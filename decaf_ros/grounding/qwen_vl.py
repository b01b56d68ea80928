"""Qwen2-VL and Qwen2.5-VL.

Visual tokens are laid out (t, h, w): t temporal pairs of frames (an odd last frame is paired with itself), h and w
patches after the 2x2 merge.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.mllm import Prompt, Visual, prepare_model

# Frames that are given as a list carry no rate; the published models then assume two frames a second. A robot's key
# frames have stamps, but the model's time embedding is kept at what the method was measured with.
ASSUMED_FPS = 2.0


class QwenVl:
    """Adapter for `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        self.model = prepare_model(model)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        # Images come resized; saying so keeps newer releases from warning about a cap that they would apply.
        processor.video_processor.cap_pixels_per_frame = False
        self.layers = model.config.get_text_config().num_hidden_layers
        self._tokens = {"image": model.config.image_token_id, "video": model.config.video_token_id}
        vision = model.config.vision_config
        self._patch, self._merge, self._pair = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        # Qwen2-VL counts temporal pairs; Qwen2.5-VL counts time, truncated to whole steps.
        self._time_step = getattr(vision, "tokens_per_second", None)
        self._time_step = 1.0 if self._time_step is None else self._time_step * self._pair / ASSUMED_FPS

    def token_grid(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the video branch for images of this size: at most `mllm.video_tokens`, aspect ratio kept."""
        side = self._patch * self._merge
        height, width = smart_resize(
            *size_hw, factor=side, min_pixels=4 * side**2, max_pixels=max(self.config.video_tokens, 4) * side**2
        )
        return height // side, width // side

    def video(self, images: np.ndarray) -> Visual:
        """See `Mllm.video`. Grid: (temporal pairs, h, w)."""
        grid_hw = self.token_grid(images.shape[1:3])
        pixels = self.processor.video_processor(
            videos=[self._resized(images, grid_hw)], do_resize=False, do_sample_frames=False, return_tensors="pt"
        )
        inputs = {"pixel_values_videos": pixels["pixel_values_videos"], "video_grid_thw": pixels["video_grid_thw"]}
        return Visual(inputs, (-(-len(images) // self._pair), *grid_hw), 1, "video")

    def frames(self, images: np.ndarray) -> Visual:
        """See `Mllm.frames`. Grid: (1, h, w), the video's times `mllm.frame_scale`."""
        grid_hw = tuple(side * self.config.frame_scale for side in self.token_grid(images.shape[1:3]))
        pixels = self.processor.image_processor(
            images=list(self._resized(images, grid_hw)), do_resize=False, return_tensors="pt"
        )
        inputs = {"pixel_values": pixels["pixel_values"], "image_grid_thw": pixels["image_grid_thw"]}
        return Visual(inputs, (1, *grid_hw), len(images), "image")

    def _resized(self, images: np.ndarray, grid_hw: tuple[int, int]) -> torch.Tensor:
        """(T, 3, h * side, w * side) uint8."""
        size = [side * self._patch * self._merge for side in grid_hw]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)

    def prompt(self, visual: Visual | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        control = [token for token in self.tokenizer.get_added_vocab() if token in text]
        if control:
            raise ValueError(f"query: expected plain text, got the model's control token {', '.join(control)}")
        content = [{"type": "text", "text": text}]
        if visual is not None:
            content.insert(0, {"type": visual.kind})
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(chat, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        if visual is None:
            positions = torch.arange(len(ids)).expand(3, 1, -1)
            return self._on_device({"input_ids": ids[None]}, positions, torch.zeros(1, len(ids), dtype=bool), (0, 0, 0))

        token = self._tokens[visual.kind]
        (places,) = (ids == token).nonzero(as_tuple=True)
        if len(places) != 1:
            raise ValueError(f"chat template: expected one {visual.kind} placeholder, got {len(places)}")
        count = visual.grid[0] * visual.grid[1] * visual.grid[2]
        ids = torch.cat([ids[: places[0]], torch.full((count,), token), ids[places[0] + 1 :]])
        seen = (ids == token).expand(visual.batch, -1)
        positions = visual_positions(seen, visual.grid, self._time_step)
        inputs = {"input_ids": ids.expand(visual.batch, -1), **visual.inputs}
        return self._on_device(inputs, positions, seen, visual.grid)

    def _on_device(
        self, inputs: dict[str, torch.Tensor], positions: torch.Tensor, visual: torch.Tensor, grid: tuple[int, int, int]
    ) -> Prompt:
        device = self.model.device
        inputs = {name: value.to(device) for name, value in inputs.items()}
        return Prompt(inputs, positions.to(device), visual.to(device), grid)


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
