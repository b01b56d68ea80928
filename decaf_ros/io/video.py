"""Video files by OpenCV: a clip's frames, and an MP4 of drawn ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from decaf_ros.types import Frame

# MPEG-4 Part 2: the one MP4 codec that every OpenCV wheel can write (they come without an H.264 encoder). VLC, mpv,
# QuickTime and the Windows player open it; web browsers do not.
CODEC = "mp4v"
_PROBE_FRAMES = 32
# A gap that is longer is cut out of the film.
_GAP_S = 5.0


def read_video(path: str | Path, frame_id: str = "camera") -> Iterator[Frame]:
    """The frames of a video file in order, RGB, stamped with the file's own time (0 at its start), indices from 0.

    Where the file's times do not increase, a frame follows the one before by 1 / fps. Raises FileNotFoundError, or
    ValueError for a file that is no video, holds no frame or says neither time nor rate.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path}: expected a video file, got one that OpenCV cannot open")
        fps = capture.get(cv2.CAP_PROP_FPS)
        index, stamp_ns = 0, -1
        while True:
            read, image = capture.read()
            if not read:
                break
            time_ns = round(capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if time_ns <= stamp_ns:
                if not fps > 0:
                    raise ValueError(f"{path}: expected times that increase or a frame rate, got fps {fps}")
                time_ns = stamp_ns + round(1e9 / fps)
            stamp_ns = time_ns
            yield Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), stamp_ns, frame_id, index)
            index += 1
        if index == 0:
            raise ValueError(f"{path}: expected at least one frame, got a video without any that can be decoded")
    finally:
        capture.release()


class VideoWriter:
    """An MP4 file (codec: `CODEC`) that is written frame by frame; a context manager.

    Its frame rate is that of the median interval of the first stamps; where frames are missing the one before stands
    still, so that the film runs at the speed of the stamps. An odd height or width is made even by repeating the last
    row or column, as the codec needs. A film has one size: a frame of another one than the first frame's is fitted into
    it, with black bars. No file is left where no frame was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._writer: cv2.VideoWriter | None = None
        self._waiting: list[tuple[np.ndarray, int]] = []
        self._shape: tuple[int, ...] = ()
        self._fps = 1.0
        self._last: tuple[np.ndarray, int] | None = None
        self._lag = 0.0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, image: np.ndarray, stamp_ns: int) -> None:
        """image: (H, W, 3) uint8, RGB.

        Raises ValueError for another form, OSError where the file cannot be written.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"{self.path}: expected an (H, W, 3) uint8 frame, got {image.shape} {image.dtype}")
        self._shape = self._shape or image.shape
        if image.shape != self._shape:
            image = letterboxed(image, self._shape[:2])
        if self._writer is not None:
            self._encode(image, stamp_ns)
            return
        self._waiting.append((image, stamp_ns))
        if len(self._waiting) == _PROBE_FRAMES:
            self._start()

    def close(self) -> None:
        """Ends the file. Raises OSError where it cannot be written."""
        if self._waiting:
            self._start()
        if self._writer is not None:
            self._writer.release()

    def _start(self) -> None:
        height, width = (side + side % 2 for side in self._shape[:2])
        fourcc = cv2.VideoWriter_fourcc(*CODEC)
        waiting, self._waiting = self._waiting, []
        self._fps = frame_rate([stamp_ns for _, stamp_ns in waiting])
        self._writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, fourcc, self._fps, (width, height))
        if not self._writer.isOpened():
            raise OSError(f"{self.path}: cannot write a {width} x {height} MP4 ({CODEC}) at {self._fps} frames/s here")
        for image, stamp_ns in waiting:
            self._encode(image, stamp_ns)

    def _encode(self, image: np.ndarray, stamp_ns: int) -> None:
        height, width = image.shape[:2]
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        bgr = cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._last is not None:
            before, before_ns = self._last
            gap_s = (stamp_ns - before_ns) / 1e9
            # Frames by which the film is behind the stamps, fractions of earlier gaps included.
            self._lag += gap_s * self._fps - 1 if 0 < gap_s <= _GAP_S else 0.0
            while self._lag > 0.5:
                self._writer.write(before)
                self._lag -= 1
            self._lag = max(self._lag, -1.0)
        self._writer.write(bgr)
        self._last = bgr, stamp_ns


def letterboxed(image: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """image (h, w, 3) uint8, as large as fits into size_hw in its proportions, in the middle of black: (H, W, 3)."""
    height, width = size_hw
    scale = min(height / image.shape[0], width / image.shape[1])
    # Rounding must not make a side vanish.
    new_h, new_w = (max(1, round(side * scale)) for side in image.shape[:2])
    resized = cv2.resize(image, (new_w, new_h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_h, left : left + new_w] = resized
    return canvas


def frame_rate(stamps_ns: list[int]) -> float:
    """Frames a second by the median of the positive intervals, within [0.1, 240]; 1 where there is none.

    Rounded to 0.01, since MPEG-4 Part 2 keeps the rate as a fraction of 16-bit numbers.
    """
    intervals = np.diff(np.asarray(stamps_ns, np.int64))
    intervals = intervals[intervals > 0]
    return round(float(np.clip(1e9 / np.median(intervals), 0.1, 240.0)), 2) if intervals.size else 1.0
