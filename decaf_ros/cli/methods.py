"""The options of the commands that run a baseline in place of the paper's method."""

from __future__ import annotations

import argparse

from decaf_ros.evaluation.baselines.registry import DECAF, METHODS, MethodSpec


def add_method_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --method."""
    listed = "; ".join(f"{name}: {entry.text}" for name, entry in METHODS.items())
    parser.add_argument(
        "--method", choices=METHODS, default=DECAF, help=f"method to evaluate (default: {DECAF}). {listed}"
    )


def method_spec(args: argparse.Namespace) -> MethodSpec:
    """The method that the arguments name. Raises ValueError for settings that do not fit it."""
    return MethodSpec(args.method)
