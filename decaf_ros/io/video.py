"""Reads and writes video files with OpenCV."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from decaf_ros.io.images import check_size
from decaf_ros.types import Frame

_log = logging.getLogger(__name__)

# MPEG-4 Part 2: the only MP4 codec that every OpenCV wheel can write (they lack an H.264 encoder). VLC, mpv, QuickTime
# and the Windows player open it; web browsers do not.
CODEC = "mp4v"
# Frames buffered to estimate the frame rate.
_PROBE_FRAMES = 32
# Frames in a row that cannot be decoded after which the video has ended: beyond and within the number of frames that
# the container names, which may be wrong.
_MOST_DAMAGED = (64, 1000)
# Longer gaps between stamps are cut from the video.
_MAX_GAP_S = 5.0


def read_video(
    path: str | Path,
    frame_id: str = "camera",
    reject: Callable[[str], None] | None = None,
    max_mpx: float = math.inf,
) -> Iterator[Frame]:
    """The frames of a video file in order, RGB, stamped with the presentation time (0 at the start), indices from 0.

    A frame whose time does not increase gets the previous stamp plus 1 / fps. A frame that cannot be decoded is skipped
    together with its index, and reading goes on behind it.

    reject: called with a text for each frame that was skipped; default: the log.

    Raises FileNotFoundError, or ValueError for a file that is not a video, has frames of more than `max_mpx`
    megapixels, has no frame, or has neither increasing times nor a frame rate.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    reject = reject or _log.warning
    # Absolute, because FFmpeg takes what is before a colon in a relative name for a protocol (12:00:00.mp4).
    capture = cv2.VideoCapture(str(Path(path).absolute()))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path}: expected a video file, got one that OpenCV cannot open")
        height, width = (capture.get(name) for name in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH))
        check_size(round(height), round(width), max_mpx)
        fps = capture.get(cv2.CAP_PROP_FPS)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # some containers do not know it: 0 or negative
        index, stamp_ns, last_index, failures = 0, -1, -1, 0
        while True:
            read, image = capture.read()
            if not read:
                # The end looks like a frame that cannot be decoded.
                failures += 1
                if failures > _MOST_DAMAGED[index + failures <= count]:
                    break
                continue
            for missing in range(index, index + failures):
                reject(f"{path}: frame {missing} cannot be decoded")
            index, failures = index + failures, 0
            time_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if time_ns <= stamp_ns:
                if not fps > 0:
                    raise ValueError(f"{path}: expected increasing times or a frame rate, got {fps} frames/s")
                time_ns = stamp_ns + round((index - last_index) * 1e9 / fps)
            stamp_ns, last_index = time_ns, index
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp_ns, frame_id, index)
            index += 1
        if last_index < 0:
            raise ValueError(f"{path}: expected at least one decodable frame, got none")
        if failures > _MOST_DAMAGED[True]:
            reject(f"{path}: nothing can be decoded behind frame {last_index}, expected {count:.0f} frames")
            return
        for missing in range(index, min(round(count), index + failures)):
            reject(f"{path}: frame {missing} cannot be decoded")
    finally:
        capture.release()


class VideoWriter:
    """Writes an MP4 file (codec: `CODEC`) frame by frame; a context manager.

    The frame rate comes from the median interval of the first stamps. Missing frames repeat the previous frame, so the
    video plays at the speed of the stamps. The codec needs even sides: an odd height or width is padded by repeating
    the last row or column. Frames of another size than the first are letterboxed to it. Without a frame no file is
    created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: cv2.VideoWriter | None = None
        self._pending: list[tuple[np.ndarray, int]] = []
        self._size_hw: tuple[int, int] | None = None
        self._fps = 1.0
        self._last: tuple[np.ndarray, int] | None = None
        self._lag = 0.0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, image: np.ndarray, stamp_ns: int) -> None:
        """image: (H, W, 3) uint8, RGB, else ValueError. Raises OSError if the file cannot be written."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{self.path}: expected an (H, W, 3) uint8 frame, got {image.shape} {image.dtype}")
        size_hw = image.shape[0], image.shape[1]
        self._size_hw = self._size_hw or size_hw
        if size_hw != self._size_hw:
            image = letterboxed(image, self._size_hw)
        if self._writer is not None:
            self._encode(self._writer, image, stamp_ns)
            return
        self._pending.append((image, stamp_ns))
        if len(self._pending) == _PROBE_FRAMES:
            self._start(self._size_hw)

    def close(self) -> None:
        """Ends the file. Raises OSError if it cannot be written."""
        if self._pending:
            assert self._size_hw is not None
            self._start(self._size_hw)
        if self._writer is not None:
            self._writer.release()

    def _start(self, size_hw: tuple[int, int]) -> None:
        height, width = (side + side % 2 for side in size_hw)
        fourcc = cv2.VideoWriter.fourcc(*CODEC)
        pending, self._pending = self._pending, []
        self._fps = frame_rate([stamp_ns for _, stamp_ns in pending])
        path = str(self.path.absolute())  # as in `read_video`
        self._writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, fourcc, self._fps, (width, height))
        if not self._writer.isOpened():
            raise OSError(f"{self.path}: cannot write a {width} x {height} MP4 ({CODEC}) at {self._fps} frames/s here")
        for image, stamp_ns in pending:
            self._encode(self._writer, image, stamp_ns)

    def _encode(self, writer: cv2.VideoWriter, image: np.ndarray, stamp_ns: int) -> None:
        height, width = image.shape[:2]
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        bgr = cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._last is not None:
            last_bgr, last_ns = self._last
            gap_s = (stamp_ns - last_ns) / 1e9
            # Frames by which the video lags behind the stamps, including fractions from earlier gaps.
            self._lag += gap_s * self._fps - 1 if 0 < gap_s <= _MAX_GAP_S else 0.0
            while self._lag > 0.5:
                writer.write(last_bgr)
                self._lag -= 1
            self._lag = max(self._lag, -1.0)
        writer.write(bgr)
        self._last = bgr, stamp_ns


def letterboxed(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Scales image (h, w, 3) uint8 to fit into size_hw at its aspect ratio, centred on black: (H, W, 3) uint8."""
    height, width = size_hw
    scale = min(height / image.shape[0], width / image.shape[1])
    # Rounding must not give a side of 0.
    new_h, new_w = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_h, left : left + new_w] = resized
    return canvas


def frame_rate(stamps_ns: list[int]) -> float:
    """Frames per second from the median of the positive intervals, clipped to [0.1, 240]; 1 without such an interval.

    Rounded to 0.01, because MPEG-4 Part 2 stores the rate as a fraction of 16-bit numbers.
    """
    intervals = np.diff(np.asarray(stamps_ns, np.int64))
    intervals = intervals[intervals > 0]
    if not intervals.size:
        return 1.0
    return round(float(np.clip(1e9 / float(np.median(intervals)), 0.1, 240.0)), 2)
