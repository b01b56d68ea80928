"""The files of a multimodal LLM's folder, checked before transformers reads them: its own errors do not name a missing
tokenizer, or come as late as the first query."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Part -> alternatives, of which one must be there with all its files.
_PARTS = {
    "configuration": (("config.json",),),
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "weights": (("model.safetensors",), ("pytorch_model.bin",)),
}
_ADAPTER = "adapter_config.json"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def require_folder(folder: Path, name: str) -> None:
    """Checks that a checkpoint's folder exists and has a configuration of its own. name: begins the errors.

    Raises FileNotFoundError, and ValueError for an adapter of another model.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{name}: expected a folder, but {folder} does not exist")
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: expected a folder, got the file {folder}; give the folder that contains it")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: expected config.json in the folder {folder}")
    if (folder / _ADAPTER).exists():
        # With the package peft, transformers would load the model that this file names instead.
        raise ValueError(f"{name}: expected a whole model, got an adapter ({_ADAPTER} in {folder}); merge it first")


def require_files(folder: Path, name: str) -> None:
    """Checks that a checkpoint's folder has every file that is needed. name: begins the errors.

    Raises FileNotFoundError that lists the missing files, and ValueError for an index that is not JSON.
    """
    missing = []
    for part, alternatives in _PARTS.items():
        if not any(all((folder / file).is_file() for file in files) for files in alternatives):
            index = next((folder / file for file in _INDICES if (folder / file).is_file()), None)
            if part == "weights" and index is not None:
                shards = sorted(set(_read_json(index, name).get("weight_map", {}).values()))
                missing += [shard for shard in shards if not (folder / shard).is_file()]
            else:
                missing.append(" or ".join(" and ".join(files) for files in alternatives) + f" ({part})")
    # transformers 5 may write the image processor into the processor's file.
    processor = folder / "processor_config.json"
    if not (folder / "preprocessor_config.json").is_file() and not (
        processor.is_file() and "image_processor" in _read_json(processor, name)
    ):
        missing.append("preprocessor_config.json (image processor)")
    if missing:
        raise FileNotFoundError(f"{name}: missing in the folder {folder}: {', '.join(missing)}")


def _read_json(file: Path, name: str) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: expected JSON in {file}: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{name}: expected a JSON object in {file}")
    return document
