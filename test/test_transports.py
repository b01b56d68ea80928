"""Transports of image_transport that are not subscribed to are refused by name, with the command that decodes them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from decaf_ros.config import DecafConfig, replace
from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS, check_topic, republish_command, transport_of
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader
from decaf_ros.io.cameras import recorded_depth

COMMAND = (
    "ros2 run image_transport republish theora raw --ros-args -p in_transport:=theora -p out_transport:=raw "
    "-r in:=/cam/image -r in/theora:=/cam/image/theora -r out:=/cam/image/decoded"
)


def test_the_command():
    assert republish_command("theora", "/cam/image") == COMMAND


@pytest.mark.parametrize("option", ["node.image_transport", "space.depth_transport"])
@pytest.mark.parametrize("transport", ["theora", "ffmpeg", "a_new_one"])
def test_parameters(option, transport):
    with pytest.raises(ValueError) as raised:
        replace(DecafConfig(), {option: transport})
    text = str(raised.value)
    assert f"{option.partition('.')[2]}: expected one of raw, compressed, got '{transport}'" in text
    assert f"ros2 run image_transport republish {transport} raw" in text and "/decoded as raw" in text


def test_other_values_are_refused_as_ever():
    with pytest.raises(ValueError, match="expected str, got 1"):
        replace(DecafConfig(), {"node.image_transport": 1})
    with pytest.raises(ValueError, match="expected one of raw, compressed, got 'compressedDepth'$"):
        replace(DecafConfig(), {"space.depth_transport": "compressedDepth"})


@pytest.mark.parametrize(
    ("topic", "transport", "suffixes", "words"),
    [
        ("/cam/image/theora", "raw", IMAGE_TRANSPORTS, f"got theora; let image_transport decode it: {COMMAND}; then"),
        ("/cam/image/theora/compressed", "compressed", IMAGE_TRANSPORTS, COMMAND),
        ("/cam/image/zstd", "compressed", IMAGE_TRANSPORTS, "republish zstd raw"),
        ("/cam/depth/ffmpeg", "raw", DEPTH_TRANSPORTS, "republish ffmpeg raw"),
        ("/cam/depth/ffmpeg/compressedDepth", "compressed", DEPTH_TRANSPORTS, "-r in/ffmpeg:=/cam/depth/ffmpeg "),
        ("/cam/image/compressed", "raw", IMAGE_TRANSPORTS, "name /cam/image and set some.option to compressed"),
        ("/cam/image/compressed/compressed", "compressed", IMAGE_TRANSPORTS, "name /cam/image and set some.option"),
        ("/cam/depth/compressed", "raw", DEPTH_TRANSPORTS, "got compressed; name /cam/depth"),
        ("/cam/depth/compressedDepth", "raw", DEPTH_TRANSPORTS, "name /cam/depth and set some.option to compressed"),
    ],
)
def test_topics(topic, transport, suffixes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_topic("some.option", topic, transport, suffixes)


def test_topics_that_are_fine():
    check_topic("some.option", "/cam/image", "raw", IMAGE_TRANSPORTS)
    check_topic("some.option", "/cam/image/compressed", "compressed", IMAGE_TRANSPORTS)
    check_topic("some.option", "/cam/depth/compressedDepth", "compressed", DEPTH_TRANSPORTS)
    check_topic("some.option", "/theora/image", "raw", IMAGE_TRANSPORTS)
    assert transport_of("/x/theora", "sensor_msgs/msg/Image") == ""


@pytest.fixture
def bag(tmp_path):
    """Compressed images with the name of zstd's transport, and a video of ffmpeg's."""
    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        writer.write_image("/cam/other", np.zeros((4, 4, 3), np.uint8), 1, "camera")
        writer.write("/cam/image/zstd", "sensor_msgs/msg/CompressedImage", 1, bytes(32))
    return path


def test_a_bag(bag):
    with BagReader(bag) as reader:
        with pytest.raises(
            ValueError, match=r"/cam/image/zstd: expected raw or compressed images, got zstd; play the"
        ) as raised:
            reader.image_topic("/cam/image/zstd")
        assert republish_command("zstd", "/cam/image") in str(raised.value)
        with pytest.raises(ValueError, match="/cam/image/zstd: got zstd; let image_transport decode it: ros2 run"):
            recorded_depth(reader, [""], ["/cam/image/zstd"], ["/cam/info"])
