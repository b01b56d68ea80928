"""The command `decaf`. Subcommands are the modules of this package and the entry points in `decaf_ros.commands`."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import entry_points

from decaf_ros.cli import calibrate, evaluate, parameters, replay, segment
from decaf_ros.version import __version__

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
    for module in (segment, replay, evaluate, calibrate, parameters):
        module.add_parser(commands)
    # Unique by name: a checkout and an installation may both register the same commands.
    for point in {point.name: point for point in entry_points(group=ENTRY_POINTS)}.values():
        try:
            add_parser = point.load()
        except Exception as error:  # whatever another package raises, `decaf segment` must still run
            print(f"decaf: command {point.name} ({point.value}) cannot be loaded: {error}", file=sys.stderr)
        else:
            add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
