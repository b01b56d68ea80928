"""A tiny InternVL3 checkpoint with its real processor classes, for tests. Weights are random."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Qwen2TokenizerFast,
)

from tiny_models.qwen_vl import save_tiny, tiny_text, tiny_tokenizer

NAMED_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TILE, PATCH = 84, 14


def write_tiny_internvl(folder: Path, seed: int = 0) -> Path:
    """Writes model, tokenizer and processors with `save_pretrained` and returns the folder. seed: for the weights.

    A tile of 84 x 84 pixels gives 3 x 3 tokens.
    """
    plain = tiny_tokenizer()
    tokenizer = Qwen2TokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        extra_special_tokens=NAMED_TOKENS,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(_model_config(tokenizer))
    pictures = {
        "size": {"height": TILE, "width": TILE},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    processor = InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(**pictures),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**pictures),
        image_seq_length=model.config.image_seq_length,
        chat_template=CHAT_TEMPLATE,
    )
    return save_tiny(folder, model, processor)


def _model_config(tokenizer: Qwen2TokenizerFast) -> InternVLConfig:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": [TILE, TILE],
        "patch_size": [PATCH, PATCH],
    }
    return InternVLConfig(
        text_config={"model_type": "qwen2", **tiny_text(tokenizer)},
        vision_config=vision,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=(TILE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
    )
