"""LLaVA-OneVision.

Video branch: every frame is resized to the vision tower's square and pooled (to 14 x 14 tokens in the published
models); one newline token follows the last frame. Frame branch: a frame is fitted into tiles of that size, and a whole
small view of it (the base image) comes before them, a newline token after each of their rows. The map has the tiles'
tokens alone, without those that see nothing but padding.
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

# That of the conversation format which the models were trained with (`qwen_1_5`); the checkpoints' chat templates have
# no default.
SYSTEM_PROMPT = "You are a helpful assistant."


class LlavaOnevision:
    """Adapter for `LlavaOnevisionForConditionalGeneration`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, config: MllmConfig) -> None:
        self.model = prepare_model(keep_published_features(model))
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.config = config
        self.layers = model.config.get_text_config().num_hidden_layers
        self._tokens = {"video": model.config.video_token_id, "frames": model.config.image_token_id}
        self._tile = model.config.vision_config.image_size
        # Tokens of a tile, each way, and of a frame of a video.
        self._side = self._tile // model.config.vision_config.patch_size
        self._pooled = -(-self._side // 2)

    def layout(self, kind: str, frames: int, size_hw: tuple[int, int]) -> Layout:
        """See `Mllm.layout`. Grids: (frames, pooled, pooled), and (1, h, w) of the tiles without their padding.

        Padding ends within a token, and pixels that fill no patch (6 of a published tile's 384) are not seen: a cell
        may lie up to half a cell beside its place in the image.
        """
        if kind == "video":
            return Layout(kind, frames, 1, size_hw, (frames, self._pooled, self._pooled))
        fitted = select_best_resolution(size_hw, self.model.config.image_grid_pinpoints)
        tiles = [size // self._tile for size in fitted]
        # Tokens, and as many newlines as rows. Many tiles are brought down to about nine.
        tokens, rows = self.processor._get_unpadded_features(*size_hw, self._side, self._side, *tiles)
        return Layout(kind, 1, 1, size_hw, (1, rows, tokens // rows))

    @torch.inference_mode()
    def encode(self, layout: Layout, images: np.ndarray) -> list[Features]:
        """See `Mllm.encode`."""
        pixels = torch.from_numpy(images).flatten(0, 1).permute(0, 3, 1, 2)
        config, device = self.model.config, self.model.device
        if layout.kind == "video":
            given = self.processor.video_processor(videos=[pixels], do_sample_frames=False, return_tensors="pt")
            found = self.model.model.get_video_features(
                given["pixel_values_videos"].to(device),
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
            )
            # transformers 5 adds the newline here, 4.57 later.
            tokens = getattr(found, "pooler_output", found)[0, : len(pixels) * self._pooled**2]
            return [Features(one) for one in tokens.unflatten(0, (len(pixels), -1))]
        given = self.processor.image_processor(images=list(pixels), return_tensors="pt").to(device)
        found = self.model.get_image_features(given["pixel_values"], given["image_sizes"])
        return [Features(tokens) for tokens in getattr(found, "pooler_output", found)]

    def prompt(self, layout: Layout | None, text: str) -> Prompt:
        """See `Mllm.prompt`."""
        kind, grid = (None, (0, 0, 0)) if layout is None else (layout.kind, layout.grid)
        t, h, w = grid
        images = {
            None: "",
            "video": self.processor.video_token * (t * h * w + 1),
            "frames": self.processor.image_token * (self._side**2 + h * (w + 1)),
        }[kind]
        chat = write_chat(self.processor, kind, text, SYSTEM_PROMPT, images)
        ids = self.tokenizer(chat, return_tensors="pt")["input_ids"][0].to(self.model.device)
        slots = ids == self._tokens.get(kind, -1)
        cells = slots.nonzero()[:, 0]
        if kind == "video":
            cells = cells[:-1]
        elif kind == "frames":
            cells = cells[self._side**2 :].unflatten(0, (h, w + 1))[:, :-1].flatten()
        return Prompt(ids, torch.arange(len(ids), device=ids.device), slots, cells, grid)

    def embed(self, ids: torch.Tensor, slots: torch.Tensor, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """See `Mllm.embed`. The newline after a video belongs to none of its units."""
        if bool((ids == self._tokens["video"]).any()):
            newline = Features(self.model.model.image_newline[None])
            features = [[*units, newline] for units in features]
        return embed_tokens(self.model, ids, slots, features)


def keep_published_features(model: PreTrainedModel) -> PreTrainedModel:
    """Takes the vision tower's last normalisation out, which is no part of the published models.

    Their features are hidden states from before it, and nothing else of the tower is used. transformers 4.57 hands out
    the normalised ones as the last hidden state; other releases do not, and there this changes nothing.
    """
    tower = model.model.vision_tower
    tower = getattr(tower, "vision_model", tower)
    if hasattr(tower, "post_layernorm"):
        tower.post_layernorm = torch.nn.Identity()
    return model
