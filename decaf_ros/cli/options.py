"""Configuration arguments of the commands: a parameter file, and single parameters that override it."""

from __future__ import annotations

import argparse
from pathlib import Path

from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.io.parameter_files import load_config, plain_value


def add_config_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Adds --config, --node, --set, --mllm and --sam2. default: help text about the configuration without --config."""
    add = parser.add_argument
    add("--config", "--params-file", "--params", type=Path, help=f"YAML parameter file in the node's format{default}")
    add("--node", help="full name of the node whose sections of --config count, such as /front/segmenter")
    add("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="one parameter; may be repeated")
    add("--mllm", help="checkpoint of the multimodal LLM (mllm.checkpoint)")
    add("--sam2", help="checkpoint of SAM 2 (sam2.checkpoint)")


def read_config(args: argparse.Namespace) -> DecafConfig:
    """The defaults, overridden by the file, then by --set, --mllm and --sam2. Raises OSError or ValueError."""
    return with_arguments(load_config(args.config, node=args.node) if args.config else DecafConfig(), args)


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
    """`text` as `ros2 run ... -p` reads it, but unchanged for an option that is text. A list needs no brackets."""
    kind = next((type(option.value) for option in options(config) if option.name == name), None)
    if kind is tuple:
        items = text.removeprefix("[").removesuffix("]")
        return [item.strip() for item in items.split(",")] if items else []
    return text if kind is str else plain_value(text)
