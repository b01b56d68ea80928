"""Files of published checkpoints, as facts: configurations, end tokens, special tokens, image sizes, weight names.

Vocabularies are not here: `tokenizer.py` makes one of the published size. Chat templates are written in our own form;
they give the same text as the published ones for the turns that the adapters write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from decaf_tabletop.training.chat import CHAT_TEMPLATE, TURNS_TEMPLATE
from tiny_models.internvl import CHAT_TEMPLATE as INTERNVL_TEMPLATE
from tiny_models.llava_onevision import CHAT_TEMPLATE as LLAVA_TEMPLATE


@dataclass(frozen=True)
class Checkpoint:
    """One published checkpoint.

    Attributes:
        config: `config.json`, with the published number of layers.
        generation: `generation_config.json`.
        processors: name and content of every processor file.
        chat_template: content of `chat_template.json`.
        added_tokens: the tokens after the 151643 of the vocabulary, in order.
        weight_names: replacements (start of a name in transformers, start in the published files).
        tokenizer: more entries of `tokenizer_config.json`.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    processors: dict[str, dict[str, Any]]
    chat_template: str
    added_tokens: tuple[str, ...]
    weight_names: tuple[tuple[str, str], ...] = ()
    tokenizer: dict[str, Any] = field(default_factory=dict)


_BASE_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN2_VL_TOKENS = _BASE_TOKENS + tuple(
    (
        "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
        "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
    ).split()
)
_QWEN2_5_VL_TOKENS = _QWEN2_VL_TOKENS + tuple(
    (
        "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
    ).split()
)
_QWEN3_VL_TOKENS = _QWEN2_5_VL_TOKENS + ("<tool_response>", "</tool_response>", "<think>", "</think>")
# The last one lies outside the embedding table, and is never fed.
_INTERNVL_TOKENS = _QWEN2_5_VL_TOKENS + tuple(
    "<img> </img> <IMG_CONTEXT> <quad> </quad> <ref> </ref> <box> </box> <video>".split()
)

_ENDS = {"bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643], "do_sample": True}
_VISION_TOKENS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_TEXT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_STEPS = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3}


def _qwen2(hidden: int, intermediate: int, heads: int, kv_heads: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """The language model of every checkpoint except Qwen3-VL."""
    return {
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vocab_size": vocabulary,
        "attention_dropout": 0.0,
        "use_cache": True,
    }


def _qwen_vl(model_type: str, class_name: str, text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """Language model and tokens at the top level, as both Qwen2 generations were published."""
    shared = {"in_chans": 3, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14}
    return {
        **text,
        **_VISION_TOKENS,
        "architectures": [class_name],
        "model_type": model_type,
        "vision_token_id": 151654,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "torch_dtype": "bfloat16",
        "vision_config": {**shared, "temporal_patch_size": 2, "depth": 32, "num_heads": 16, **vision},
    }


def _qwen2_5_vl(text: dict[str, Any]) -> Checkpoint:
    vision = {
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "out_hidden_size": text["hidden_size"],
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    text = text | {"max_position_embeddings": 128000}
    return Checkpoint(
        _qwen_vl("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", text, vision),
        {**_ENDS, "repetition_penalty": 1.05, "temperature": 0.000001},
        {"preprocessor_config.json": _qwen_images("Qwen2_5_VLProcessor")},
        CHAT_TEMPLATE,
        _QWEN2_5_VL_TOKENS,
        (("model.visual.", "visual."), ("model.language_model.", "model.")),
    )


def _qwen_images(processor: str) -> dict[str, Any]:
    return {
        **_CLIP,
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
    }


def _qwen2_vl() -> Checkpoint:
    vision = {"embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4}
    return Checkpoint(
        _qwen_vl("qwen2_vl", "Qwen2VLForConditionalGeneration", _qwen2(3584, 18944, 28, 4, 28, 152064), vision),
        {**_ENDS, "temperature": 0.01, "top_k": 1, "top_p": 0.001},
        {"preprocessor_config.json": _qwen_images("Qwen2VLProcessor")},
        CHAT_TEMPLATE,
        _QWEN2_VL_TOKENS,
        (("model.visual.", "visual."), ("model.language_model.", "model.")),
    )


def _qwen3_vl() -> Checkpoint:
    text = _qwen2(4096, 12288, 32, 8, 36, 151936) | {
        "model_type": "qwen3_vl_text",
        "attention_bias": False,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "dtype": "bfloat16",
    }
    for name in ("max_window_layers", "sliding_window", "use_sliding_window", "tie_word_embeddings"):
        del text[name]
    vision = {
        "model_type": "qwen3_vl",
        "deepstack_visual_indexes": [8, 16, 24],
        "depth": 27,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4304,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    pictures = {**_HALF, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    pictures["processor_class"] = "Qwen3VLProcessor"
    return Checkpoint(
        {
            **_VISION_TOKENS,
            "architectures": ["Qwen3VLForConditionalGeneration"],
            "model_type": "qwen3_vl",
            "tie_word_embeddings": False,
            "text_config": text,
            "vision_config": vision,
        },
        {**_ENDS, "repetition_penalty": 1.0, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {
            "preprocessor_config.json": pictures
            | {
                "image_processor_type": "Qwen2VLImageProcessorFast",
                "size": {"longest_edge": 16777216, "shortest_edge": 65536},
            },
            "video_preprocessor_config.json": pictures
            | {
                "video_processor_type": "Qwen3VLVideoProcessor",
                "size": {"longest_edge": 25165824, "shortest_edge": 4096},
            },
        },
        TURNS_TEMPLATE,
        _QWEN3_VL_TOKENS,
    )


def _internvl3() -> Checkpoint:
    text = _qwen2(3584, 18944, 28, 4, 28, 151674) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_window_layers": 70,
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "sliding_window": None,
        "torch_dtype": "bfloat16",
    }
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "internvl_vision",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 1024,
        "image_size": [448, 448],
        "initializer_factor": 0.1,
        "initializer_range": 1e-10,
        "intermediate_size": 4096,
        "layer_norm_eps": 1e-06,
        "layer_scale_init_value": 0.1,
        "norm_type": "layer_norm",
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": [14, 14],
        "projection_dropout": 0.0,
        "use_absolute_position_embeddings": True,
        "use_mask_token": False,
        "use_mean_pooling": True,
        "use_qk_norm": False,
    }
    pictures = {**_IMAGENET, **_STEPS, "size": {"height": 448, "width": 448}, "processor_class": "InternVLProcessor"}
    named = {
        "context_image_token": "<IMG_CONTEXT>",
        "end_image_token": "</img>",
        "start_image_token": "<img>",
        "video_token": "<video>",
    }
    return Checkpoint(
        {
            "architectures": ["InternVLForConditionalGeneration"],
            "model_type": "internvl",
            "downsample_ratio": 0.5,
            "image_seq_length": 256,
            "image_token_id": 151667,
            "projector_hidden_act": "gelu",
            "text_config": text,
            "vision_config": vision,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "default",
            "torch_dtype": "bfloat16",
        },
        {"_from_model_config": True, "bos_token_id": 151643, "eos_token_id": 151645},
        {
            "preprocessor_config.json": pictures
            | {
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "crop_to_patches": False,
                "max_patches": 12,
                "min_patches": 1,
            },
            "video_preprocessor_config.json": pictures | {"video_processor_type": "InternVLVideoProcessor"},
            "processor_config.json": {"image_seq_length": 256, "processor_class": "InternVLProcessor"},
        },
        INTERNVL_TEMPLATE,
        _INTERNVL_TOKENS,
        (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.", ""),
        ),
        {"extra_special_tokens": named},
    )


def _llava_onevision() -> Checkpoint:
    text = _qwen2(3584, 18944, 28, 4, 28, 152128) | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "sliding_window": 131072,
        "torch_dtype": "bfloat16",
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 26,
        "patch_size": 14,
        "vision_use_head": False,
    }
    sides = [384 * tiles for tiles in range(1, 7)]
    pinpoints = [[height, width] for height in sides for width in sides]
    pictures = {
        **_HALF,
        **_STEPS,
        "size": {"height": 384, "width": 384},
        "rescale_factor": 1 / 255,
        "processor_class": "LlavaOnevisionProcessor",
    }
    return Checkpoint(
        {
            "architectures": ["LlavaOnevisionForConditionalGeneration"],
            "model_type": "llava_onevision",
            "ignore_index": -100,
            "image_grid_pinpoints": pinpoints,
            "image_token_index": 151646,
            "video_token_index": 151647,
            "projector_hidden_act": "gelu",
            "text_config": text,
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "use_image_newline_parameter": True,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_config": vision,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        {"_from_model_config": True, "bos_token_id": 151643, "eos_token_id": 151645},
        {
            "preprocessor_config.json": pictures
            | {
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "image_grid_pinpoints": pinpoints,
                "do_pad": True,
            },
            "video_preprocessor_config.json": pictures | {"video_processor_type": "LlavaOnevisionVideoProcessor"},
            "processor_config.json": {
                "image_token": "<image>",
                "video_token": "<video>",
                "num_image_tokens": 729,
                "processor_class": "LlavaOnevisionProcessor",
                "vision_feature_select_strategy": "full",
            },
        },
        LLAVA_TEMPLATE,
        (*_BASE_TOKENS, "<image>", "<video>"),
        (
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.", ""),
        ),
        # That of the language model, without images: the processor's own comes first.
        {"chat_template": _TEXT_TEMPLATE},
    )


CHECKPOINTS = {
    "Qwen2.5-VL-7B": _qwen2_5_vl(_qwen2(3584, 18944, 28, 4, 28, 152064)),
    "Qwen2.5-VL-3B": _qwen2_5_vl(
        _qwen2(2048, 11008, 16, 2, 36, 151936) | {"tie_word_embeddings": True, "max_window_layers": 70}
    ),
    "Qwen2-VL-7B": _qwen2_vl(),
    "Qwen3-VL-8B": _qwen3_vl(),
    "InternVL3-8B": _internvl3(),
    "LLaVA-OneVision-7B": _llava_onevision(),
}
