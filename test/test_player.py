"""The player: a bag's messages as they are, at their times, once a node listens; a second round has later stamps."""
# ruff: noqa: E402

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from node_process import ROOT, Robot, unused_domain, wait_for
from recordings import START_NS, STEP_NS, picture, write_bag
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String

from decaf_ros.io.images import message_to_rgb
from decaf_ros.io.messages import stamp_ns

pytestmark = pytest.mark.ros

TOPIC, FRAMES = "/camera/image_raw", 4


def _start(domain_id: int, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain_id), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "decaf_ros.nodes.player", *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> str:
    return str(write_bag(tmp_path_factory.mktemp("bag") / "bag", indices=range(FRAMES)))


def test_a_bag_is_played_when_the_node_listens_and_again_with_later_stamps(bag):
    with unused_domain() as domain_id:
        player = _start(
            domain_id, bag, "--wait-for", "/decaf/robot_", "--loop", "--query", "the red box", "--query-at", "0.1"
        )
        robot = Robot(domain_id)
        images: list[Image] = []
        clock: list[Clock] = []
        asked: list[String] = []
        try:
            robot.node.create_subscription(Clock, "/clock", clock.append, 1000)
            robot.node.create_subscription(String, "query", asked.append, 10)
            wait_for(lambda: robot.node.get_publishers_info_by_topic(TOPIC), "the player's publisher")
            assert not images and not clock, "it waits"
            robot.node.create_subscription(Image, TOPIC, images.append, 1000)
            wait_for(lambda: len(images) > 2 * FRAMES, "a third round")
        finally:
            player.send_signal(signal.SIGINT)
            output = player.communicate(timeout=20)[0]
            robot.close()
    assert player.returncode == 0, output
    assert "waits" not in output and "stopped" in output and [message.data for message in asked] == ["the red box"]
    # The gap between two rounds is a mean step, here at least 0.1 s.
    span_ns = (FRAMES - 1) * STEP_NS + 100_000_000
    for number, image in enumerate(images[: 2 * FRAMES + 1]):
        rounds, index = divmod(number, FRAMES)
        assert stamp_ns(image.header.stamp) == START_NS + index * STEP_NS + rounds * span_ns
        assert image.header.frame_id == "cam" and (message_to_rgb(image) == picture(index)).all()
    times = [stamp_ns(message.clock) for message in clock]
    assert times == sorted(times) and times[0] >= START_NS and len(times) > len(images)


def test_a_topic_that_the_bag_does_not_have_is_refused(bag):
    with unused_domain() as domain_id:
        player = _start(domain_id, bag, "--topics", "/other")
        output = player.communicate(timeout=30)[0]
    assert player.returncode == 1 and f"expected one of {TOPIC}, got /other" in output, output


def test_without_a_loop_it_ends_with_the_bag(bag):
    with unused_domain() as domain_id:
        player = _start(domain_id, bag, "--rate", "10", "--query", "never", "--query-at", "60")
        output = player.communicate(timeout=30)[0]
    assert player.returncode == 0 and "the bag is over" in output and "asks" not in output, output
