"""Reads video files with OpenCV."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2

from decaf_ros.io.images import check_size
from decaf_ros.types import Frame

_log = logging.getLogger(__name__)

# Frames in a row that cannot be decoded after which the video has ended: beyond and within the number of frames that
# the container names, which may be wrong.
_MOST_DAMAGED = (64, 1000)


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
