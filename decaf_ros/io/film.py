"""Writes films that web browsers play: VP9 in WebM, encoded by PyAV (FFmpeg and libvpx)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import cv2
import numpy as np

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

CODEC = "libvpx-vp9"
# Constant quality (0 best to 63) at the speed of a live encoder: about 200 frames/s of 640x480 on one core.
_OPTIONS = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "30", "b": "0"}
# WebM counts milliseconds.
_TIME_BASE = Fraction(1, 1000)
# Frames buffered to estimate the frame rate.
_PROBE_FRAMES = 32
# Longer gaps between stamps are cut from the film.
_MAX_GAP_MS = 5000


class FilmError(OSError):
    """A film that is not on the disk as it was written."""


class VideoWriter:
    """Writes a WebM file (codec: `CODEC`) frame by frame; a context manager.

    Each frame is shown at its stamp, to the millisecond and counted from the first. A gap of more than five seconds, or
    a stamp that does not increase, gives the interval before. Frames of another size than the first are letterboxed to
    it. Without a frame no file is created.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._pending: list[tuple[np.ndarray, int]] = []
        self._size_hw: tuple[int, int] | None = None
        self._step_ms = 0
        self._last: tuple[int, int] | None = None
        self._written = 0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        try:
            self.close()
        except OSError:
            if kind is None:  # else the first error counts
                raise

    def write(self, image: np.ndarray, stamp_ns: int) -> None:
        """image: (H, W, 3) uint8, RGB, else ValueError. Raises OSError if the file cannot be written."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{self.path}: expected an (H, W, 3) uint8 frame, got {image.shape} {image.dtype}")
        size_hw = image.shape[0], image.shape[1]
        self._size_hw = self._size_hw or size_hw
        if size_hw != self._size_hw:
            image = letterboxed(image, self._size_hw)
        if self._container is not None:
            self._encode(image, stamp_ns)
            return
        self._pending.append((image, stamp_ns))
        if len(self._pending) == _PROBE_FRAMES:
            self._start()

    def close(self) -> None:
        """Ends the file, opens it again and counts its frames. Raises OSError if it is not all there."""
        if self._pending:
            self._start()
        if self._container is None or self._stream is None:
            return
        container, self._container = self._container, None
        try:
            try:
                container.mux(self._stream.encode(None))
            finally:
                container.close()
        except av.FFmpegError as error:
            raise self._failure(error) from error
        count = count_frames(self.path)
        if count != self._written:
            raise FilmError(f"{self.path}: expected {self._written} frames in the film, got {count}; is the disk full?")

    def _start(self) -> None:
        assert self._size_hw is not None
        pending, self._pending = self._pending, []
        fps = frame_rate([stamp_ns for _, stamp_ns in pending])
        self._step_ms = max(1, round(1000 / fps))
        try:
            # Absolute, because FFmpeg takes what is before a colon in a relative name for a protocol (12:00:00.webm).
            self._container = av.open(str(self.path.absolute()), "w", format="webm")
            rate = Fraction(fps).limit_denominator(1000)
            stream = cast("VideoStream", self._container.add_stream(CODEC, rate=rate, options=_OPTIONS))
        except (av.FFmpegError, ValueError) as error:  # ValueError: an FFmpeg without this encoder
            raise self._failure(error) from error
        stream.height, stream.width = self._size_hw
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = _TIME_BASE
        self._stream = stream
        for image, stamp_ns in pending:
            self._encode(image, stamp_ns)

    def _encode(self, image: np.ndarray, stamp_ns: int) -> None:
        assert self._container is not None and self._stream is not None
        place_ms = 0
        if self._last is not None:
            last_ns, last_ms = self._last
            gap_ms = round((stamp_ns - last_ns) / 1e6)
            if 0 < gap_ms <= _MAX_GAP_MS:
                self._step_ms = gap_ms
            place_ms = last_ms + self._step_ms
        self._last = stamp_ns, place_ms
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = place_ms, _TIME_BASE
        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            raise self._failure(error) from error
        self._written += 1

    def _failure(self, error: Exception) -> OSError:
        width, height = reversed(self._size_hw or (0, 0))
        return FilmError(f"{self.path}: cannot write a film of {width} x {height} px (WebM, VP9): {error}")


def count_frames(path: str | Path) -> int:
    """Number of frames in a film, without decoding them. Raises FilmError for a file that is not a film."""
    try:
        with av.open(str(Path(path).absolute())) as container:
            return sum(packet.size > 0 for packet in container.demux(video=0))
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video in it
        raise FilmError(f"{path}: expected a film, got a file that cannot be read back: {error}") from error


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

    Rounded to 0.01.
    """
    intervals = np.diff(np.asarray(stamps_ns, np.int64))
    intervals = intervals[intervals > 0]
    if not intervals.size:
        return 1.0
    return round(float(np.clip(1e9 / float(np.median(intervals)), 0.1, 240.0)), 2)
