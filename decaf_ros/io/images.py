"""sensor_msgs Image and CompressedImage to RGB arrays. Knows no ROS type: any object with the messages' fields will do.

Everything is checked before anything is decoded, so a message that lies about itself is a ValueError that says what
was expected and what came, never a garbled picture.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.image import image_to_cvimage

# Encoding -> bytes of one pixel. The colour, mono, Bayer and 4:2:2 encodings of sensor_msgs/image_encodings.
ENCODINGS: dict[str, int] = {
    "mono8": 1,
    "mono16": 2,
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "rgb16": 6,
    "bgr16": 6,
    "rgba16": 8,
    "bgra16": 8,
    **{f"bayer_{pattern}8": 1 for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{pattern}16": 2 for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    "yuv422": 2,
    "uyvy": 2,
    "yuv422_yuy2": 2,
    "yuyv": 2,
}
_CHROMA_PAIRS = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")

# Start of the last scan and end of the image. Coded data cannot hold either, since every 0xff in it is escaped.
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND"


class _PackedImage(NamedTuple):
    """The fields of sensor_msgs/Image that rosbags reads; rows without padding."""

    height: int
    width: int
    encoding: str
    is_bigendian: bool
    data: np.ndarray


def check_image(height: int, width: int, encoding: str, step: int, data_length: int) -> int:
    """Checks the header fields of a sensor_msgs/Image against its data; returns the bytes of a row without padding.

    Raises ValueError for an empty image, an encoding that is not in `ENCODINGS`, a `step` that is shorter than a
    row, and data whose length is not height * step.
    """
    if height < 1 or width < 1:
        raise ValueError(f"image: expected a height and width of at least 1, got {height} x {width}")
    if encoding not in ENCODINGS:
        raise ValueError(f"image: expected an encoding out of {', '.join(ENCODINGS)}; got {encoding!r}")
    if encoding in _CHROMA_PAIRS and width % 2:
        raise ValueError(f"image: expected an even width for {encoding}, got {width}")
    row_bytes = width * ENCODINGS[encoding]
    if step < row_bytes:
        raise ValueError(f"image: expected a step of at least {row_bytes} bytes ({width} px of {encoding}), got {step}")
    if data_length != height * step:
        raise ValueError(
            f"image: expected {height * step} bytes of data ({height} rows of step {step}), got {data_length}"
        )
    return row_bytes


def image_to_rgb(message: Any) -> np.ndarray:
    """A sensor_msgs/Image (any object with its fields) as (height, width, 3) uint8, RGB; the caller owns the array.

    Row padding (`step`) and byte order are honoured; 16 bits are scaled to 8. Raises ValueError as `check_image` does.
    """
    height, width, encoding = message.height, message.width, message.encoding
    data = np.frombuffer(message.data, np.uint8)
    row_bytes = check_image(height, width, encoding, message.step, data.size)
    rows = data.reshape(height, message.step)[:, :row_bytes]
    if encoding == "rgb8":
        return rows.reshape(height, width, 3).copy()
    packed = _PackedImage(height, width, encoding, bool(message.is_bigendian), np.ascontiguousarray(rows))
    try:
        return np.ascontiguousarray(image_to_cvimage(packed, "rgb8"))
    except cv2.error as error:
        raise ValueError(f"image: cannot convert {width} x {height} {encoding} to RGB: {error.err}") from error


def compressed_to_rgb(message: Any) -> np.ndarray:
    """A sensor_msgs/CompressedImage (any object with its fields) as (height, width, 3) uint8, RGB.

    Raises ValueError where the data is empty, cut off (JPEG, PNG), or no picture (a compressedDepth image is none).
    """
    data = np.frombuffer(message.data, np.uint8)
    if data.size == 0:
        raise ValueError(f"compressed image: expected data, got none (format {message.format!r})")
    raw = data.tobytes()
    if (raw.startswith(_JPEG) and raw.rfind(_JPEG_END) < raw.rfind(_JPEG_SCAN)) or (
        raw.startswith(_PNG) and _PNG_END not in raw
    ):
        raise ValueError(f"compressed image: expected a whole image, got {data.size} bytes without its end marker")
    try:
        # The stored orientation is for photographs; a camera's pixels stay where its calibration says they are.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"compressed image: cannot decode {data.size} bytes: {error.err}") from error
    if image is None:
        raise ValueError(
            f"compressed image: expected a JPEG, PNG or other picture, got {data.size} bytes that OpenCV cannot decode "
            f"(format {message.format!r})"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def message_to_rgb(message: Any) -> np.ndarray:
    """`compressed_to_rgb` for a message with a `format` field, else `image_to_rgb`."""
    return compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message)
