"""The command `decaf`. Subcommands are modules of this package and the entry points in `decaf_ros.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points

from decaf_ros.version import __version__

# Modules of this package, one for each command.
COMMANDS = (
    *("segment", "replay", "figure", "compare", "evaluate", "reproduce", "calibrate", "heads"),
    *("doctor", "weights", "layout", "parameters"),
)
# Group in which other packages register subcommands: functions like `segment.add_parser`.
ENTRY_POINTS = "decaf_ros.commands"


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand. Returns 0, or 1 for a failure (one line on stderr). Bad usage exits with status 2."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        config = args.configure(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        return args.run(args, config) or 0
    except (OSError, ValueError, RuntimeError) as error:  # torch reports a full GPU as a RuntimeError
        print(f"decaf: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("decaf: interrupted", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="decaf", description="Training-free video reasoning segmentation.")
    parser.add_argument("--version", action="version", version=f"decaf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    loaders: list[tuple[str, Callable[[], Callable[..., None]]]] = [(name, partial(_own, name)) for name in COMMANDS]
    # Unique by name: a checkout and an installation may both register the same commands.
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}.values()
    loaders += [(f"{point.name} ({point.value})", point.load) for point in points]
    for name, load in loaders:
        try:
            add_parser = load()
        except Exception as error:  # whatever a package raises: `decaf doctor` must still run, and say what is missing
            print(f"decaf: command {name} cannot be loaded: {error}", file=sys.stderr)
        else:
            add_parser(commands)
    return parser


def _own(name: str) -> Callable[..., None]:
    add_parser: Callable[..., None] = import_module(f"decaf_ros.cli.{name}").add_parser
    return add_parser


if __name__ == "__main__":
    sys.exit(main())
