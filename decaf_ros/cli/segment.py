"""The command `decaf segment`: answers a query about a video or a bag, without ROS."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, options
from decaf_ros.io.bags import BagReader, is_bag
from decaf_ros.io.results import FORMATS, ResultFolder, check_new_folder
from decaf_ros.io.video import read_video
from decaf_ros.types import Frame, Notice, Output, Query, QueryEvent, QueryState, StageEvent
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.online.segmenter import OnlineSegmenter

# Bound for offline clips, which are in memory as a whole.
_CLIP_GIB = 8
# Undecodable images that are reported one by one; further ones are only counted.
_MAX_WARNINGS = 5


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `segment` to the commands of `decaf`."""
    parser = commands.add_parser(
        "segment",
        help="answer a query about a video file or a ROS 2 bag",
        description="Answers a query about a video file or a ROS 2 bag. By default the whole clip is used: key frames "
        "spread evenly over it are grounded and every frame gets a mask. With --online the clip is played as a robot "
        "would see it.",
    )
    parser.set_defaults(configure=read_config, run=run)
    add = parser.add_argument
    add("input", type=Path, help="video file, bag folder, .mcap or .db3 file")
    add("--query", required=True, help='the object to find, such as "the mug that was just put down"')
    add("--out", type=Path, help="new folder for the results (default: NAME_decaf in the current folder)")
    add("--topic", default="", help="image topic of a bag with several")
    add_config_arguments(parser)
    add("--format", choices=FORMATS, default="png", help="masks as PNG files, as a bag with the node's topics, or both")
    add("--online", action="store_true", help="play the clip through the online segmenter, frame by frame")
    add(
        "--ask-at", type=float, default=0.0, metavar="S", help="with --online: time of the query, seconds into the clip"
    )
    add("--start", type=float, default=0.0, metavar="S", help="skip the first seconds of the clip")
    add("--duration", type=float, metavar="S", help="stop after this many seconds")


def run(given: argparse.Namespace, config: DecafConfig) -> None:
    """Segments the clip. Raises OSError, ValueError or RuntimeError."""
    # Imports torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.offline import check_clip, segment_clip
    from decaf_ros.online.segmenter import OnlineSegmenter
    from decaf_ros.pipeline import Decaf

    if not given.query.strip():
        raise ValueError("--query: expected a text, got an empty one")
    if not given.input.exists():
        raise FileNotFoundError(f"{given.input}: no such file or folder")
    out = given.out or Path(f"{given.input.stem}_decaf")
    query = Query("cli", given.query)
    check_new_folder(out)
    rejected = _Rejected()
    clip = _frames(given, rejected)
    if not given.online:
        # A clip that cannot be used shall say so before the models are loaded, which may take minutes.
        clip = _in_memory(clip)
        check_clip(clip)
    _say("loading the models")
    decaf = Decaf.from_config(config)
    with _told_where(out), ResultFolder(out, given.format) as results:
        emit = _and_tell(results.take)
        started = time.monotonic()
        if given.online:
            segmenter = OnlineSegmenter(decaf, emit)
            _play(segmenter, clip, query, round(given.ask_at * 1e9))
            if not results.event.state.is_answer:
                segmenter.cancel(query.id, "the clip ended before the query could be answered")
        else:
            results.take_coarse(segment_clip(decaf, clip, query, emit))
        summary = results.summary(
            query=given.query,
            input=str(given.input),
            mode="online" if given.online else "offline",
            frames_rejected=rejected.count,
            version=__version__,
            seconds=round(time.monotonic() - started, 2),
            parameters={option.name: option.value for option in options(config)},
        )
        if results.event.state == QueryState.FAILED:
            raise RuntimeError(results.event.text)
    if rejected.count:
        _say(f"warn: {rejected.count} of the clip's images could not be decoded and were left out")
    _say(f"results in {summary.parent}: {', '.join(sorted(file.name for file in summary.parent.iterdir()))}")


def _play(segmenter: OnlineSegmenter, frames: Iterator[Frame], query: Query, ask_at_ns: int) -> None:
    """Plays the clip, the query being asked with the first frame that is `ask_at_ns` into it. Raises ValueError if the
    clip ends before."""
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


class _Rejected:
    """Counts the images that cannot be decoded, and says why for the first of them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> None:
        self.count += 1
        if self.count <= _MAX_WARNINGS:
            _say(f"warn: image left out: {text}")


def _frames(given: argparse.Namespace, reject: Callable[[str], None]) -> Iterator[Frame]:
    """The clip's frames between --start and --start + --duration, read as they are wanted."""
    if is_bag(given.input):
        with BagReader(given.input) as bag:
            yield from _cut(bag.frames(given.topic, reject), given.start, given.duration)
    else:
        yield from _cut(read_video(given.input), given.start, given.duration)


def _cut(frames: Iterator[Frame], start_s: float, duration_s: float | None) -> Iterator[Frame]:
    """Raises ValueError where nothing is left."""
    first_ns = None
    left = False
    for frame in frames:
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        offset_s = (frame.stamp_ns - first_ns) / 1e9
        if duration_s is not None and offset_s >= start_s + duration_s:
            break
        if offset_s >= start_s:
            left = True
            yield frame
    if not left:
        within = "" if duration_s is None else f", within {duration_s} s"
        raise ValueError(f"no frame that can be decoded from {start_s} s on{within}")


def _in_memory(frames: Iterator[Frame]) -> list[Frame]:
    """Raises ValueError for a clip that is too large."""
    clip: list[Frame] = []
    size = 0
    for frame in frames:
        clip.append(frame)
        size += frame.image.nbytes
        if size > _CLIP_GIB * 2**30:
            raise ValueError(
                f"the clip takes more than {_CLIP_GIB} GiB in memory ({len(clip)} frames so far): "
                "choose a part of it by --start and --duration, or use --online"
            )
    return clip


@contextmanager
def _told_where(out: Path) -> Iterator[None]:
    """Says what becomes of `out` where the run fails after it has begun to write there."""
    if out.exists() and any(out.iterdir()):
        _say(f"replacing the unfinished results of an earlier run in {out}")
    try:
        yield
    except BaseException:
        if out.is_dir():
            _say(f"unfinished results are left in {out}; the next run into it replaces them")
        raise


def _and_tell(take: Callable[[Output], None]) -> Callable[[Output], None]:
    """Passes outputs on to `take` and says on stderr what goes on."""

    def emit(output: Output) -> None:
        take(output)
        if isinstance(output, QueryEvent):
            _say(f"{output.state.name}{': ' if output.text else ''}{output.text}")
        elif isinstance(output, StageEvent):
            _say(f"  {output.stage} ({output.progress:.0%})")
        elif isinstance(output, Notice):
            _say(f"{output.level}: {output.text}")

    return emit


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
