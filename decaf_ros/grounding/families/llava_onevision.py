"""LLaVA-OneVision.

Video branch: every frame is resized to the vision tower's square and pooled (to 14 x 14 tokens in the published
models); one newline token follows the last frame. Frame branch: the base image (the whole frame, resized) comes first,
then the frame in tiles of the same size, with a newline token after each row of tokens. The map contains only the
tiles' tokens, without pure padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution

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
        self.layers = model.config.get_text_config().num_hidden_layers
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
        fitted = select_best_resolution(size_hw, self.model.config.image_grid_pinpoints)
        tiles = [size // self._tile_px for size in fitted]
        # Tokens, and one newline per row. More than about nine tiles are scaled down.
        tokens, rows = self.processor._get_unpadded_features(*size_hw, self._tile_tokens, self._tile_tokens, *tiles)
        return Layout(kind, 1, 1, size_hw, (1, rows, tokens // rows))

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
        output = untyped_model.get_image_features(inputs["pixel_values"], inputs["image_sizes"])
        return [Features(tokens) for tokens in getattr(output, "pooler_output", output)]

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        kind, grid = (None, (0, 0, 0)) if layout is None else (layout.kind, layout.grid)
        t, h, w = grid
        images = {
            None: "",
            "video": self.processor.video_token * (t * h * w + 1),
            "frames": self.processor.image_token * (self._tile_tokens**2 + h * (w + 1)),
        }[kind]
        chat = write_chat(self.processor, kind, text, SYSTEM_PROMPT, images)
        ids = self.tokenizer(chat, return_tensors="pt")["input_ids"][0].to(self.model.device)
        slots = ids == (-1 if layout is None else self._tokens[layout.kind])
        cells = slots.nonzero()[:, 0]
        if kind == "video":
            cells = cells[:-1]
        elif kind == "frames":
            cells = cells[self._tile_tokens**2 :].unflatten(0, (h, w + 1))[:, :-1].flatten()
        return Prompt(ids, torch.arange(len(ids), device=ids.device), slots, cells, grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`. The newline after a video belongs to no unit."""
        if bool((ids == self._tokens["video"]).any()):
            untyped_model: Any = self.model
            newline = Features(untyped_model.model.image_newline[None])
            features = [[*units, newline] for units in features]
        return embed_tokens(self.model, ids, slots, features)


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
