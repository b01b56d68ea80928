from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from decaf_ros.io.images import (
    ENCODINGS,
    Convert,
    PackedImage,
    builtin_rgb,
    check_image,
    compressed_to_rgb,
    image_to_rgb,
    message_to_rgb,
)

RGB = np.array([[[200, 10, 30], [0, 255, 0]], [[1, 2, 3], [90, 80, 70]], [[255, 255, 255], [0, 0, 128]]], np.uint8)


def image(pixels: np.ndarray, encoding: str, padding: int = 0, /, **changes) -> SimpleNamespace:
    """An Image message of `pixels`, each row padded by `padding` bytes of 0xAA."""
    rows = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    height, width = pixels.shape[:2]
    message = SimpleNamespace(
        height=height, width=width, encoding=encoding, is_bigendian=0, step=rows.shape[1], data=rows.tobytes()
    )
    return SimpleNamespace(**{**vars(message), **changes})


def compressed(suffix: str, pixels: np.ndarray, *options: int) -> SimpleNamespace:
    return SimpleNamespace(format=suffix[1:], data=cv2.imencode(suffix, pixels, options)[1].tobytes())


@pytest.fixture(params=["builtin", "cv_bridge"])
def convert(request) -> Convert:
    """Each backend. The one of cv_bridge skips encodings that it leaves to the other."""
    if request.param == "builtin":
        return builtin_rgb
    bridge = request.getfixturevalue("cv_bridge")

    def convert(image: PackedImage) -> np.ndarray:
        if image.encoding not in bridge.encodings:
            pytest.skip(f"cv_bridge: {image.encoding} is left to builtin")
        return bridge(image)

    return convert


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("rgb8", RGB),
        ("bgr8", RGB[..., ::-1]),
        ("rgba8", np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)])),
        ("bgra8", np.dstack([RGB[..., ::-1], np.full(RGB.shape[:2], 7, np.uint8)])),
        ("rgb16", RGB.astype(np.uint16) * 257),
        ("bgr16", RGB[..., ::-1].astype(np.uint16) * 257),
        ("rgba16", np.dstack([RGB, np.full(RGB.shape[:2], 7, np.uint8)]).astype(np.uint16) * 257),
        ("bgra16", np.dstack([RGB[..., ::-1], np.full(RGB.shape[:2], 7, np.uint8)]).astype(np.uint16) * 257),
    ],
)
def test_colour_encodings_give_the_same_image(encoding, pixels, padding, convert):
    np.testing.assert_array_equal(image_to_rgb(image(pixels, encoding, padding), convert=convert), RGB)


@pytest.mark.parametrize("encoding", ["mono8", "mono16"])
def test_mono_becomes_grey(encoding, convert):
    grey = RGB[..., 0]
    pixels = grey if encoding == "mono8" else grey.astype(np.uint16) * 257
    result = image_to_rgb(image(pixels, encoding, 3), convert=convert)
    np.testing.assert_array_equal(result, np.repeat(grey[..., None], 3, axis=2))


def test_big_endian(convert):
    swapped = np.minimum(RGB.astype(int) * 257 + 100, 65535).astype(">u2")
    np.testing.assert_array_equal(image_to_rgb(image(swapped, "rgb16", 3, is_bigendian=1), convert=convert), RGB)
    np.testing.assert_array_equal(image_to_rgb(image(RGB, "rgb8", is_bigendian=1), convert=convert), RGB)


def test_16_bits_are_rounded(convert):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    result = image_to_rgb(image(every, "mono16"), convert=convert)[..., 0]
    np.testing.assert_array_equal(result, np.rint(every / 257))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bayer_colours_are_not_swapped(pattern, bits, convert):
    colour = {"r": 200, "g": 100, "b": 30}
    tile = np.array([colour[letter] for letter in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (4, 4))
    mosaic = mosaic if bits == 8 else mosaic.astype(np.uint16) * 257
    result = image_to_rgb(image(mosaic, f"bayer_{pattern}{bits}"), convert=convert)
    np.testing.assert_allclose(result[3, 3], [200, 100, 30], atol=1)


@pytest.mark.parametrize("encoding", ["uyvy", "yuv422", "yuyv", "yuv422_yuy2"])
def test_yuv_with_neutral_chroma_is_grey(encoding, convert):
    luma_first = encoding.startswith("yuy") or encoding.endswith("yuy2")
    pixels = np.full((2, 4, 2), 128, np.uint8)
    pixels[..., 0 if luma_first else 1] = 126  # luma of mid grey, video range
    np.testing.assert_allclose(image_to_rgb(image(pixels, encoding), convert=convert), 128, atol=2)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_both_backends_give_the_same_pixels(encoding, cv_bridge):
    if encoding not in cv_bridge.encodings:
        pytest.skip(f"cv_bridge: {encoding} is left to builtin")
    noise = np.random.default_rng(1)
    for height, width, is_bigendian in ((2, 2, 0), (37, 46, 1), (480, 1366, 0)):
        data = noise.integers(0, 256, (height, width * ENCODINGS[encoding]), np.uint8)
        message = image(data, encoding, 1, width=width, is_bigendian=is_bigendian)
        found = image_to_rgb(message, convert=cv_bridge)
        assert (found.dtype, found.shape) == (np.uint8, (height, width, 3))
        np.testing.assert_array_equal(found, image_to_rgb(message))


def test_every_listed_encoding_decodes():
    for encoding, size in ENCODINGS.items():
        data = np.zeros((4, 4 * size), np.uint8)
        assert image_to_rgb(image(data, encoding, width=4, step=4 * size)).shape == (4, 4, 3)


def test_the_result_does_not_share_memory_with_the_message(convert):
    message = image(RGB, "rgb8")
    message.data = bytearray(message.data)
    result = image_to_rgb(message, convert=convert)
    message.data[:] = bytes(len(message.data))
    np.testing.assert_array_equal(result, RGB)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "at least 1, got 0 x 2"),
        ({"encoding": "32FC1"}, "got '32FC1'"),
        ({"encoding": ""}, "got ''"),
        ({"step": 5}, "at least 6 bytes .* got 5"),
        ({"step": 7}, "expected 21 bytes .* got 18"),
        ({"data": b"\0" * 17}, "expected 18 bytes .* got 17"),
        ({"data": b"\0" * 19}, "expected 18 bytes .* got 19"),
        ({"width": 2**31}, "step of at least"),
    ],
)
def test_inconsistent_fields_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        image_to_rgb(image(RGB, "rgb8", **changes))


def test_odd_width_with_shared_chroma():
    with pytest.raises(ValueError, match="even width for uyvy, got 3"):
        check_image(2, 3, "uyvy", 6, 12)


def test_check_image_returns_the_bytes_per_row():
    assert check_image(2, 10, "bgr8", 32, 64) == 30


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_compressed(suffix):
    pixels = np.full((16, 24, 3), (20, 60, 200), np.uint8)
    np.testing.assert_allclose(message_to_rgb(compressed(suffix, pixels)), np.full_like(pixels, (200, 60, 20)), atol=3)


def test_compressed_grey():
    assert compressed_to_rgb(compressed(".png", RGB[..., 0])).shape == RGB.shape


BAYER = {"rggb": "rg", "bggr": "bg", "gbrg": "gb", "grbg": "gr"}


def stored(pixels: np.ndarray, suffix: str, text: str) -> SimpleNamespace:
    """A CompressedImage as image_transport's publisher writes it: OpenCV encodes `pixels` without looking at `text`."""
    return SimpleNamespace(format=text, data=cv2.imencode(suffix, pixels)[1].tobytes())


def plain(rgb: tuple[int, int, int], *more: int) -> np.ndarray:
    return np.full((16, 24, 3 + len(more)), (*rgb, *more), np.uint8)


# The pixels as the publisher gives them to OpenCV: red first for `rgb8; tiff compressed`.
RED, REVERSED = (220, 60, 30), (30, 60, 220)


@pytest.mark.parametrize(
    ("text", "suffix", "pixels"),
    [
        ("rgb8; tiff compressed ", ".tiff", plain(RED)),
        ("RGB8;tiff compressed", ".tiff", plain(RED)),
        ("rgb8;  png  compressed", ".png", plain(RED)),
        ("RGB8;jpeg compressed rgb8", ".jpg", plain(RED)),
        ("bgr8; jpeg compressed rgb8", ".jpg", plain(RED)),
        ("rgba8; tiff compressed ", ".tiff", plain(RED, 9)),
        ("rgba8; png compressed rgba8", ".png", plain(RED, 9)),
        ("rgb16; tiff compressed ", ".tiff", plain(RED).astype(np.uint16) * 257),
        ("rgb8; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("rgb8; png compressed bgr8", ".png", plain(REVERSED)),
        ("rgb16; png compressed bgr16", ".png", plain(REVERSED).astype(np.uint16) * 257),
        ("rgba8; png compressed bgr8", ".png", plain(REVERSED)),
        ("bgr8; tiff compressed ", ".tiff", plain(REVERSED)),
        ("bgr8; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("bgra8; png compressed bgra8", ".png", plain(REVERSED, 9)),
        ("bgra8; tiff compressed", ".tiff", plain(REVERSED, 9)),
        ("bayer_grbg8; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("yuv422; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("mono8; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("8UC3; jpeg compressed bgr8", ".jpg", plain(REVERSED)),
        ("8UC3; png compressed ", ".png", plain(REVERSED)),
        ("jpeg", ".jpg", plain(REVERSED)),
        ("png", ".png", plain(REVERSED, 9)),
        ("", ".png", plain(REVERSED)),
        ("rgb8", ".jpg", plain(REVERSED)),
        ("mystery; jpeg compressed", ".jpg", plain(REVERSED)),
    ],
)
def test_the_source_encoding_is_honoured(text, suffix, pixels):
    found = compressed_to_rgb(stored(pixels, suffix, text), warn=pytest.fail)
    np.testing.assert_allclose(found, plain(RED), atol=3)


@pytest.mark.parametrize("pattern", list(BAYER))
@pytest.mark.parametrize(
    ("suffix", "text", "scale"),
    [
        (".png", "bayer_{}8; png compressed ", 1),
        (".png", "BAYER_{}8; png compressed bayer_{}8", 1),
        (".tiff", "bayer_{}8; tiff compressed ", 1),
        (".png", "bayer_{}16; png compressed ", 257),
        (".jpg", "bayer_{}8; jpeg compressed ", 1),
    ],
)
def test_a_compressed_mosaic_is_a_colour_picture(pattern, suffix, text, scale):
    colour = dict(zip("rgb", (200, 100, 30)))
    tile = np.array([colour[letter] for letter in pattern], np.uint16).reshape(2, 2) * scale
    mosaic = np.tile(tile, (8, 8)).astype(np.uint8 if scale == 1 else np.uint16)
    said: list[str] = []
    found = compressed_to_rgb(stored(mosaic, suffix, text.replace("{}", pattern)), said.append)
    np.testing.assert_allclose(found[7, 7], [200, 100, 30], atol=1 if suffix != ".jpg" else 40)
    assert ["JPEG blurs the mosaic" in text for text in said] == [True] * (suffix == ".jpg")


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("mono8; png compressed ", 1),
        ("mono8; png compressed mono8", 1),
        ("8UC1; png compressed", 1),
        ("png", 1),
        ("png", 257),
        ("mono16; png compressed ", 257),
    ],
)
def test_compressed_grey_of_8_and_16_bits(text, scale):
    grey = np.arange(64).reshape(8, 8)
    found = compressed_to_rgb(stored((grey * scale).astype(np.uint8 if scale == 1 else np.uint16), ".png", text))
    np.testing.assert_array_equal(found, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("text", "suffix", "dtype"),
    [
        ("16UC1; png compressed ", ".png", np.uint16),
        ("16UC1; tiff compressed", ".tiff", np.uint16),
        ("32FC1; tiff compressed ", ".tiff", np.float32),
        ("tiff", ".tiff", np.float32),
    ],
)
def test_a_compressed_depth_image_is_no_picture(text, suffix, dtype):
    with pytest.raises(ValueError, match="expected (a colour or grey image, got '.*', such as a depth|8 or 16 bits)"):
        compressed_to_rgb(stored(np.full((4, 4), 1500, dtype), suffix, text))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_truncated_compressed(suffix):
    message = compressed(suffix, np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    message.data = message.data[: len(message.data) * 2 // 3]
    with pytest.raises(ValueError, match="whole image, got .* without its end marker"):
        compressed_to_rgb(message)


def test_data_that_is_no_image():
    with pytest.raises(ValueError, match="cannot decode .*compressedDepth"):
        compressed_to_rgb(SimpleNamespace(format="16UC1; compressedDepth", data=b"\0" * 100))
    with pytest.raises(ValueError, match="expected data, got none"):
        compressed_to_rgb(SimpleNamespace(format="jpeg", data=b""))
