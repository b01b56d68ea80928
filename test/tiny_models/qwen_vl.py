"""A tiny Qwen2-VL or Qwen2.5-VL checkpoint with its real processor classes, for tests and benchmarks.

Weights are random: it exercises the whole path, but not the accuracy of real models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from decaf_ros.grounding.prompts import BACKGROUND, CHOICE, OBJECT
from decaf_tabletop.training.chat import CHAT_TEMPLATE, SPECIAL_TOKENS

WORDS = (
    "person dog cat bicycle car ball cube can bottle plate cone mug red green blue yellow white black moving left "
    "right dropped stopped largest smallest"
)


def write_tiny_mllm(folder: Path, family: str = "qwen2_5_vl", seed: int = 0) -> Path:
    """Writes model, tokenizer and processors with `save_pretrained` and returns the folder.

    family: `qwen2_5_vl` or `qwen2_vl`. seed: for the weights. Raises ValueError for another family.
    """
    if family not in ("qwen2_5_vl", "qwen2_vl"):
        raise ValueError(f"family: expected qwen2_5_vl or qwen2_vl, got {family!r}")
    tokenizer = tiny_tokenizer()
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(_model_config(family, tokenizer, ids))
    processor_class = Qwen2_5_VLProcessor if family == "qwen2_5_vl" else Qwen2VLProcessor
    processor = processor_class(
        image_processor=Qwen2VLImageProcessor(),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
    return save_tiny(folder, model, processor)


def tiny_text(tokenizer: Qwen2TokenizerFast) -> dict[str, Any]:
    """The language model's part of a configuration, for any family."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        # Wider than usual: with small random weights attention is uniform and every contrast is zero.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_tiny(folder: Path, model: PreTrainedModel, processor: ProcessorMixin) -> Path:
    """Writes a checkpoint with the end tokens of the Qwen chat format; returns the folder."""
    tokenizer = processor.tokenizer
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level BPE trained on the prompts' words; other text splits into bytes, so no text is unknown."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    texts = [text for prompts in (OBJECT, BACKGROUND, CHOICE) for text in prompts.values()]
    core.train_from_iterator([*texts, WORDS, CHAT_TEMPLATE], trainer)
    return Qwen2TokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _model_config(family: str, tokenizer: Qwen2TokenizerFast, ids: dict[str, int]) -> Qwen2VLConfig | Qwen2_5_VLConfig:
    text = tiny_text(tokenizer)
    special = {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 3, 3]}
    hidden = text["hidden_size"]
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    shared = {
        "text_config": text,
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
        **special,
    }
    if family == "qwen2_vl":
        return Qwen2VLConfig(vision_config={**vision, "embed_dim": 32, "hidden_size": hidden, "mlp_ratio": 2}, **shared)
    vision |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [1],
        "window_size": 56,
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(vision_config=vision, **shared)
