"""LLaVA-1.5: one image, so the frame branch alone.

As in training, an image is padded to a square with the mean colour, of which the vision tower makes 24 x 24 tokens (in
the published models). The image is first resized to whole tokens, at most half a token from its aspect ratio, so that a
cell of the map is exactly a token. The map has the cells of the image; tokens of padding are seen by the model and are
no part of it. transformers' processor instead cuts off the longer sides, where objects would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel, ProcessorMixin

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.mllm import (
    Features,
    Layout,
    MissingBranchError,
    Prompt,
    check_text,
    embed_tokens,
    prepare_model,
)


@dataclass(frozen=True)
class SquareLayout(Layout):
    """The layout of an image in a padded square.

    Attributes:
        side: tokens per side of the square.
    """

    side: int

    @property
    def tokens(self) -> int:
        """See `Layout.tokens`."""
        return self.side**2

    @property
    def start(self) -> tuple[int, int]:
        """(row, column) of the image's first token in the square; an odd rest of padding is below or to the right."""
        return (self.side - self.grid[1]) // 2, (self.side - self.grid[2]) // 2


class Llava:
    """Adapter for `LlavaForConditionalGeneration` with a CLIP tower and a Llama language model."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        parts = model.config.vision_config.model_type, model.config.get_text_config().model_type
        if parts != ("clip_vision_model", "llama"):
            raise ValueError(f"mllm.checkpoint: expected LLaVA-1.5 (clip_vision_model and llama), got {parts}")
        selection = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
        if not isinstance(selection[0], int) or selection[1] != "default":
            raise ValueError(f"mllm.checkpoint: expected one vision layer without its class token, got {selection}")
        self.model = prepare_model(model)
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config = config
        self.layers = model.config.get_text_config().num_hidden_layers
        self._patch_px = model.config.vision_config.patch_size
        self._side = model.config.vision_config.image_size // self._patch_px

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> SquareLayout:
        """See `Mllm.layout`. Grid: frames (1, h, w), of which the longer side has all tokens of the square's.

        Raises MissingBranchError for the video branch.
        """
        if kind == "video":
            raise MissingBranchError(
                "grounding.branches: expected frames, as LLaVA-1.5 sees one image, got the video branch"
            )
        longest = max(size_hw)
        height, width = (max(1, round(self._side * size / longest)) for size in size_hw)
        return SquareLayout(kind, 1, 1, size_hw, (1, height, width), self._side)

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """See `Mllm.timed`. There is no video."""
        return layout

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        assert isinstance(layout, SquareLayout)
        images_processor = self.processor.image_processor
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        size = [cells * self._patch_px for cells in layout.grid[1:]]
        pixels = resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        mean = torch.tensor([int(255 * value) for value in images_processor.image_mean], dtype=torch.uint8)
        square = mean[None, :, None, None].repeat(len(pixels), 1, *[self._side * self._patch_px] * 2)
        top, left = (place * self._patch_px for place in layout.start)
        square[:, :, top : top + size[0], left : left + size[1]] = pixels
        inputs = images_processor(images=list(square), do_resize=False, do_center_crop=False, return_tensors="pt")
        untyped_model: Any = self.model
        output = untyped_model.get_image_features(
            inputs["pixel_values"].to(self.model.device),
            vision_feature_layer=self.model.config.vision_feature_layer,
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
        )
        return [Features(tokens) for tokens in getattr(output, "pooler_output", output)]

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`. In the format of the published checkpoints, without a system prompt."""
        check_text(self.tokenizer, text)
        token = self.model.config.image_token_id
        image = "" if layout is None else f"{self.tokenizer.convert_ids_to_tokens(token) * layout.tokens}\n"
        ids = self.tokenizer(f"USER: {image}{text} ASSISTANT:", return_tensors="pt")["input_ids"][0]
        slots, grid = ids == token, (0, 0, 0) if layout is None else layout.grid
        cells = slots.nonzero()[:, 0]
        if isinstance(layout, SquareLayout):
            top, left = layout.start
            square = cells.reshape(self._side, self._side)
            cells = square[top : top + grid[1], left : left + grid[2]].flatten()
        ids, slots, cells = (part.to(self.model.device) for part in (ids, slots, cells))
        return Prompt(ids, torch.arange(len(ids), device=ids.device), slots, cells, grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`."""
        return embed_tokens(self.model, ids, slots, features)
