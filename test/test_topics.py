"""Which image topic is the camera's."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from recordings import START_NS, compressed, picture, raw

from decaf_ros.cli.main import main
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, typestore

GREY = cv2.resize(np.random.default_rng(0).integers(0, 255, (24, 32), dtype=np.uint8), (64, 48))
MASK = np.where(picture(3)[..., 0] > 100, np.uint8(3), np.uint8(0))
DEPTH = np.full((48, 64), 1500, np.uint16)
BGR = picture(0)[..., ::-1]


def image(pixels: np.ndarray, encoding: str):
    step = pixels.strides[0]
    make = typestore().types["sensor_msgs/msg/Image"]
    return make(make_header(START_NS, "cam"), *pixels.shape[:2], encoding, 0, step, pixels.view(np.uint8).reshape(-1))


COLOUR = raw(0, START_NS)
JPEG = compressed(BGR, "rgb8; jpeg compressed bgr8", ".jpg")
INFRA = image(GREY, "mono8")
LABELS, BLANK = image(MASK, "mono8"), image(0 * MASK, "mono8")
RAW_DEPTH, FLOAT = image(DEPTH, "16UC1"), image(DEPTH.astype(np.float32), "32FC1")
PNG_DEPTH = compressed(DEPTH, "16UC1; png compressed ", ".png")
BAD = typestore().types["sensor_msgs/msg/Image"](
    make_header(START_NS, "cam"), 4, 4, "rgb8", 0, 12, np.zeros(3, np.uint8)
)


def write(path: Path, topics: dict[str, list]) -> Path:
    with BagWriter(path) as writer:
        for name, messages in topics.items():
            for number, message in enumerate(messages):
                writer.write_message(name, message, START_NS + number)
    return path


@pytest.mark.parametrize(
    ("topics", "camera"),
    [
        ({"/camera/color/image_raw": [COLOUR], "/camera/depth/image_rect_raw": [RAW_DEPTH]}, "/camera/color/image_raw"),
        ({"/camera/infra1/image_rect_raw": [INFRA], "/camera/color/image_raw": [COLOUR]}, "/camera/color/image_raw"),
        ({"/a/masks": [LABELS], "/camera/image": [COLOUR], "/decaf/heatmaps": [FLOAT]}, "/camera/image"),
        ({"/camera/image": [COLOUR], "/decaf/overlay": [COLOUR], "/decaf/target_mask": [BLANK]}, "/camera/image"),
        ({"/camera/image": [COLOUR], "/colour_coded/segmentation": [COLOUR]}, "/camera/image"),
        ({"/camera/image": [COLOUR], "/colour_coded/seg": [COLOUR]}, "/camera/image"),
        ({"/a": [BLANK], "/b": [COLOUR]}, "/b"),
        ({"/a": [LABELS], "/b": [INFRA]}, "/b"),
        ({"/a": [RAW_DEPTH], "/b": [INFRA]}, "/b"),
        ({"/cam/image_raw": [COLOUR] * 2, "/cam/image_raw/compressed": [JPEG] * 2}, "/cam/image_raw"),
        ({"/cam/image_raw": [COLOUR], "/cam/image_raw/compressed": [JPEG] * 5}, "/cam/image_raw/compressed"),
        ({"/cam/compressed": [JPEG], "/cam/depth/image_raw/compressedDepth": [PNG_DEPTH]}, "/cam/compressed"),
        ({"/a": [BAD, COLOUR], "/b": [LABELS]}, "/a"),
        ({"/night": [image(GREY // 64, "mono8")]}, "/night"),
        ({"/a": [BAD]}, "/a"),
        ({"/depth_of_field_camera": [COLOUR], "/unmasked": [COLOUR]}, "/unmasked"),
    ],
)  # fmt: skip
def test_the_camera_is_chosen(tmp_path, topics, camera):
    with BagReader(write(tmp_path / "bag", topics)) as bag:
        assert bag.image_topic() == camera
        for name in topics:
            assert bag.image_topic(name) == name, "every image topic can be named"


def test_a_choice_is_asked_for_with_colour_first(tmp_path):
    topics = {
        "/a/mask": [LABELS],
        "/infra": [INFRA],
        "/left": [COLOUR] * 2,
        "/right": [COLOUR],
        "/z/depth": [RAW_DEPTH],
    }
    expected = (
        r"several image topics, name one: /left \(colour, sensor_msgs/msg/Image, 2 messages\), /right \(colour, .*"
        r"/infra \(grey, .*/a/mask \(mask, .*/z/depth \(depth, "
    )
    with BagReader(write(tmp_path / "bag", topics)) as bag, pytest.raises(ValueError, match=expected):
        bag.image_topic()


@pytest.mark.parametrize("topics", [{"/masks": [LABELS]}, {"/depth": [RAW_DEPTH]}, {"/labels": [BLANK], "/d": [FLOAT]}])
def test_masks_and_depth_are_never_chosen(tmp_path, topics):
    with BagReader(write(tmp_path / "bag", topics)) as bag, pytest.raises(ValueError, match="got only .*; name one if"):
        bag.image_topic()


@pytest.mark.parametrize("command", [["segment", "--query", "x"], ["segment", "--query", "x", "--online"], ["replay"]])
def test_it_is_asked_before_the_models_are_loaded(tmp_path, capsys, command):
    bag = write(tmp_path / "bag", {"/left": [COLOUR], "/right": [COLOUR]})
    name, *arguments = command
    arguments += ["--out", str(tmp_path / "out"), "--mllm", str(tmp_path / "nowhere")]
    assert main([name, str(bag), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "several image topics, name one: /left (colour" in line and not (tmp_path / "out").exists()
