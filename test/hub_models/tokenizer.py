"""A tokenizer of the published size, with the published special tokens in their places."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from hub_models.published import Checkpoint
from tiny_models.qwen_vl import tiny_tokenizer

VOCABULARY = 151643
# Added tokens that are not special: an answer keeps them.
PLAIN = ("<tool_", "</tool_", "<|fim_", "<|repo_name|>", "<|file_sep|>", "<think>", "</think>")


def write_tokenizer(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes `tokenizer.json`, `vocab.json`, `merges.txt` and `tokenizer_config.json`.

    The words of the prompts are spread over the vocabulary; text never becomes one of the other entries.
    """
    vocabulary, merges = _vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = [
        AddedToken(token, special=not token.startswith(PLAIN), normalized=False) for token in checkpoint.added_tokens
    ]
    tokenizer.add_tokens(added)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(VOCABULARY + place): {
                "content": token.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": token.special,
            }
            for place, token in enumerate(added)
        },
        "additional_special_tokens": [token.content for token in added[1:] if token.special],
        "bos_token": None,
        "chat_template": checkpoint.chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
        **checkpoint.tokenizer,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level BPE."""
    tiny = tiny_tokenizer()
    model = json.loads(tiny.backend_tokenizer.to_str())["model"]
    tokens = [token for token in model["vocab"] if token not in tiny.get_added_vocab()]
    step = VOCABULARY // len(tokens)
    entries = [f"Ġentry{number}" for number in range(VOCABULARY)]
    for place, token in enumerate(tokens):
        entries[place * step] = token
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    return {token: number for number, token in enumerate(entries)}, merges
