"""The command `decaf segment`: answers a query about a video, a folder of images or a bag, without ROS."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, options
from decaf_ros.io.image_folder import DEFAULT_FPS
from decaf_ros.io.results import FORMATS, ResultFolder, check_new_folder
from decaf_ros.types import Frame, Notice, Output, Query, QueryEvent, QueryState, StageEvent
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.online.segmenter import OnlineSegmenter


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `segment` to the commands of `decaf`."""
    parser = commands.add_parser(
        "segment",
        help="answer a query about a video file, a folder of images or a ROS 2 bag",
        description="Answers a query about a video file, a folder of images or a ROS 2 bag. By default the whole clip "
        "is used: key frames spread evenly over it are grounded and every frame gets a mask. With --online the clip is "
        "played frame by frame, like a robot's camera stream.",
    )
    parser.set_defaults(configure=read_config, run=run)
    add = parser.add_argument
    add("input", type=Path, help="video file, folder of JPEG or PNG images, bag folder, .mcap or .db3 file")
    add("--query", required=True, help='the object to find, such as "the mug that was just put down"')
    add("--out", type=Path, help="new folder for the results (default: NAME_decaf in the current folder)")
    add("--topic", default="", help="image topic, for a bag with several cameras")
    add("--fps", type=float, default=DEFAULT_FPS, help="frames per second of a folder of images (%(default)g)")
    add_config_arguments(parser)
    add("--format", choices=FORMATS, default="png", help="masks as PNG files, as a bag with the node's topics, or both")
    add("--online", action="store_true", help="play the clip through the online segmenter, frame by frame")
    add(
        "--ask-at", type=float, default=0.0, metavar="S", help="with --online: time of the query, seconds into the clip"
    )
    add("--start", type=float, default=0.0, metavar="S", help="skip the first seconds of the clip")
    add("--duration", type=float, metavar="S", help="stop after this many seconds")


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Segments the clip. Raises OSError, ValueError or RuntimeError."""
    # These import torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.offline import check_clip, segment_clip
    from decaf_ros.online.segmenter import OnlineSegmenter
    from decaf_ros.pipeline import Decaf

    if not args.query.strip():
        raise ValueError("--query: expected a text, got an empty one")
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input}: no such file or folder")
    out = args.out or Path(f"{args.input.stem}_decaf")
    query = Query("cli", args.query)
    check_new_folder(out)
    limits = config.node.max_image_mpx, config.window.max_side
    source = ClipSource(args.input, args.topic, args.start, args.duration, args.fps, *limits)
    # Check the clip before loading the models, which may take minutes.
    frames = source.read() if args.online else iter(())
    clip: list[Frame] = []
    if args.online:
        frames = chain([next(frames)], frames)
    else:
        clip = source.load()
        check_clip(clip)
    _log("loading the models")
    decaf = Decaf.from_config(config)
    with _log_unfinished(out), ResultFolder(out, args.format) as results:
        emit = _logged(results.write)
        started = time.monotonic()
        if args.online:
            segmenter = OnlineSegmenter(decaf, emit)
            _play(segmenter, frames, query, round(args.ask_at * 1e9))
            assert results.last_event is not None
            if not results.last_event.state.is_answer:
                segmenter.cancel(query.id, "the clip ended before the query could be answered")
        else:
            results.write_coarse_masks(segment_clip(decaf, clip, query, emit))
        summary = results.write_summary(
            query=args.query,
            input=str(args.input),
            mode="online" if args.online else "offline",
            frames_rejected=source.problems.rejected,
            input_problems=source.problems.texts,
            version=__version__,
            seconds=round(time.monotonic() - started, 2),
            parameters={option.name: option.value for option in options(config)},
        )
        assert results.last_event is not None
        if results.last_event.state == QueryState.FAILED:
            raise RuntimeError(results.last_event.text)
    if source.problems.rejected:
        _log(f"warn: {source.problems.rejected} of the clip's images could not be decoded and were left out")
    _log(f"results in {summary.parent}: {', '.join(sorted(file.name for file in summary.parent.iterdir()))}")


def _play(segmenter: OnlineSegmenter, frames: Iterator[Frame], query: Query, ask_at_ns: int) -> None:
    """Plays the clip. Asks the query after the first frame at or after `ask_at_ns`, counted from the first frame.

    Raises ValueError if the clip ends before.
    """
    first_ns = None
    asked = False
    for frame in frames:
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        segmenter.observe(frame)
        if not asked and frame.stamp_ns - first_ns >= ask_at_ns:
            segmenter.ask(query)
            asked = True
    if not asked:
        raise ValueError(f"--ask-at: expected a time within the clip, got {ask_at_ns / 1e9} s")


@contextmanager
def _log_unfinished(out: Path) -> Iterator[None]:
    """Logs that unfinished results in `out` are replaced, and that a failed run leaves some."""
    if out.exists() and any(out.iterdir()):
        _log(f"replacing the unfinished results of an earlier run in {out}")
    try:
        yield
    except BaseException:
        if out.is_dir():
            _log(f"unfinished results are left in {out}; the next run into it replaces them")
        raise


def _logged(write: Callable[[Output], None]) -> Callable[[Output], None]:
    """`write` with a progress log on stderr."""

    def emit(output: Output) -> None:
        write(output)
        if isinstance(output, QueryEvent):
            _log(f"{output.state.name}{': ' if output.text else ''}{output.text}")
        elif isinstance(output, StageEvent):
            _log(f"  {output.stage} ({output.progress:.0%})")
        elif isinstance(output, Notice):
            _log(f"{output.level}: {output.text}")

    return emit


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
