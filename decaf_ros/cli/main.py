"""The command `decaf`. Its subcommands: the modules beside this one, and the entry points `decaf_ros.commands`."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import entry_points

from decaf_ros.cli import evaluate, parameters, replay, segment
from decaf_ros.version import __version__

# Other packages of the installation add subcommands by this group: functions like `segment.add_parser`.
ENTRY_POINTS = "decaf_ros.commands"


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand. Returns the exit status: 0, 1 for a failure (one line on stderr), 2 for bad usage."""
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        config = given.configure(given)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        return given.run(given, config) or 0
    except (OSError, ValueError, RuntimeError) as error:  # torch reports a full GPU as a RuntimeError
        print(f"decaf: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("decaf: interrupted", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="decaf", description="Training-free video reasoning segmentation.")
    parser.add_argument("--version", action="version", version=f"decaf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (segment, replay, evaluate, parameters):
        module.add_parser(commands)
    # By name: a checkout and an installation beside it name the same ones.
    for point in {point.name: point for point in entry_points(group=ENTRY_POINTS)}.values():
        try:
            add_parser = point.load()
        except (ImportError, AttributeError) as error:
            print(f"decaf: command {point.name} ({point.value}) cannot be loaded: {error}", file=sys.stderr)
        else:
            add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
