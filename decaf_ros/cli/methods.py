"""The options of the commands that run a baseline in place of the paper's method."""

from __future__ import annotations

import argparse
from pathlib import Path

from decaf_ros.evaluation.baselines.registry import DECAF, METHODS, MethodSpec


def add_method_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --method and --heads."""
    listed = "; ".join(f"{name}: {entry.text}" for name, entry in METHODS.items())
    parser.add_argument(
        "--method", choices=METHODS, default=DECAF, help=f"method to evaluate (default: {DECAF}). {listed}"
    )
    add_heads_argument(parser)


def method_spec(args: argparse.Namespace) -> MethodSpec:
    """The method that the arguments name. Raises ValueError for settings that do not fit it."""
    return MethodSpec(args.method, args.heads)


def add_heads_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --heads."""
    parser.add_argument(
        "--heads",
        type=Path,
        metavar="PATH",
        help="localization heads for Loc-Head, from `decaf heads`: a file, or a folder with CHECKPOINT.yaml for each "
        "model (default: loc_head.yaml in the checkpoint's folder)",
    )
