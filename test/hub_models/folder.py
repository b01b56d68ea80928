"""Writes the folder of a published checkpoint: its files and shapes, two to four layers, random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from hub_models.published import CHECKPOINTS, Checkpoint
from hub_models.tokenizer import write_tokenizer

SHARD_BYTES = 1 << 30
# Stronger, so that attention is not uniform, which makes every contrast zero.
_QUERY_KEY = ("q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight")


def write_hub_folder(folder: Path, name: str, wide: bool) -> Path:
    """Writes configuration, tokenizer, processors and bfloat16 weights, under their published names; returns it.

    name: of `CHECKPOINTS`. wide: the published widths and number of heads (2 to 5 GB); otherwise narrow layers
    with the published head size and vocabulary (about 160 MB).
    """
    checkpoint = CHECKPOINTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    write_settings(folder, checkpoint)
    _write(folder / "config.json", _shortened(checkpoint.config, wide))
    _write_weights(folder, checkpoint)
    return folder


def write_settings(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes all files of a published checkpoint but its weights, with the published number of layers."""
    _write(folder / "config.json", checkpoint.config)
    _write(folder / "generation_config.json", checkpoint.generation)
    _write(folder / "chat_template.json", {"chat_template": checkpoint.chat_template})
    for file, content in checkpoint.processors.items():
        _write(folder / file, content)
    write_tokenizer(folder, checkpoint)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False))


def _shortened(config: dict[str, Any], wide: bool) -> dict[str, Any]:
    """Fewer layers, and narrow ones unless `wide`."""
    config = deepcopy(config)
    text, vision = config.get("text_config", config), config["vision_config"]
    # Qwen3-VL adds three levels of vision features to the first three layers.
    text["num_hidden_layers"] = 3 if "deepstack_visual_indexes" in vision else 2
    vision["depth" if "depth" in vision else "num_hidden_layers"] = 4
    # The last one, as in the published towers.
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [3]
    if "deepstack_visual_indexes" in vision:
        vision["deepstack_visual_indexes"] = [0, 1, 2]
    if not wide:
        text |= {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 1}
        narrow = {"intermediate_size": 128, "num_heads": 2, "num_attention_heads": 2, "out_hidden_size": 256}
        # In Qwen2-VL `hidden_size` is the language model's.
        narrow |= {"embed_dim": 64, "hidden_size": 256 if "embed_dim" in vision else 64}
        vision |= {key: value for key, value in narrow.items() if key in vision}
    return config


def _write_weights(folder: Path, checkpoint: Checkpoint) -> None:
    """Random weights in shards of 1 GiB, with an index."""
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    size, number = 0, 0

    def flush() -> None:
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, file))

    for name, tensor in _weights(folder, checkpoint):
        if size + tensor.nbytes > SHARD_BYTES and shard:
            flush()
            shard, size, number = {}, 0, number + 1
        shard[name], size = tensor, size + tensor.nbytes
    flush()
    _write(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def _weights(folder: Path, checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Published name and random value of every weight."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        shapes = AutoModelForImageTextToText.from_config(config).state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if name == "lm_head.weight" and checkpoint.config.get("tie_word_embeddings"):
            continue
        values = torch.randn(shape.shape, dtype=torch.bfloat16, generator=generator)
        if shape.ndim == 1:
            # Norms and layer scales around 1, biases around 0.
            values = values * 0.1 if name.endswith("bias") else 1 + values * 0.1
        else:
            # Activations of order 1 in any width: the next token is not a near tie.
            values *= 1.2 / shape[0].numel() ** 0.5
        if name.endswith(_QUERY_KEY):
            values *= 2
        yield _published_name(name, checkpoint), values


def _published_name(name: str, checkpoint: Checkpoint) -> str:
    for ours, published in checkpoint.weight_names:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name
