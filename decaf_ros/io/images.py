"""Converts sensor_msgs Image and CompressedImage to RGB arrays. Needs no ROS types, only objects with their fields.

The fields of a raw image are checked before decoding: an inconsistent message raises ValueError and never gives a
garbled image.
"""

from __future__ import annotations

import io
import math
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image
from rosbags.image import image_to_cvimage

from decaf_ros.types.checks import quoted

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
GREY_ENCODINGS = ("mono8", "mono16", "8uc1")
# Channels by the name of an encoding without its bits, and the reverse for images whose encoding is not known.
_CHANNELS = {"mono": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
_CHANNELS |= {f"bayer_{pattern}": 1 for pattern in ("rggb", "bggr", "gbrg", "grbg")}
_BY_CHANNELS = {1: "mono", 3: "bgr", 4: "bgra"}
# Generic encodings of numbers (16UC1, 32FC1), in lower case.
_NO_PICTURE = re.compile(r"(8|16|32|64)[usf]c\d+")

# JPEG start of scan and end of image. Entropy-coded data contains neither, because each 0xff in it is escaped.
_JPEG, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG, _PNG_END = b"\x89PNG", b"IEND"


class PackedImage(NamedTuple):
    """A checked image with the fields of sensor_msgs/Image: no padding, in this machine's byte order.

    data: contiguous uint8, `height` rows of `step` bytes.
    """

    height: int
    width: int
    encoding: str
    is_bigendian: bool
    step: int
    data: np.ndarray


def packed(height: int, width: int, encoding: str, data: np.ndarray) -> PackedImage:
    """data: contiguous pixels in this machine's byte order, of any shape and dtype. encoding: one of `ENCODINGS`."""
    return PackedImage(
        height, width, encoding, sys.byteorder == "big", width * ENCODINGS[encoding], data.reshape(-1).view(np.uint8)
    )


# Makes (H, W, 3) uint8, RGB, of a checked image. The array shares no memory with it. Raises ValueError.
Convert = Callable[[PackedImage], np.ndarray]


class _File(NamedTuple):
    """An image file with the fields of sensor_msgs/CompressedImage."""

    format: str
    data: bytes


def check_image(height: int, width: int, encoding: str, step: int, data_length: int) -> int:
    """Checks the layout fields of a sensor_msgs/Image. Returns the bytes per row without padding.

    Raises ValueError for an empty image, an encoding not in `ENCODINGS`, an odd width with a 4:2:2 encoding, a `step`
    shorter than a row, or a data length other than height * step.
    """
    if height < 1 or width < 1:
        raise ValueError(f"image: expected a height and width of at least 1, got {height} x {width}")
    if encoding not in ENCODINGS:
        raise ValueError(f"image: expected one of the encodings {', '.join(ENCODINGS)}; got {quoted(encoding)}")
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


def check_size(height: int, width: int, max_mpx: float) -> None:
    """Raises ValueError for an image of more than `max_mpx` megapixels."""
    if height * width > max_mpx * 1e6:
        raise ValueError(
            f"image: expected at most {max_mpx:g} megapixels (node.max_image_mpx), got {width} x {height} px"
        )


def builtin_rgb(image: PackedImage) -> np.ndarray:
    """The conversion that needs no ROS, see `Convert`. 16 bits are scaled to 8 and rounded, as cv_bridge does."""
    try:
        if image.encoding == "rgb8":
            pixels = image.data.reshape(image.height, image.width, 3).copy()
        elif image.encoding.endswith("16"):
            wide = image_to_cvimage(image, "rgb16")  # type: ignore[arg-type]  # duck-typed
            pixels = cv2.convertScaleAbs(wide, alpha=255 / 65535)
        else:
            pixels = image_to_cvimage(image, "rgb8")  # type: ignore[arg-type]  # duck-typed
    except cv2.error as error:
        raise ValueError(
            f"image: cannot convert {image.width} x {image.height} px of {image.encoding} to RGB: {error.err}"
        ) from error
    return np.ascontiguousarray(pixels)


def image_to_rgb(message: Any, max_mpx: float = math.inf, convert: Convert = builtin_rgb) -> np.ndarray:
    """Converts a sensor_msgs/Image (any object with its fields) to (H, W, 3) uint8, RGB. The array is a copy.

    Respects row padding (`step`) and byte order; scales 16 bits to 8. Raises ValueError, see `check_image` and
    `check_size`. convert: gets the image after these checks.
    """
    height, width, encoding = message.height, message.width, message.encoding
    check_size(height, width, max_mpx)
    data = np.frombuffer(message.data, np.uint8)
    row_bytes = check_image(height, width, encoding, message.step, data.size)
    rows = np.ascontiguousarray(data.reshape(height, message.step)[:, :row_bytes])
    if encoding.endswith("16") and bool(message.is_bigendian) != (sys.byteorder == "big"):
        rows = rows.view(np.uint16).byteswap()
    return convert(packed(height, width, encoding, rows))


def compressed_to_rgb(message: Any, warn: Callable[[str], None] | None = None, max_mpx: float = math.inf) -> np.ndarray:
    """Converts a sensor_msgs/CompressedImage (any object with its fields) to (H, W, 3) uint8, RGB.

    Honours the source encoding in `format`, see `_pixel_encoding`; scales 16 bits to 8.

    Args:
        warn: called with a text if the picture can be read, but not well.
        max_mpx: a larger picture is refused by its header: a few kilobytes can unpack to gigabytes.

    Raises:
        ValueError: too large (`check_size`), empty data, a truncated JPEG or PNG, data that OpenCV cannot decode
            (compressedDepth), or an image that is no picture, such as a depth image.
    """
    raw = bytes(message.data)
    _check_header(raw, message.format, max_mpx)
    image = _decoded(raw, message.format)
    check_size(image.shape[0], image.shape[1], max_mpx)
    encoding = _pixel_encoding(message.format, image)
    if encoding.startswith("bayer") and raw.startswith(_JPEG) and warn is not None:
        warn(f"compressed image: JPEG blurs the mosaic of {encoding}: colours are wrong at edges; record PNG or colour")
    height, width = image.shape[:2]
    return builtin_rgb(packed(height, width, encoding, np.ascontiguousarray(image)))


def picture_to_rgb(data: bytes, max_mpx: float = math.inf) -> np.ndarray:
    """Decodes an image file to (H, W, 3) uint8, RGB; ignores an EXIF orientation. Raises as `compressed_to_rgb`."""
    return compressed_to_rgb(_File("", data), max_mpx=max_mpx)


def _check_header(raw: bytes, text: str, max_mpx: float) -> None:
    """Raises ValueError for a picture that its header says is too large, or whose header cannot be read. text: the
    format, for errors."""
    if not raw or not math.isfinite(max_mpx):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked here
            with Image.open(io.BytesIO(raw)) as picture:
                width, height = picture.size
    except Image.DecompressionBombError as error:  # far beyond any limit that makes sense
        raise ValueError(
            f"image: expected at most {max_mpx:g} megapixels (node.max_image_mpx), got more: {error}"
        ) from error
    except Exception as error:  # Pillow raises anything for damaged data
        raise ValueError(
            f"compressed image: expected a picture with a header, such as JPEG or PNG, got {len(raw)} bytes "
            f"(format {quoted(text)}; {type(error).__name__})"
        ) from error
    check_size(height, width, max_mpx)


def _decoded(raw: bytes, text: str) -> np.ndarray:
    """The pixels as they are stored. text: the format, for errors."""
    data = np.frombuffer(raw, np.uint8)
    if data.size == 0:
        raise ValueError(f"compressed image: expected data, got none (format {quoted(text)})")
    if (raw.startswith(_JPEG) and raw.rfind(_JPEG_END) < raw.rfind(_JPEG_SCAN)) or (
        raw.startswith(_PNG) and _PNG_END not in raw
    ):
        raise ValueError(f"compressed image: expected a whole image, got {data.size} bytes without its end marker")
    try:
        # Unchanged: the order of channels and the number of bits are interpreted below, and an EXIF orientation is
        # ignored, because the camera calibration refers to the stored pixel grid.
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"compressed image: cannot decode {data.size} bytes: {error.err}") from error
    if image is None:
        raise ValueError(
            f"compressed image: expected a JPEG, PNG or other image, got {data.size} bytes that OpenCV cannot decode "
            f"(format {quoted(text)})"
        )
    return image


def source_encoding(message: Any) -> str:
    """The encoding of the camera's image, in lower case: `encoding` of an Image; of a CompressedImage, what `format`
    has before the semicolon, or "" if there is none."""
    if not hasattr(message, "format"):
        return str(message.encoding).lower()
    source, semicolon, _ = message.format.partition(";")
    return source.strip().lower() if semicolon else ""


def _pixel_encoding(text: str, image: np.ndarray) -> str:
    """The encoding of a decoded image, as image_transport's publisher of compressed images writes `format`.

    It is "SOURCE; CODEC compressed TARGET". For a colour source in JPEG or PNG the publisher converts to BGR, which is
    what OpenCV writes and reads, and TARGET says so (bgr8, bgr16). Otherwise (TIFF, mono, Bayer) TARGET is empty and
    the pixels are as in the camera's image: a TIFF of rgb8 then has red where OpenCV's readers expect blue, and a Bayer
    image is still a mosaic. Its subscriber takes everything without "compressed bgr" for RGB, which swaps the colours
    of a TIFF of bgr8; here TARGET counts, and without it SOURCE. A `format` without a semicolon ("jpeg", "png"), or of
    unknown encodings, says nothing about the order: then it is OpenCV's.

    image: as decoded: (H, W) or (H, W, 1, 3 or 4). Raises ValueError for a source that is no picture.
    """
    channels = 1 if image.ndim == 2 else image.shape[2]
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"compressed image: expected 8 or 16 bits, got {image.dtype} (format {quoted(text)})")
    bits = 8 * image.dtype.itemsize
    source, semicolon, rest = text.lower().partition(";")
    source, target = source.strip(), rest.partition("compressed")[2].strip()
    if semicolon and _NO_PICTURE.fullmatch(source) and source not in ("8uc1", "8uc3", "8uc4"):
        raise ValueError(
            f"compressed image: expected a colour or grey image, got {quoted(source)}, such as a depth image"
        )
    for encoding in (target, source) if semicolon else ():
        name = re.sub(r"(8|16)$", "", encoding)
        if _CHANNELS.get(name) == channels:
            return f"{name}{bits}"
    if channels not in _BY_CHANNELS:
        raise ValueError(f"compressed image: expected 1, 3 or 4 channels, got {channels} (format {quoted(text)})")
    return f"{_BY_CHANNELS[channels]}{bits}"


def message_to_rgb(
    message: Any,
    warn: Callable[[str], None] | None = None,
    max_mpx: float = math.inf,
    convert: Convert = builtin_rgb,
) -> np.ndarray:
    """Converts a CompressedImage (recognised by its `format` field) or an Image; (H, W, 3) uint8, RGB. warn, max_mpx:
    see `compressed_to_rgb`. convert: for an Image."""
    if hasattr(message, "format"):
        return compressed_to_rgb(message, warn, max_mpx)
    return image_to_rgb(message, max_mpx, convert)
