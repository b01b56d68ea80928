"""LLaVA-OneVision.

Video branch: every frame is resized to the vision tower's square and pooled (to 14 x 14 tokens in the published
models). Frame branch: a frame is split into tiles of the same size, whose tokens are stitched into one grid, without
pure padding. As in the published method, the model sees nothing else: no base image (the whole frame in one tile), no
newline token after a row of tokens or after the video, all of which transformers' processor adds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.mllm import Features, Layout, Prompt, embed_tokens, prepare_model, write_chat

# From the conversation format of training (`qwen_1_5`); the checkpoints' chat templates have no default.
SYSTEM_PROMPT = "You are a helpful assistant."


class LlavaOnevision:
    """Adapter for `LlavaOnevisionForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        self.model = prepare_model(remove_final_norm(model))
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config = config
        selection = model.config.vision_feature_layer, model.config.vision_feature_select_strategy
        if not isinstance(selection[0], int) or selection[1] != "full":
            raise ValueError(f"mllm.checkpoint: expected all features of one vision layer, got {selection}")
        self.layers = model.config.get_text_config().num_hidden_layers
        if config.frame_tiles:
            sizes = sizes_within(model.config.image_grid_pinpoints, model.config.vision_config.image_size, config)
            model.config.image_grid_pinpoints = self.processor.image_processor.image_grid_pinpoints = sizes
        self._tokens = {"video": model.config.video_token_id, "frames": model.config.image_token_id}
        self._tile_px = model.config.vision_config.image_size
        # Tokens per side of a tile, and of a video frame.
        self._tile_tokens = self._tile_px // model.config.vision_config.patch_size
        self._video_tokens = -(-self._tile_tokens // 2)

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """See `Mllm.layout`. Grids: video (frames, p, p) with p pooled tokens; frames (1, h, w), tiles without padding.

        Padding can end within a token, and pixels that fill no patch (6 of a published tile's 384) are ignored: a cell
        may be up to half a cell off its place in the image.
        """
        if kind == "video":
            return Layout(kind, frames, 1, size_hw, (frames, self._video_tokens, self._video_tokens))
        side, config = self._tile_tokens, self.model.config
        rows, columns = (size // self._tile_px for size in select_best_resolution(size_hw, config.image_grid_pinpoints))
        tokens = torch.empty(1, rows * side, columns * side, device="meta")
        height, width = unpad_image(tokens, size_hw).shape[1:]  # type: ignore[no-untyped-call]
        # More than about nine tiles (in the published models) are scaled down.
        ratio = math.sqrt(height * width / side**2 / int(config.vision_aspect_ratio.removeprefix("anyres_max_")))
        if ratio > 1.1:
            height, width = int(height // ratio), int(width // ratio)
        return Layout(kind, 1, 1, size_hw, (1, height, width))

    def timed(self, layout: Layout, times_s: Sequence[float]) -> Layout:
        """See `Mllm.timed`. The prompt contains no times."""
        return layout

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        config, device = self.model.config, self.model.device
        untyped_model: Any = self.model
        if layout.kind == "video":
            inputs = self.processor.video_processor(videos=[pixels], do_sample_frames=False, return_tensors="pt")
            output = untyped_model.model.get_video_features(
                inputs["pixel_values_videos"].to(device),
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
            )
            # Without the newline, which transformers 5 appends here and 4.57 later.
            tokens = getattr(output, "pooler_output", output)[0, : len(pixels) * self._video_tokens**2]
            return [Features(unit) for unit in tokens.unflatten(0, (len(pixels), -1))]
        inputs = self.processor.image_processor(images=list(pixels), return_tensors="pt").to(device)
        # The base image comes first.
        return [Features(tokens) for tokens in tile_tokens(self.model, inputs["pixel_values"][:, 1:], layout)]

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        kind, grid = (None, (0, 0, 0)) if layout is None else (layout.kind, layout.grid)
        token = self.processor.video_token if kind == "video" else self.processor.image_token
        chat = write_chat(self.processor, kind, text, SYSTEM_PROMPT, token * (grid[0] * grid[1] * grid[2]))
        ids = self.tokenizer(chat, return_tensors="pt")["input_ids"][0].to(self.model.device)
        slots = ids == (-1 if layout is None else self._tokens[layout.kind])
        return Prompt(ids, torch.arange(len(ids), device=ids.device), slots, slots.nonzero()[:, 0], grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`."""
        return embed_tokens(self.model, ids, slots, features)


def sizes_within(sizes: Sequence[Sequence[int]], tile_px: int, config: MllmConfig) -> list[list[int]]:
    """Those of a model's image sizes (height, width), in pixels, that have at most `mllm.frame_tiles` tiles.

    Raises ValueError if there are none.
    """
    within = [list(size) for size in sizes if (size[0] // tile_px) * (size[1] // tile_px) <= config.frame_tiles]
    if not within:
        fewest = min((height // tile_px) * (width // tile_px) for height, width in sizes)
        raise ValueError(f"mllm.frame_tiles: expected at least {fewest} for this model, got {config.frame_tiles}")
    return within


def tile_tokens(model: PreTrainedModel, tiles: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The tokens of frames of one size: (B, h * w, C), row by row over the layout's grid (1, h, w).

    tiles: (B, rows * columns, 3, S, S), each frame's tiles, row by row, as the image processor returns them.
    """
    untyped_model: Any = model
    batch, count = tiles.shape[:2]
    side = model.config.vision_config.image_size
    rows = select_best_resolution(layout.size_hw, model.config.image_grid_pinpoints)[0] // side
    hidden = untyped_model.model.vision_tower(tiles.flatten(0, 1), output_hidden_states=True).hidden_states
    tokens = untyped_model.model.multi_modal_projector(hidden[model.config.vision_feature_layer])
    length = math.isqrt(tokens.shape[1])
    stitched = tokens.reshape(batch, rows, count // rows, length, length, -1).permute(0, 5, 1, 3, 2, 4)
    stitched = stitched.flatten(4).flatten(2, 3)
    unpadded = [unpad_image(frame, layout.size_hw) for frame in stitched]  # type: ignore[no-untyped-call]
    frames = torch.stack(unpadded)
    if frames.shape[2:] != layout.grid[1:]:
        frames = torch.nn.functional.interpolate(frames, layout.grid[1:], mode="bilinear")
    return frames.flatten(2).transpose(1, 2)


def remove_final_norm(model: PreTrainedModel) -> PreTrainedModel:
    """Removes the vision tower's final normalisation, which the published models do not apply to their features.

    transformers 4.57 returns normalised features as the last hidden state. Other releases do not; there this has no
    effect.
    """
    untyped_model: Any = model
    tower = untyped_model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    if hasattr(tower, "post_layernorm"):
        tower.post_layernorm = torch.nn.Identity()
    return model
