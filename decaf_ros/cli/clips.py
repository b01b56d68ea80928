"""Reads clips for the commands: a part of a video file, a folder of images or a ROS 2 bag."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from decaf_ros.io.bags import BagReader, RecordedFrame, is_bag
from decaf_ros.io.image_folder import DEFAULT_FPS, image_files, read_images
from decaf_ros.io.sizes import bounded
from decaf_ros.io.stamps import DISORDER_NS, StreamStamps, settled_stamps
from decaf_ros.io.video import read_video
from decaf_ros.types import Frame

# Maximum size of an offline clip, which is loaded completely.
_MAX_CLIP_GIB = 8
# Undecodable images reported one by one; further ones are only counted.
_MAX_WARNINGS = 5


class ClipProblems:
    """Counts the images that cannot be decoded and logs the first errors, and everything else about the input.

    texts: what was said about the input as a whole, such as a missing file.
    """

    def __init__(self) -> None:
        self.rejected = 0
        self.texts: list[str] = []

    def reject(self, text: str) -> None:
        """An image was left out."""
        self.rejected += 1
        if self.rejected <= _MAX_WARNINGS:
            print(f"warn: image left out: {text}", file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something about the input is not as it should be."""
        self.texts.append(text)
        print(f"warn: {text}", file=sys.stderr, flush=True)


@dataclass
class ClipSource:
    """A part of an input.

    Attributes:
        path: a video file, a folder of images or a bag.
        topic: image topic of a bag; empty: the camera's, see `decaf_ros.io.topics`.
        start_s: seconds after the first frame.
        duration_s: seconds after `start_s`; None: up to the end.
        fps: frames per second of a folder of images.
        max_mpx: images of more megapixels are not decoded.
        max_side: `load` keeps smaller copies of larger images, see `window.max_side`.
        mend: how to make a clip that `load` refuses shorter.
        problems: told about everything that cannot be read.
    """

    path: Path
    topic: str = ""
    start_s: float = 0.0
    duration_s: float | None = None
    fps: float = DEFAULT_FPS
    max_mpx: float = math.inf
    max_side: int = 0
    mend: str = "choose a part with --start and --duration, or use --online"
    problems: ClipProblems = field(default_factory=ClipProblems)

    def read(self) -> Iterator[Frame]:
        """The frames one by one, in the order of a camera. Raises OSError or ValueError: not readable, or no frame in
        the interval."""
        for recorded, stamp_ns in self._cut(lambda text: self.problems.warn(f"{self.path}: {text}")):
            yield replace(recorded.frame, stamp_ns=stamp_ns)

    def load(self) -> list[Frame]:
        """All frames, in the order of their stamps, which increase.

        Raises:
            OSError, ValueError: as `read`, for more than _MAX_CLIP_GIB, or if the frames have no times.
        """
        clip: list[RecordedFrame] = []
        nbytes = 0
        for recorded, _ in self._cut(lambda text: None):  # the whole clip is looked at below
            frame = bounded(recorded.frame, self.max_side)
            clip.append(RecordedFrame(frame, recorded.recorded_ns))
            nbytes += frame.image.nbytes
            if nbytes > _MAX_CLIP_GIB * 2**30:
                raise ValueError(
                    f"clip: expected at most {_MAX_CLIP_GIB} GiB in memory, got more after {len(clip)} frames; "
                    f"{self.mend}"
                )
        return self._in_order(clip)

    def _in_order(self, clip: list[RecordedFrame]) -> list[Frame]:
        """The frames by their stamps. An index names the place in time, so masks and frames have one order."""
        recorded_ns = [recorded.recorded_ns for recorded in clip]
        stamps, problem = settled_stamps([recorded.frame.stamp_ns for recorded in clip], recorded_ns)
        if problem:
            self.problems.warn(f"{self.path}: {problem}")
        if len(stamps) > 1 and len(set(stamps)) == 1:
            raise ValueError(f"{self.path}: expected frames with times, got {stamps[0]} ns for all, also as recorded")
        order = sorted(range(len(clip)), key=lambda place: stamps[place])
        if late := sum(after < before for before, after in zip(order, order[1:])):
            self.problems.warn(f"{self.path}: images are out of order at {late} places: sorted by their stamps")
        frames: list[Frame] = []
        equal, previous = 0, -1
        for place, index in zip(order, sorted(recorded.frame.index for recorded in clip)):
            stamp_ns = stamps[place]
            # An image that was delivered twice. If no time tells two images apart, they are not a clip.
            if frames and stamp_ns <= frames[-1].stamp_ns and recorded_ns[place] > recorded_ns[previous]:
                stamp_ns, equal = frames[-1].stamp_ns + 1, equal + 1
            frames.append(replace(clip[place].frame, stamp_ns=stamp_ns, index=index))
            previous = place
        if equal:
            self.problems.warn(f"{self.path}: {equal} images have the stamp of the one before: taken as 1 ns later")
        return frames

    def _cut(self, say: Callable[[str], None]) -> Iterator[tuple[RecordedFrame, int]]:
        """The frames in the interval, with the stamps of a stream. Raises ValueError if there is none.

        say: see StreamStamps.
        """
        first_ns, found = None, False
        stamps = StreamStamps(say)
        end_s = None if self.duration_s is None else self.start_s + self.duration_s
        for recorded in self._frames():
            stamp_ns = stamps.settled(recorded.frame.stamp_ns, recorded.recorded_ns)
            first_ns = stamp_ns if first_ns is None else first_ns
            offset_s = (stamp_ns - first_ns) / 1e9
            # Images may be out of order: one of the interval may come a little after its end.
            if end_s is not None and offset_s >= end_s + DISORDER_NS / 1e9:
                break
            if (offset_s >= self.start_s or not self.start_s) and (end_s is None or offset_s < end_s):
                found = True
                yield recorded, stamp_ns
        if not found:
            within = "" if self.duration_s is None else f", within {self.duration_s} s"
            raise ValueError(f"{self.path}: no frame that can be decoded from {self.start_s} s on{within}")

    def _frames(self) -> Iterator[RecordedFrame]:
        reject = self.problems.reject
        if self.path.is_dir() and not is_bag(self.path) and image_files(self.path):
            for frame in read_images(self.path, self.fps, reject=reject, max_mpx=self.max_mpx):
                yield RecordedFrame(frame, frame.stamp_ns)
        elif self.path.is_dir() or is_bag(self.path):
            with BagReader(self.path, self.problems.warn) as bag:
                yield from bag.recorded_frames(self.topic, reject, self.max_mpx)
        else:
            for frame in read_video(self.path, reject=reject, max_mpx=self.max_mpx):
                yield RecordedFrame(frame, frame.stamp_ns)
