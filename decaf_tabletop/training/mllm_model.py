"""The untrained multimodal LLM of the table: Qwen2.5-VL's architecture in miniature, its real processor classes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from decaf_ros.grounding.prompts import BACKGROUND, CHOICE, NUMBER, OBJECT, PRESENCE, VERIFICATION
from decaf_tabletop.training.chat import CHAT_TEMPLATE, SPECIAL_TOKENS
from decaf_tabletop.world.clip import CATEGORIES, SURFACES
from decaf_tabletop.world.expressions import WORDINGS

HIDDEN, LAYERS, HEADS = 128, 6, 4
VISION_HIDDEN, VISION_DEPTH, VISION_HEADS = 128, 6, 4
# Layers that recognise objects; the remaining two relate them to their neighbours.
SHAPE_LAYER = VISION_DEPTH - 2
# 320 x 240 images are 16 x 12 tokens in the frame branch and 8 x 6 in the video branch (config/tabletop.yaml).
PATCH, MERGE = 14, 2
TOKEN_PX = PATCH * MERGE

# Wavelengths of 60 and 200 patches: monotonic over an image of at most 32 patches. They add up to 3 to a logit.
SIDEWAYS_FREQUENCIES, SIDEWAYS_BIAS = slice(2, 4), 4.0

# Answers for targets of several categories, for motion asked of a single frame, and for an absent target.
MIXED, UNCLEAR, NOTHING = "objects", "object", "none"
# Answers to whether a target is there.
YES, NO = "yes", "no"
# Answers to how many objects an expression means.
ONE, SEVERAL = "one", "several"
ANSWERS = (*CATEGORIES, *SURFACES, MIXED, UNCLEAR, NOTHING, YES, NO, ONE, SEVERAL)


def new_model(tokenizer: Qwen2TokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights with standard deviation 1/sqrt(fan_in), from torch's global generator.

    Queries and keys of the language model start equal: otherwise attention stays on a plateau for thousands of steps.
    """
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    special = {
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    # Rotary frequencies of time, height and width, in this order, fill half a head.
    half_head = HIDDEN // HEADS // 2
    spatial = half_head * 3 // 8
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "max_position_embeddings": 32768,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [half_head - 2 * spatial, spatial, spatial]},
            "tie_word_embeddings": False,
            **special,
        },
        vision_config={
            "depth": VISION_DEPTH,
            "hidden_size": VISION_HIDDEN,
            "intermediate_size": 3 * VISION_HIDDEN,
            "num_heads": VISION_HEADS,
            "out_hidden_size": HIDDEN,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "fullatt_block_indexes": list(range(VISION_DEPTH)),
            # One window, larger than any image: several windows would reorder the patches within the tower.
            "window_size": 64 * TOKEN_PX,
            "tokens_per_second": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        **special,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv3d)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, 1 / math.sqrt(fan_in))
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()
        for block in model.model.visual.blocks:
            block.attn.qkv.bias.zero_()
        for block in model.model.visual.blocks[SHAPE_LAYER:]:
            _attend_sideways(block.attn.qkv.bias)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], pad_token_id=ids["<|endoftext|>"], do_sample=False
    )
    return model


def _attend_sideways(bias: torch.Tensor) -> None:
    """Makes the four heads of a vision layer attend to the left, right, top and bottom initially, through the biases of
    their queries and keys. Without it, learning the neighbours stays on a plateau.

    bias: (3 * VISION_HIDDEN,) of queries, keys and values. The rotary encoding rotates components i and i + half of a
    head by position * frequency i, so query e_i and key +-e_(i + half) give a logit of
    +-sin(frequency * (query position - key position)). The first half of the frequencies encodes rows, the second
    columns.
    """
    query, key, _ = bias.view(3, VISION_HEADS, 2, 2, -1)  # (qkv, head, half, axis, frequency)
    for head, (axis, sign) in enumerate(((1, 1.0), (1, -1.0), (0, 1.0), (0, -1.0))):
        query[head, 0, axis, SIDEWAYS_FREQUENCIES] = SIDEWAYS_BIAS
        key[head, 1, axis, SIDEWAYS_FREQUENCIES] = sign * SIDEWAYS_BIAS


def new_tokenizer() -> Qwen2TokenizerFast:
    """A byte-level BPE with one token for every word of the prompts, expressions and answers."""
    core = Tokenizer(models.BPE())
    # Splits into words with their leading space, punctuation, and white space, so that no token spans two words.
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    of_media = [
        question.format(expression="", medium=medium)
        for question in (PRESENCE, VERIFICATION)
        for medium in ("video", "image")
    ]
    prompts = [
        *of_media,
        NUMBER.format(expression=""),
        *(text for texts in (OBJECT, BACKGROUND, CHOICE) for text in texts.values()),
    ]
    words = [word.strip(".?") for text in WORDINGS for word in text.split()]
    core.train_from_iterator(
        [*prompts, CHAT_TEMPLATE, *(f"{word} {word}, {word}." for word in (*words, *ANSWERS))], trainer
    )
    return Qwen2TokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@torch.no_grad()
def start_from(model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast, checkpoint: Path) -> None:
    """Copies the weights of a finished checkpoint whose vocabulary may be older; tokens it lacks keep their weights.

    Raises ValueError for a checkpoint of another recipe.
    """
    start = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    old = Qwen2TokenizerFast.from_pretrained(checkpoint).get_vocab()
    shared = [(place, old[token]) for token, place in tokenizer.get_vocab().items() if token in old]
    places, old_places = (torch.tensor(column) for column in zip(*shared))
    weights, own = start.state_dict(), model.state_dict()
    if weights.keys() != own.keys():
        raise ValueError(f"{checkpoint}: expected a model of this recipe, got another")
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        rows = own[name].clone()
        rows[places] = weights[name][old_places]
        weights[name] = rows
    model.load_state_dict(weights)


def write_checkpoint(folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast) -> None:
    """Saves model and processors with `save_pretrained`, readable by transformers 4.57 and later."""
    side = TOKEN_PX
    sizes = {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    pixels = {"shortest_edge": 4 * side**2, "longest_edge": 1024 * side**2}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels, **sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels, **sizes),
        chat_template=CHAT_TEMPLATE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    keep_old_rope(folder / "config.json")


def keep_old_rope(file: Path) -> None:
    """Rewrites the language model's rotary settings in the form of the published checkpoints.

    transformers 5 writes a new form, which 4.57 ignores, using another base; it reads both.
    """
    config = json.loads(file.read_text(encoding="utf-8"))
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text["rope_theta"] = rope["rope_theta"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
