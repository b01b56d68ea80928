"""The command `decaf layout`: a layout for RViz or Foxglove with the names of your robot."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decaf_ros.io.files import write_text
from decaf_ros.io.layouts import LAYOUTS, layout


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `layout` to the commands of `decaf`."""
    parser = commands.add_parser(
        "layout",
        help="print a layout for RViz or Foxglove",
        description="Prints the layout for RViz (`rviz2 -d FILE`) or Foxglove (import it from a file), with the names "
        "of a namespace and a camera.",
    )
    parser.set_defaults(configure=configure, run=run)
    add = parser.add_argument
    add("program", choices=tuple(LAYOUTS))
    add("--namespace", default="decaf", help="the segmenter's namespace (%(default)s)")
    add("--camera", default="", metavar="NAME", help="one of several cameras (default: the only one)")
    add("--image", default="", metavar="TOPIC", help="the camera's raw images (default: NAMESPACE/image)")
    frame = "where targets are shown: the camera's optical frame, or space.target_frame"
    add("--fixed-frame", default="", metavar="FRAME", help=frame)
    add("--out", type=Path, metavar="FILE", help="write a new file (default: print)")


def configure(args: argparse.Namespace) -> str:
    """The layout's text. Raises ValueError for bad names, FileExistsError for an existing file."""
    if args.out is not None and args.out.exists():
        raise FileExistsError(f"--out {args.out}: expected a new file, got one that exists")
    return layout(args.program, args.namespace, args.camera, args.image, args.fixed_frame)


def run(args: argparse.Namespace, text: str) -> None:
    """Prints or writes the layout."""
    if args.out is None:
        sys.stdout.write(text)
    else:
        write_text(args.out, text)
