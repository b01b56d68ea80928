"""The command `decaf figure`: one picture of how a query was answered, as the paper draws its figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.methods import add_heads_argument
from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.baselines.registry import DECAF_SPEC, METHODS, MethodSpec
from decaf_ros.io.image_folder import DEFAULT_FPS


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `figure` to the commands of `decaf`."""
    parser = commands.add_parser(
        "figure",
        help="draw how a query was answered, step by step, as in the paper's figures",
        description="Answers a query about a video file, a folder of images or a ROS 2 bag, as `decaf segment` does, "
        "and draws one picture as the paper's Fig. 1 and 5 to 12: frames, video, frame and fused attention, attention "
        "mask, query points in magenta, SAM mask, over the key frames. If the answer is 'not found', the caption says "
        "so and the best candidate is drawn, as in the paper.",
    )
    parser.set_defaults(configure=read_config, run=run)
    add = parser.add_argument
    add("input", type=Path, help="video file, folder of JPEG or PNG images, bag folder, .mcap or .db3 file")
    add("--query", required=True, help='the object to find, such as "the mug that was just put down"')
    add("--out", type=Path, help="picture, a PNG file (default: NAME_figure.png in the current folder)")
    add("--topic", default="", help="image topic, for a bag with several cameras")
    add("--fps", type=float, default=DEFAULT_FPS, help="frames per second of a folder of images (%(default)g)")
    add("--start", type=float, default=0.0, metavar="S", help="skip the first seconds of the clip")
    add("--duration", type=float, metavar="S", help="stop after this many seconds")
    add("--columns", type=int, default=8, help="number of key frames shown, spread evenly; 0: all (%(default)s)")
    add("--tile-width", type=int, default=160, metavar="PX", help="width of each small picture (%(default)s)")
    add("--contrast", action="store_true", help="also draw the object's and the background's map of each branch")
    names = [name for name in METHODS if name != DECAF_SPEC.name]
    add("--methods", nargs="+", choices=names, default=[], metavar="METHOD", help=f"rows of baselines: {names}")
    add_heads_argument(parser)
    add_config_arguments(parser)


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Draws the figure. Raises OSError, ValueError or RuntimeError."""
    out = args.out or Path(f"{args.input.stem}_figure.png")
    _check(args, out)
    specs = [DECAF_SPEC, *(_spec(name, args.heads) for name in dict.fromkeys(args.methods))]
    # These import torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.answers import absence, tracking_text
    from decaf_ros.evaluation.baselines.registry import load_models, make_method
    from decaf_ros.evaluation.figure import figure, figure_rows, method_rows, spread
    from decaf_ros.evaluation.run import always_answering, node_segmentation
    from decaf_ros.io.results import write_png
    from decaf_ros.offline import check_clip, key_frames

    limits = config.node.max_image_mpx, config.window.max_side
    clip = ClipSource(args.input, args.topic, args.start, args.duration, args.fps, *limits).load()
    check_clip(clip)
    window = key_frames(clip, config.window.size, config.window.clip_rounding)
    _log("loading the models")
    models, answering = load_models(config), always_answering(config)
    rows, captions = [], [f"Exp: {args.query}"]
    for spec in specs:
        _log(f"{spec.name}: answering with {len(window)} key frames of {len(clip)} frames")
        found = make_method(models, answering, spec).segment(window, args.query, clip)
        if spec.is_decaf:
            rows += figure_rows(found, clip, args.tile_width, args.contrast)
        else:
            rows += method_rows(spec.name, found, clip, args.tile_width)
        # A baseline always answers.
        published, asked = (node_segmentation(found, config), config) if spec.is_decaf else (found, answering)
        answer = absence(published, asked) or tracking_text(len(published.selected), found.grounding.category)
        if count := found.grounding.malformed:
            answer += f"; {count.malformed} of {count.asked} answers malformed"
        captions.append(f"{spec.name}: {answer}")
    first_ns = window.frames[0].stamp_ns
    times_s = [(frame.stamp_ns - first_ns) / 1e9 for frame in window.frames]
    columns = spread(len(window), args.columns)
    write_png(out, figure(rows, columns, times_s, "\n".join(captions)))
    _log(f"figure in {out}: {len(rows)} rows, {len(columns)} of {len(window)} key frames")


def _spec(name: str, heads: Path | None) -> MethodSpec:
    return MethodSpec(name, heads if METHODS[name].needs_heads else None)


def _check(args: argparse.Namespace, out: Path) -> None:
    """Finds bad values before anything is loaded. Raises OSError or ValueError."""
    if not args.query.strip():
        raise ValueError("--query: expected a text, got an empty one")
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input}: no such file or folder")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a file ending in .png, got {out}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"--out: expected a folder, got {out.parent}")
    for name, least in (("columns", 0), ("tile_width", 32)):
        if (value := getattr(args, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected {least} or more, got {value}")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
