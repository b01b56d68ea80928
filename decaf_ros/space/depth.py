"""Depth images of messages, in metres. Needs no ROS types, only objects with their fields.

| Encoding | Unit | Invalid |
|---|---|---|
| 16UC1 | millimetres | 0 |
| 32FC1 | metres | NaN, infinite, 0 or less |

A CompressedImage of compressed_depth_image_transport has a header of 12 bytes and then a PNG or RVL of 16 bits. For
16UC1 these are the millimetres. For 32FC1 a value v is the depth a / (v - b) in metres, with a and b from the header,
and 0 is invalid.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import cv2
import numpy as np

from decaf_ros.space.rvl import decode_rvl
from decaf_ros.types.checks import quoted

# Bytes per pixel.
ENCODINGS = {"16UC1": 2, "32FC1": 4}
_HEADER = struct.Struct("<iff")  # format (0: inverse depth), a, b
_RVL_SIZE = struct.Struct("<II")  # width, height
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
_PNG_SIZE = struct.Struct(">II")  # width, height; after the signature and the head of the first chunk
_PNG_SIZE_AT = 16


def message_depth(message: Any, max_mpx: float = 50.0) -> np.ndarray:
    """Depth of an Image, or of a CompressedImage (recognised by its `format`): (H, W) float32, metres, NaN invalid.

    max_mpx: larger images are refused by their header, as a few bytes can unpack to gigabytes. Raises ValueError for
    another encoding or format, a size that does not fit the data, and damaged data.
    """
    if hasattr(message, "format"):
        return _compressed(bytes(message.data), message.format, max_mpx)
    return _raw(message, max_mpx)


def _raw(message: Any, max_mpx: float) -> np.ndarray:
    height, width, step = message.height, message.width, message.step
    _check_size(height, width, max_mpx)
    size = ENCODINGS[_encoding(message.encoding)]
    data = np.frombuffer(message.data, np.uint8)
    if step < width * size:
        raise ValueError(f"depth: expected a step of at least {width * size} bytes ({width} px), got {step}")
    if data.size != height * step:
        raise ValueError(f"depth: expected {height * step} bytes ({height} rows of step {step}), got {data.size}")
    rows = np.ascontiguousarray(data.reshape(height, step)[:, : width * size])
    values = rows.view(np.uint16 if size == 2 else np.float32)
    if bool(message.is_bigendian) != (sys.byteorder == "big"):
        values = values.byteswap()
    return _millimetres(values) if size == 2 else _valid(values)


def _compressed(data: bytes, text: str, max_mpx: float) -> np.ndarray:
    source, _, rest = text.partition(";")
    encoding = _encoding(source.strip())
    words = rest.split()
    if words and words[0] != "compressedDepth":
        raise ValueError(f"depth: expected the format 'ENCODING; compressedDepth png' or rvl, got {quoted(text)}")
    # Older publishers name no codec: they know PNG only.
    codec = words[1] if len(words) > 1 else "png"
    if codec not in ("png", "rvl"):
        raise ValueError(f"depth: expected the codec png or rvl, got {quoted(codec)} (format {quoted(text)})")
    if len(data) <= _HEADER.size:
        raise ValueError(f"depth: expected more than the {_HEADER.size} bytes of a header, got {len(data)}")
    _, a, b = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    values = _png(body, max_mpx) if codec == "png" else _rvl(body, max_mpx)
    if encoding == "16UC1":
        return _millimetres(values)
    if not (math.isfinite(a) and math.isfinite(b) and a > 0):
        raise ValueError(f"depth: expected finite quantisation parameters, the first above 0, got {a:g} and {b:g}")
    # A value above 0 and at most b is beyond the farthest depth of the code.
    levels = values.astype(np.float32) - np.float32(b)
    metres = np.full(values.shape, np.nan, np.float32)
    np.divide(np.float32(a), levels, out=metres, where=(values > 0) & (levels > 0))
    return metres


def _png(data: bytes, max_mpx: float) -> np.ndarray:
    """(H, W) uint16."""
    if not data.startswith(_PNG) or len(data) < _PNG_SIZE_AT + _PNG_SIZE.size:
        raise ValueError(f"depth: expected a PNG after the header, got {len(data)} other bytes")
    if _PNG_END not in data:
        raise ValueError(f"depth: expected a whole PNG, got {len(data)} bytes without its end")
    width, height = _PNG_SIZE.unpack_from(data, _PNG_SIZE_AT)
    _check_size(height, width, max_mpx)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"depth: cannot decode a PNG of {len(data)} bytes: {error.err}") from error
    if image is None:
        raise ValueError(f"depth: expected a PNG, got {len(data)} bytes that OpenCV cannot decode")
    if image.dtype != np.uint16 or image.ndim != 2:
        raise ValueError(f"depth: expected a PNG of one channel of 16 bits, got shape {image.shape} of {image.dtype}")
    return np.asarray(image)


def _rvl(data: bytes, max_mpx: float) -> np.ndarray:
    """(H, W) uint16."""
    if len(data) < _RVL_SIZE.size:
        raise ValueError(f"depth: expected {_RVL_SIZE.size} bytes with the size of the image, got {len(data)}")
    width, height = _RVL_SIZE.unpack_from(data)
    _check_size(height, width, max_mpx)
    return decode_rvl(data[_RVL_SIZE.size :], width * height).reshape(height, width)


def _encoding(text: str) -> str:
    if text not in ENCODINGS:
        raise ValueError(f"depth: expected one of the encodings {', '.join(ENCODINGS)}, got {quoted(text)}")
    return text


def _check_size(height: int, width: int, max_mpx: float) -> None:
    if height < 1 or width < 1:
        raise ValueError(f"depth: expected a height and width of at least 1, got {height} x {width}")
    if height * width > max_mpx * 1e6:
        raise ValueError(f"depth: expected at most {max_mpx:g} megapixels, got {width} x {height} px")


def _millimetres(values: np.ndarray) -> np.ndarray:
    metres = values.astype(np.float32)
    metres *= np.float32(0.001)
    metres[values == 0] = np.nan
    return metres


def _valid(metres: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.float32(np.nan)).astype(np.float32, copy=False)
