"""Converts sensor_msgs Image and CompressedImage to RGB arrays. Needs no ROS types, only objects with their fields.

The fields of a raw image are checked before decoding: an inconsistent message raises ValueError and never gives a
garbled image. The `format` of a compressed image is not evaluated.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.image import image_to_cvimage

# Bytes per pixel of the colour, mono, Bayer and 4:2:2 encodings of sensor_msgs/image_encodings.
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
# 4:2:2: each two neighbouring pixels share their chroma.
_CHROMA_PAIRS = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")

# JPEG start of scan and end of image. Entropy-coded data contains neither, because each 0xff in it is escaped.
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND"


class _PackedImage(NamedTuple):
    """The fields of sensor_msgs/Image that rosbags reads. data: rows without padding."""

    height: int
    width: int
    encoding: str
    is_bigendian: bool
    data: np.ndarray


def check_image(height: int, width: int, encoding: str, step: int, data_length: int) -> int:
    """Checks the layout fields of a sensor_msgs/Image. Returns the bytes per row without padding.

    Raises ValueError for an empty image, an encoding not in `ENCODINGS`, an odd width with a 4:2:2 encoding, a `step`
    shorter than a row, or a data length other than height * step.
    """
    if height < 1 or width < 1:
        raise ValueError(f"image: expected a height and width of at least 1, got {height} x {width}")
    if encoding not in ENCODINGS:
        raise ValueError(f"image: expected one of the encodings {', '.join(ENCODINGS)}; got {encoding!r}")
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
    """Converts a sensor_msgs/Image (any object with its fields) to (H, W, 3) uint8, RGB. The array is a copy.

    Respects row padding (`step`) and byte order; scales 16 bits to 8. Raises ValueError, see `check_image`.
    """
    height, width, encoding = message.height, message.width, message.encoding
    data = np.frombuffer(message.data, np.uint8)
    row_bytes = check_image(height, width, encoding, message.step, data.size)
    rows = data.reshape(height, message.step)[:, :row_bytes]
    if encoding == "rgb8":
        pixels: np.ndarray = rows.reshape(height, width, 3).copy()
        return pixels
    packed = _PackedImage(height, width, encoding, bool(message.is_bigendian), np.ascontiguousarray(rows))
    try:
        return np.ascontiguousarray(image_to_cvimage(packed, "rgb8"))  # type: ignore[arg-type]  # duck-typed
    except cv2.error as error:
        raise ValueError(f"image: cannot convert {width} x {height} {encoding} to RGB: {error.err}") from error


def compressed_to_rgb(message: Any) -> np.ndarray:
    """Converts a sensor_msgs/CompressedImage (any object with its fields) to (H, W, 3) uint8, RGB.

    Raises ValueError for empty data, a truncated JPEG or PNG, or data that OpenCV cannot decode (compressedDepth).
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
        # Ignore an EXIF orientation: the camera calibration refers to the stored pixel grid.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise ValueError(f"compressed image: cannot decode {data.size} bytes: {error.err}") from error
    if image is None:
        raise ValueError(
            f"compressed image: expected a JPEG, PNG or other image, got {data.size} bytes that OpenCV cannot decode "
            f"(format {message.format!r})"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def message_to_rgb(message: Any) -> np.ndarray:
    """Converts a CompressedImage (recognised by its `format` field) or an Image; (H, W, 3) uint8, RGB."""
    return compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message)
