"""InternVL3, and other checkpoints that transformers loads as `internvl`.

The vision tower takes square tiles. Video branch: each frame is one tile, labelled `FrameN: ` in the text. Frame
branch: a frame is split into up to twelve tiles (`mllm.frame_tiles`), whose tokens are stitched into one grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.mllm import Features, Layout, Prompt, embed_tokens, prepare_model, write_chat

# From the conversation format of training (`internvl2_5`); the checkpoints' chat templates have no default.
SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
MAX_TILES = 12


class InternVl:
    """Adapter for `InternVLForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        self.model = prepare_model(model)
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config = config
        self.layers = model.config.get_text_config().num_hidden_layers
        vision = model.config.vision_config
        self._tile_px = vision.image_size[0]
        self._most_tiles = config.frame_tiles or MAX_TILES
        self._tile_tokens = int(self._tile_px // vision.patch_size[0] * model.config.downsample_ratio)

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """See `Mllm.layout`. Grids, at s x s tokens per tile: video (frames, s, s); frames (1, rows*s, columns*s)."""
        if kind == "video":
            return Layout(kind, frames, 1, size_hw, (frames, self._tile_tokens, self._tile_tokens))
        columns, rows = get_optimal_tiled_canvas(size_hw, (self._tile_px, self._tile_px), 1, self._most_tiles)
        return Layout(kind, 1, 1, size_hw, (1, rows * self._tile_tokens, columns * self._tile_tokens))

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """See `Mllm.timed`. The prompt contains no times."""
        return layout

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        size = {"height": self._tile_px, "width": self._tile_px}
        if layout.kind == "video":
            tiles = self.processor.video_processor(
                videos=[pixels], size=size, do_sample_frames=False, return_tensors="pt"
            )["pixel_values_videos"][0]
        else:
            tiles = self.processor.image_processor(
                images=list(pixels),
                size=size,
                crop_to_patches=True,
                min_patches=1,
                max_patches=self._most_tiles,
                return_tensors="pt",
            )["pixel_values"]
            # A thumbnail of the frame follows several tiles; it is not part of the map.
            count = layout.grid[1] * layout.grid[2] // self._tile_tokens**2
            tiles = tiles.unflatten(0, (len(pixels), -1))[:, :count].flatten(0, 1)
        untyped_model: Any = self.model
        output = untyped_model.get_image_features(tiles.to(self.model.device))
        tokens = getattr(output, "pooler_output", output)
        return [Features(unit) for unit in tokens.reshape(len(pixels), -1, tokens.shape[-1])]

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        kind, grid = (None, (0, 0, 0)) if layout is None else (layout.kind, layout.grid)
        chat = write_chat(self.processor, kind, text, SYSTEM_PROMPT, self._images(kind, grid))
        ids = self.tokenizer(chat, return_tensors="pt")["input_ids"][0].to(self.model.device)
        slots = ids == self.model.config.image_token_id
        # Slots are ordered tile by tile, cells row by row over the image.
        tiles = [size // self._tile_tokens for size in grid[1:]]
        places = slots.nonzero()[:, 0].reshape(grid[0], *tiles, self._tile_tokens, self._tile_tokens)
        return Prompt(ids, torch.arange(len(ids), device=ids.device), slots, places.transpose(2, 3).flatten(), grid)

    def _images(self, kind: str | None, grid: tuple[int, int, int]) -> str:
        """The image tokens, with their labels."""
        tokens = self.processor.image_token * (grid[1] * grid[2])
        image = f"{self.processor.start_image_token}{tokens}{self.processor.end_image_token}"
        return "\n".join(f"Frame{number + 1}: {image}" for number in range(grid[0])) if kind == "video" else image

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`."""
        return embed_tokens(self.model, ids, slots, features)
