"""Pictures of a few kilobytes that unpack to gigabytes are refused by their header."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from recordings import COMPRESSED, START_NS, STEP_NS, compressed, picture, write_bag

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig
from decaf_ros.io import images
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import make_header, typestore
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.images import message_to_rgb
from decaf_ros.io.video import read_video


def bomb(side: int) -> bytes:
    """A PNG of one colour, in a few kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def message(data: bytes, text: str = "png") -> SimpleNamespace:
    return SimpleNamespace(format=text, data=data)


@pytest.mark.parametrize("side", [8000, 14000, 30000])
def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch, side):
    """Far beyond 178 megapixels Pillow refuses by itself."""
    data = bomb(side)
    assert len(data) < 300_000
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"expected at most 50 megapixels \(node.max_image_mpx\), got "):
        message_to_rgb(message(data), max_mpx=DecafConfig().node.max_image_mpx)
    assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp", ".webp", ".jp2"])
def test_every_format_has_a_header(monkeypatch, suffix):
    if not cv2.haveImageWriter(f"x{suffix}"):
        pytest.skip(f"OpenCV without {suffix}")
    data = cv2.imencode(suffix, np.zeros((40, 50, 3), np.uint8))[1].tobytes()
    assert message_to_rgb(message(data), max_mpx=0.002).shape == (40, 50, 3)
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="got 50 x 40 px"):
        message_to_rgb(message(data), max_mpx=0.0019)


@pytest.mark.parametrize("data", [cv2.imencode(".hdr", np.zeros((40, 50, 3), np.float32))[1].tobytes(), b"damaged"])
def test_a_picture_without_a_header_that_can_be_read_is_refused(monkeypatch, data):
    """OpenCV decodes formats that Pillow does not know, of any size."""
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"expected a picture with a header.*format 'x'; UnidentifiedImageError"):
        message_to_rgb(message(data, "x"), max_mpx=50)


def test_a_raw_image_is_refused_by_its_fields():
    raw = SimpleNamespace(height=40, width=50, encoding="rgb8", step=150, is_bigendian=0, data=bytes(6000))
    assert message_to_rgb(raw, max_mpx=0.002).shape == (40, 50, 3)
    with pytest.raises(ValueError, match="got 50 x 40 px"):
        message_to_rgb(raw, max_mpx=0.0019)


def test_large_images_of_a_bag_are_rejected(tmp_path):
    large = typestore().types[COMPRESSED](make_header(START_NS, "cam"), "png", np.frombuffer(bomb(8000), np.uint8))
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(6):
            stamp_ns = START_NS + index * STEP_NS
            small = compressed(picture(index), "png", ".png", stamp_ns)
            writer.write_message("/camera", large if index == 2 else small, stamp_ns)
    source = ClipSource(tmp_path / "bag", max_mpx=50)
    assert [frame.index for frame in source.load()] == [0, 1, 3, 4, 5] and source.problems.rejected == 1


def test_the_parameter_reaches_every_input(tmp_path, capsys):
    write_bag(tmp_path / "bag", indices=range(3))
    with VideoWriter(tmp_path / "clip.webm") as video:
        for index in range(3):
            video.write(picture(index), START_NS + index * STEP_NS)
    (tmp_path / "frames").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "frames" / f"{index}.png"), picture(index))
    for name in ("bag", "clip.webm", "frames"):
        for mode in ([], ["--online"]):
            arguments = ["--query", "x", "--out", str(tmp_path / "out"), "--set", "node.max_image_mpx=0.003", *mode]
            assert main(["segment", str(tmp_path / name), *arguments, "--mllm", "nowhere"]) == 1
            assert "expected at most 0.003 megapixels (node.max_image_mpx), got 64 x 48 px" in capsys.readouterr().err
    with pytest.raises(ValueError, match="got 64 x 48 px"):
        next(read_video(Path(tmp_path, "clip.webm"), max_mpx=0.003))
    assert [frame.index for frame in read_video(tmp_path / "clip.webm", max_mpx=0.1)] == [0, 1, 2]
