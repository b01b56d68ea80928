"""Configuration arguments of the commands: a parameter file, and single parameters that override it."""

from __future__ import annotations

import argparse
from pathlib import Path

from decaf_ros.config import DecafConfig, load_config, options, replace


def add_config_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Adds --config, --set, --mllm and --sam2. default: help text about the configuration used without --config."""
    add = parser.add_argument
    add("--config", "--params-file", type=Path, help=f"YAML parameter file in the node's format{default}")
    add("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="one parameter; may be repeated")
    add("--mllm", help="checkpoint of the multimodal LLM (mllm.checkpoint)")
    add("--sam2", help="checkpoint of SAM 2 (sam2.checkpoint)")


def read_config(args: argparse.Namespace) -> DecafConfig:
    """The defaults, overridden by the file, then by --set, --mllm and --sam2. Raises OSError or ValueError."""
    return with_arguments(load_config(args.config) if args.config else DecafConfig(), args)


def with_arguments(config: DecafConfig, args: argparse.Namespace) -> DecafConfig:
    """`config` overridden by --set, --mllm and --sam2. Raises ValueError for an unknown name or a bad value."""
    changes: dict[str, object] = {}
    for entry in args.set:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"--set: expected STAGE.FIELD=VALUE, got {entry!r}")
        changes[name.strip()] = _value(value.strip(), name.strip(), config)
    for name, value in (("mllm.checkpoint", args.mllm), ("sam2.checkpoint", args.sam2)):
        if value is not None:
            changes[name] = value
    return replace(config, changes)


def _value(text: str, name: str, config: DecafConfig) -> object:
    """`text` converted to the type of the option. Unchanged if that fails; `replace` then raises."""
    kind = next((type(option.value) for option in options(config) if option.name == name), str)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text
