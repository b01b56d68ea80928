"""Depth of messages: units and invalid values by encoding, compressedDepth, inconsistent messages."""

from __future__ import annotations

import struct
from typing import Any

import cv2
import numpy as np
import pytest
from rvl_writer import encode_rvl

from decaf_ros.io.bags import make_header, make_message
from decaf_ros.space.depth import message_depth

NAN = np.nan


def image(values: np.ndarray, name: str, padding: int = 0, big: bool = False, **changes: Any) -> Any:
    height, width = values.shape
    rows = values.astype(values.dtype.newbyteorder(">" if big else "<")).view(np.uint8).reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    fields = {
        "header": make_header(1, "depth"),
        "height": height,
        "width": width,
        "encoding": name,
        "is_bigendian": int(big),
        "step": rows.shape[1],
        "data": rows.reshape(-1),
    }
    return make_message("sensor_msgs/msg/Image", **{**fields, **changes})


def compressed(body: bytes, text: str, a: float = 0.0, b: float = 0.0) -> Any:
    data = struct.pack("<iff", 0, a, b) + body
    return make_message(
        "sensor_msgs/msg/CompressedImage",
        header=make_header(1, "depth"),
        format=text,
        data=np.frombuffer(data, np.uint8),
    )


def png(values: np.ndarray) -> bytes:
    return cv2.imencode(".png", values)[1].tobytes()


def rvl(values: np.ndarray) -> bytes:
    return struct.pack("<II", values.shape[1], values.shape[0]) + encode_rvl(values.ravel().tolist())


MILLIMETRES = np.array([[0, 1, 1000], [65535, 2500, 0]], np.uint16)
METRES = np.array([[NAN, 0.001, 1.0], [65.535, 2.5, NAN]], np.float32)


@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("big", [False, True])
def test_raw_images(padding: int, big: bool):
    depth = message_depth(image(MILLIMETRES, "16UC1", padding, big))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, METRES, rtol=1e-6)
    values = np.array([[NAN, np.inf, -np.inf], [0.0, -1.0, 1.25]], np.float32)
    depth = message_depth(image(values, "32FC1", padding, big))
    np.testing.assert_array_equal(depth, np.array([[NAN, NAN, NAN], [NAN, NAN, 1.25]], np.float32))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (png, "16UC1; compressedDepth png"),
        (png, "16UC1; compressedDepth"),
        (png, "16UC1"),
        (rvl, "16UC1; compressedDepth rvl"),
    ],
)
def test_compressed_millimetres(write: Any, text: str):
    np.testing.assert_allclose(message_depth(compressed(write(MILLIMETRES), text)), METRES, rtol=1e-6)


@pytest.mark.parametrize("write", [png, rvl])
def test_compressed_metres_are_dequantised(write: Any):
    """As the publisher quantises, with its default parameters: quantisation 100, at most 10 m."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.3, 9.9, (30, 40)).astype(np.float32)
    a = 100.0 * 101.0
    b = 1.0 - a / 10.0
    codes = np.floor(a / depth + b).astype(np.uint16)
    codes[3, 4] = 0
    text = f"32FC1; compressedDepth {write.__name__}"
    found = message_depth(compressed(write(codes), text, a, b))
    assert np.isnan(found[3, 4]) and np.isnan(found).sum() == 1
    depth[3, 4] = found[3, 4]
    step = depth**2 / a  # a code is one step of inverse depth
    assert (np.abs(found - depth) <= 1.1 * step)[~np.isnan(found)].all()


def test_codes_beyond_the_farthest_depth_are_invalid():
    codes = np.array([[4, 5, 6, 15]], np.uint16)
    found = message_depth(compressed(png(codes), "32FC1; compressedDepth png", 10.0, 5.0))
    np.testing.assert_array_equal(found, np.array([[NAN, NAN, 10.0, 1.0]], np.float32))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoding": "mono16"}, "expected one of the encodings 16UC1, 32FC1, got 'mono16'"),
        ({"encoding": "32FC1"}, "expected a step of at least 12 bytes .3 px., got 6"),
        ({"height": 3}, r"expected 18 bytes \(3 rows of step 6\), got 12"),
        ({"width": 4}, "expected a step of at least 8 bytes"),
        ({"height": 0}, "expected a height and width of at least 1, got 0 x 3"),
        ({"height": 40000, "width": 30000}, "expected at most 50 megapixels, got 30000 x 40000 px"),
    ],
)
def test_inconsistent_images_are_refused(changes: dict[str, Any], text: str):
    with pytest.raises(ValueError, match=text):
        message_depth(image(MILLIMETRES, "16UC1", **changes))


@pytest.mark.parametrize(
    ("body", "text", "error"),
    [
        (png(MILLIMETRES), "8UC1; compressedDepth png", "expected one of the encodings 16UC1, 32FC1, got '8UC1'"),
        (png(MILLIMETRES), "16UC1; png compressed", "expected the format 'ENCODING; compressedDepth png' or rvl"),
        (png(MILLIMETRES), "16UC1; compressedDepth zstd", "expected the codec png or rvl, got 'zstd'"),
        (b"", "16UC1; compressedDepth png", "expected more than the 12 bytes of a header, got 12"),
        (b"\xff\xd8 no PNG" + bytes(20), "16UC1; compressedDepth png", "expected a PNG after the header, got 29 other"),
        (png(MILLIMETRES)[:-20], "16UC1; compressedDepth png", "expected a whole PNG, got .* bytes without its end"),
        (
            png(np.zeros((2, 3), np.uint8)),
            "16UC1; compressedDepth png",
            "one channel of 16 bits, got shape .2, 3. of uint8",
        ),
        (
            png(MILLIMETRES),
            "32FC1; compressedDepth png",
            "finite quantisation parameters, .*, got 0 and 0",
        ),
        (bytes(7), "16UC1; compressedDepth rvl", "expected 8 bytes with the size of the image, got 7"),
        (rvl(MILLIMETRES)[:-4], "16UC1; compressedDepth rvl", "expected 6 pixels, got data that ends"),
        (struct.pack("<II", 3, 3) + rvl(MILLIMETRES)[8:], "16UC1; compressedDepth rvl", "expected 9 pixels, got"),
        (struct.pack("<II", 0, 3) + bytes(8), "16UC1; compressedDepth rvl", "at least 1, got 3 x 0"),
        (
            struct.pack("<II", 2**31, 2**31) + bytes(8),
            "16UC1; compressedDepth rvl",
            "at most 50 megapixels, got 2147483648",
        ),
    ],
)
def test_damaged_compressed_images_are_refused(body: bytes, text: str, error: str):
    with pytest.raises(ValueError, match=error):
        message_depth(compressed(body, text))


def test_the_size_of_a_png_is_checked_before_it_is_decoded():
    bomb = bytearray(png(MILLIMETRES))
    bomb[16:24] = struct.pack(">II", 60000, 60000)
    with pytest.raises(ValueError, match="at most 50 megapixels, got 60000 x 60000 px"):
        message_depth(compressed(bytes(bomb), "16UC1; compressedDepth png"))
