"""A tiny Qwen3-VL checkpoint with its real processor classes, for tests. Weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from decaf_tabletop.training.chat import SPECIAL_TOKENS, TURNS_TEMPLATE
from tiny_models.qwen_vl import save_tiny, tiny_text, tiny_tokenizer


def write_tiny_qwen3_vl(folder: Path, seed: int = 0) -> Path:
    """Writes model, tokenizer and processors with `save_pretrained` and returns the folder. seed: for the weights."""
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(_model_config(tokenizer, ids))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=16, **half),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(),
        chat_template=TURNS_TEMPLATE,
    )
    return save_tiny(folder, model, processor)


def _model_config(tokenizer: Qwen2TokenizerFast, ids: dict[str, int]) -> Qwen3VLConfig:
    text = tiny_text(tokenizer) | {
        "head_dim": 16,
        # Much wider than usual: with small random weights attention is uniform and every contrast is zero.
        "initializer_range": 0.4,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
    }
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        # Vision layers whose features are added after the first three layers of the language model.
        "deepstack_visual_indexes": [0, 1, 2],
        "initializer_range": 0.2,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
