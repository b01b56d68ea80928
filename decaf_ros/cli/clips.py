"""Reads clips for the commands: a part of a video file or a ROS 2 bag."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from decaf_ros.io.bags import BagReader, is_bag
from decaf_ros.io.video import read_video
from decaf_ros.types import Frame

# Maximum size of an offline clip, which is loaded completely.
_MAX_CLIP_GIB = 8
# Undecodable images reported one by one; further ones are only counted.
_MAX_WARNINGS = 5


class RejectedImages:
    """Counts the images that cannot be decoded and logs the first errors."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> None:
        self.count += 1
        if self.count <= _MAX_WARNINGS:
            print(f"warn: image left out: {text}", file=sys.stderr, flush=True)


def read_clip(
    path: Path, topic: str, start_s: float, duration_s: float | None, reject: Callable[[str], None]
) -> Iterator[Frame]:
    """The clip's frames from `start_s` on, read lazily.

    Args:
        path: a video file or a bag.
        topic: image topic of a bag; empty: its only one.
        start_s: seconds after the first frame.
        duration_s: seconds after `start_s`; None: up to the end.
        reject: called with the error of each image of a bag that cannot be decoded.

    Raises:
        OSError, ValueError: not readable, or no frame in the interval.
    """
    if is_bag(path):
        with BagReader(path) as bag:
            yield from _cut(bag.frames(topic, reject), start_s, duration_s)
    else:
        yield from _cut(read_video(path), start_s, duration_s)


def _cut(frames: Iterator[Frame], start_s: float, duration_s: float | None) -> Iterator[Frame]:
    """The frames in the interval. Raises ValueError if there is none."""
    first_ns = None
    found = False
    for frame in frames:
        first_ns = frame.stamp_ns if first_ns is None else first_ns
        offset_s = (frame.stamp_ns - first_ns) / 1e9
        if duration_s is not None and offset_s >= start_s + duration_s:
            break
        if offset_s >= start_s:
            found = True
            yield frame
    if not found:
        within = "" if duration_s is None else f", within {duration_s} s"
        raise ValueError(f"no frame that can be decoded from {start_s} s on{within}")


def load_clip(frames: Iterator[Frame]) -> list[Frame]:
    """All frames. Raises ValueError for more than _MAX_CLIP_GIB."""
    clip: list[Frame] = []
    nbytes = 0
    for frame in frames:
        clip.append(frame)
        nbytes += frame.image.nbytes
        if nbytes > _MAX_CLIP_GIB * 2**30:
            raise ValueError(
                f"clip: expected at most {_MAX_CLIP_GIB} GiB in memory, got more after {len(clip)} frames; "
                "choose a part with --start and --duration, or use --online"
            )
    return clip
