"""Files with the localization heads of a model, which `decaf heads` writes and `loc-head` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

# In a checkpoint's folder; used without --heads.
DEFAULT_NAME = "loc_head.yaml"
_HOW = "decaf heads --mllm CHECKPOINT --pairs DIR --out FILE writes one, for --heads FILE"


class Head(NamedTuple):
    """A head.

    Attributes:
        layer: from 0.
        head: from 0.
        frequency: share of the pairs in which it was among the heads with the lowest entropy.
        attention_sum: mean attention to the image.
    """

    layer: int
    head: int
    frequency: float
    attention_sum: float


@dataclass(frozen=True)
class HeadFile:
    """The localization heads of a model, and how they were found.

    Attributes:
        checkpoint: name of the model.
        model_type: as in its configuration.
        layers: number of its layers.
        heads_per_layer: number of heads in each.
        pairs: number of image-text pairs.
        source: where they are from.
        exclude: edges whose heads were left out.
        object_prompt: variant of the prompt.
        threshold: least attention sum of the first criterion.
        heads: the heads, best first.
    """

    checkpoint: str
    model_type: str
    layers: int
    heads_per_layer: int
    pairs: int
    source: str
    exclude: Sequence[str]
    object_prompt: str
    threshold: float
    heads: Sequence[Head]


def write_heads(file: Path, found: HeadFile) -> None:
    """Writes a file. Raises OSError."""
    content = asdict(found) | {"exclude": list(found.exclude), "heads": [one._asdict() for one in found.heads]}
    text = "# Localization heads (Kang et al., 2025) by `decaf heads`, for `decaf eval --method loc-head`.\n"
    file.write_text(text + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def read_heads(file: Path) -> HeadFile:
    """Reads a file. Raises FileNotFoundError, or ValueError, naming the file, for one of another form."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file with localization heads; {_HOW}")
    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        heads = tuple(Head(**one) for one in content.pop("heads"))
        found = HeadFile(**content, heads=heads)
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: expected localization heads as `decaf heads` writes them: {error}") from error
    if not heads:
        raise ValueError(f"{file}: expected at least one head, got none")
    for one in heads:
        if not (0 <= one.layer < found.layers and 0 <= one.head < found.heads_per_layer):
            raise ValueError(
                f"{file}: expected heads of {found.layers} layers with {found.heads_per_layer} heads each, got {one}"
            )
    return found


def check_fits(file: Path, found: HeadFile, model_type: str, layers: int, heads_per_layer: int) -> None:
    """Raises ValueError, naming the file, if the heads are of another model."""
    theirs = found.model_type, found.layers, found.heads_per_layer
    if theirs != (model_type, layers, heads_per_layer):
        expected = f"{model_type} with {layers} layers and {heads_per_layer} heads in each"
        got = "{} with {} layers and {}".format(*theirs)
        raise ValueError(f"{file}: expected heads of a model of type {expected}, got those of {got}; {_HOW}")


def find_heads(given: Path | None, checkpoint: Path) -> Path:
    """The file for a checkpoint: the given file; in the given folder NAME.yaml, by its name; without either the file
    in its folder. It need not exist."""
    if given is None:
        return checkpoint / DEFAULT_NAME
    return given / f"{checkpoint.name}.yaml" if given.is_dir() else given
