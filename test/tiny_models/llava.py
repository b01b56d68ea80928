"""A tiny LLaVA-1.5 checkpoint with its real processor classes, for tests. Weights are random."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlamaTokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from decaf_ros.grounding.prompts import BACKGROUND, CHOICE, OBJECT
from tiny_models.qwen_vl import WORDS

# In our own form; the same text as the published template for the turns that the adapter writes.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
VOCABULARY, PATCH, SIDE = 900, 7, 6


def write_tiny_llava(folder: Path, seed: int = 0) -> Path:
    """Writes model, tokenizer and processor with `save_pretrained` and returns the folder. seed: for the weights.

    A square of 42 x 42 pixels gives 6 x 6 tokens.
    """
    torch.manual_seed(seed)
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    return write_llava(folder, text, vision, VOCABULARY, PATCH, SIDE)


def write_llava(
    folder: Path, text: dict[str, int], vision: dict[str, int], vocabulary: int, patch: int, side: int
) -> Path:
    """Writes a checkpoint of these sizes with the published tokens in their places: `<image>` is the first one after
    the vocabulary, `<pad>` the second, and the embedding has more rows."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_llama_tokenizer(folder, vocabulary)
    special = {"bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        # Wider than usual: with small random weights attention is uniform and every contrast is zero.
        text_config={
            **text,
            **special,
            "model_type": "llama",
            "vocab_size": vocabulary + 64,
            "initializer_range": 0.2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        },
        vision_config={
            **vision,
            "model_type": "clip_vision_model",
            "image_size": patch * side,
            "patch_size": patch,
            "projection_dim": 16,
        },
        image_token_index=vocabulary,
        image_seq_length=side**2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, pad_token_id=vocabulary + 1, do_sample=False)
    square = {"height": patch * side, "width": patch * side}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": patch * side}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_llama_tokenizer(folder: Path, vocabulary: int) -> LlamaTokenizerFast:
    """A byte-fallback BPE, as SentencePiece makes for Llama, trained on the prompts' words and filled up with entries
    that no text uses. `<image>` and `<pad>` come after it. Returns it as it is read from its files."""
    words = Tokenizer(models.BPE())
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    texts = [text for prompts in (OBJECT, BACKGROUND, CHOICE) for text in prompts.values()]
    # Answers that are compared by their first token.
    texts += ["yes Yes YES no No NO several Several SEVERAL one One ONE"] * 50
    words.train_from_iterator([*texts, WORDS, "USER: ASSISTANT:"], trainers.BpeTrainer(vocab_size=500))
    learned = json.loads(words.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), *learned["vocab"]]
    names += [f"▁entry{number}" for number in range(vocabulary - len(names))]
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in learned["merges"]]
    core = Tokenizer(
        models.BPE(
            {name: number for number, name in enumerate(names)},
            merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    core.normalizer = words.normalizer
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    core.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    core.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "legacy": False,
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return LlamaTokenizerFast.from_pretrained(folder)
