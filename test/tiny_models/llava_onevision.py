"""A tiny LLaVA-OneVision checkpoint with its real processor classes, for tests. Weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2TokenizerFast,
)

from tiny_models.qwen_vl import save_tiny, tiny_text, tiny_tokenizer

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + part['text'] }}{% endfor %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As in the published models, patches do not fill a tile (there, 6 of 384 pixels remain), and their number is odd.
TILE, PATCH = 37, 7
PINPOINTS = [[rows * TILE, columns * TILE] for rows in range(1, 7) for columns in range(1, 7)]


def write_tiny_llava_onevision(folder: Path, seed: int = 0) -> Path:
    """Writes model, tokenizer and processors with `save_pretrained` and returns the folder. seed: for the weights.

    A tile of 37 x 37 pixels gives 5 x 5 tokens, a video frame 3 x 3.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(_model_config(tokenizer))
    pictures = {"size": {"height": TILE, "width": TILE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(**pictures, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pictures),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )
    return save_tiny(folder, model, processor)


def _model_config(tokenizer: Qwen2TokenizerFast) -> LlavaOnevisionConfig:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
        "vision_use_head": False,
    }
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **tiny_text(tokenizer)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
