"""The part of `decaf eval` for a recording: --bag, its queries, and its topic with ground truth."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

from decaf_ros.cli.clips import ClipSource
from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.datasets.bag import BagSource, TruthTopic

_NAMES = ("query", "ground_truth", "topic", "start", "duration", "online", "ask_at")


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --bag and its further options."""
    add = parser.add_argument_group("a recording in place of a data set").add_argument
    add("--bag", type=Path, help="recording with the images")
    add("--query", action="append", default=[], help="question about the recording; may be repeated")
    add(
        "--ground-truth",
        action="append",
        default=[],
        metavar="TOPIC[:LABEL,...]",
        help="topic with label images at the stamps of the images, and the labels of the target (default: all but 0); "
        "one for all queries, or one for each; without it only answers, presence scores and times are reported",
    )
    add("--topic", default="", help="image topic of a bag with several cameras")
    add("--start", type=float, metavar="S", help="seconds into the bag (default: 0)")
    add("--duration", type=float, metavar="S", help="seconds after --start (default: up to the end)")
    add("--online", action="store_true", help="play the bag through the online segmenter and score every later frame")
    add("--ask-at", type=float, metavar="S", help="with --online: when to ask, seconds after --start (default: 0)")


def check_bag_arguments(args: argparse.Namespace) -> None:
    """Sets `long` for --online, and one process. Raises ValueError for options that do not go together."""
    if args.bag is None:
        # 0 seconds are given, too.
        given = [name for name in _NAMES if getattr(args, name) or isinstance(getattr(args, name), float)]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')}: only with --bag")
        return
    for name in ("dataset", "clips_from", "clips", "split", "submission", "calibrate", "long", "seconds", "seed"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')}: no effect with --bag")
    if not args.query or not all(query.strip() for query in args.query):
        raise ValueError("--query: expected a text for --bag, got none")
    if args.online and not args.ground_truth:
        raise ValueError("--online: expected --ground-truth too, as every frame is scored")
    if args.ask_at is not None and not args.online:
        raise ValueError("--ask-at: only with --online")
    for name in ("start", "ask_at"):
        if (value := getattr(args, name)) is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')}: expected 0 or more seconds, got {value:g}")
    if args.duration is not None and not args.duration > 0:
        raise ValueError(f"--duration: expected more than 0 seconds, got {args.duration:g}")
    args.long = args.online
    if args.workers is None:  # one clip: a second process would only copy it
        args.workers = 0


def bag_source(args: argparse.Namespace, config: DecafConfig) -> BagSource:
    """Reads the recording. Raises OSError or ValueError."""
    truths = tuple(TruthTopic.parse(text) for text in args.ground_truth)
    if not args.bag.exists():
        raise FileNotFoundError(f"--bag: {args.bag}: no such file or folder")
    source = ClipSource(
        args.bag,
        args.topic,
        args.start or 0.0,
        args.duration,
        max_mpx=config.node.max_image_mpx,
        mend="choose a part with --start and --duration",
    )
    frames = [replace(frame, index=index) for index, frame in enumerate(source.load())]
    ask_at_s = (args.ask_at or 0.0) if args.online else None
    part = {"start_s": args.start, "duration_s": args.duration, "ask_at_s": ask_at_s}
    settings = {name: value for name, value in part.items() if value is not None}
    return BagSource(args.bag, frames, tuple(args.query), truths, ask_at_s, settings)
