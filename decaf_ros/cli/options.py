"""The configuration as the commands take it: a file, and single parameters over it."""

from __future__ import annotations

import argparse
from pathlib import Path

from decaf_ros.config import DecafConfig, load_config, options, replace


def add_config_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """--config, --set, --mllm and --sam2. default: what is said about the file that is read if none is given."""
    add = parser.add_argument
    add("--config", "--params-file", type=Path, help=f"YAML file with parameters, as the node takes it{default}")
    add("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="one parameter; may be repeated")
    add("--mllm", help="checkpoint of the multimodal LLM (mllm.checkpoint)")
    add("--sam2", help="checkpoint of SAM 2 (sam2.checkpoint)")


def read_config(given: argparse.Namespace) -> DecafConfig:
    """Defaults, then the file, then --set, --mllm and --sam2. Raises OSError or ValueError."""
    return with_arguments(load_config(given.config) if given.config else DecafConfig(), given)


def with_arguments(config: DecafConfig, given: argparse.Namespace) -> DecafConfig:
    """--set, --mllm and --sam2 over `config`. Raises ValueError for an unknown name or a bad value."""
    changes: dict[str, object] = {}
    for entry in given.set:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"--set: expected STAGE.FIELD=VALUE, got {entry!r}")
        changes[name.strip()] = _value(value.strip(), name.strip(), config)
    for name, value in (("mllm.checkpoint", given.mllm), ("sam2.checkpoint", given.sam2)):
        if value is not None:
            changes[name] = value
    return replace(config, changes)


def _value(text: str, name: str, config: DecafConfig) -> object:
    """`text` as the type that the option has; as it stands where it is none, for `replace` to refuse."""
    kind = next((type(option.value) for option in options(config) if option.name == name), str)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text
