"""Plays the camera of a bag over DDS and drives /clock, as `ros2 bag play --clock` does; publishes queries on the way.

The images are published as they are recorded, raw or compressed. Each JSON line on its standard input is a command:
{"play_s": SECONDS} lets it play so much of the clip, where camera and clock stand still, and {"ask": TEXT} is a query,
which is published with the clock's next tick.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.io.bags import BagReader
from decaf_ros.nodes.conversions import time_message
from decaf_tabletop.demo.processes import tell

# Longest pause between two ticks of the clock.
_TICK_S = 0.05
_DISCOVERY_S = 30.0


class Player:
    """Publishes on the absolute schedule of the bag's own times, `rate` times as fast."""

    def __init__(
        self,
        node: Node,
        image_topic: str,
        kind: type,
        query_topic: str,
        rate: float,
        stopping: threading.Event,
    ) -> None:
        self._node = node
        self._rate = rate
        self._stopping = stopping
        self._waiting: queue.Queue[str] = queue.Queue()
        self._allowed_s = -1.0
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._images = node.create_publisher(kind, image_topic, QoSProfile(depth=10))
        self._queries = node.create_publisher(String, query_topic, 10)
        self._started = 0.0
        self._start_ns = 0

    def allow(self, seconds: float) -> None:
        """Lets it play the clip's first `seconds`; before the first call not even `wait_for_listeners` begins. For any
        thread."""
        self._allowed_s = seconds

    def wait_for_listeners(self) -> None:
        """Returns when playing is allowed and somebody listens, or where it is stopped.

        Raises TimeoutError where nobody listens to the images, the queries and the clock.
        """
        while self._allowed_s < 0:
            if self._stopping.wait(_TICK_S):
                return
        until = time.monotonic() + _DISCOVERY_S
        publishers = (self._clock, self._images, self._queries)
        while not all(publisher.get_subscription_count() for publisher in publishers):
            if time.monotonic() > until:
                raise TimeoutError(f"nobody listens to the images, queries or the clock after {_DISCOVERY_S:g} s")
            if self._stopping.wait(0.05):
                return

    def ask(self, text: str) -> None:
        """Publishes a query soon. For any thread."""
        self._waiting.put(text)

    def play(self, images: list[tuple[int, Any]]) -> None:
        """images: (stamp in ns, message), in order. Ends early where it is stopped."""
        self._started, self._start_ns = time.monotonic(), images[0][0]
        tell(event="playing", stamp_ns=self._start_ns)
        for stamp_ns, message in images:
            if not (self._hold_until_allowed(stamp_ns) and self._keep_time_until(stamp_ns)):
                return
            self._images.publish(message)
        tell(event="played")

    def idle(self) -> None:
        """Lets the clock run on, and publishes queries, until it is stopped."""
        while self._keep_time_until(self._now_ns() + round(_TICK_S * self._rate * 1e9)):
            pass

    def _hold_until_allowed(self, stamp_ns: int) -> bool:
        """Publishes queries until the bag may be played up to `stamp_ns`. False where it was stopped before."""
        held_at = time.monotonic()
        while stamp_ns - self._start_ns > self._allowed_s * 1e9:
            if self._stopping.wait(_TICK_S / 5):
                return False
            self._publish_queries()
        self._started += time.monotonic() - held_at
        return True

    def _publish_queries(self) -> None:
        while not self._waiting.empty():
            self._queries.publish(String(data=self._waiting.get()))

    def _now_ns(self) -> int:
        return self._start_ns + round((time.monotonic() - self._started) * self._rate * 1e9)

    def _keep_time_until(self, stamp_ns: int) -> bool:
        """Ticks, and publishes queries, until the bag's time is `stamp_ns`. False where it was stopped before."""
        while True:
            now_ns = self._now_ns()
            self._clock.publish(Clock(clock=time_message(min(now_ns, stamp_ns))))
            self._publish_queries()
            left_s = (stamp_ns - now_ns) / 1e9 / self._rate
            if left_s <= 0:
                return not self._stopping.is_set()
            if self._stopping.wait(min(left_s, _TICK_S)):
                return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bag", type=Path)
    parser.add_argument("--image-topic", required=True)
    parser.add_argument("--query-topic", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    given = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("player")
    try:
        kind, images = _images(given.bag, given.image_topic, given.seconds)
        player = Player(node, given.image_topic, kind, given.query_topic, given.rate, stopping)
        threading.Thread(target=_listen, args=(player,), daemon=True).start()
        player.wait_for_listeners()
        player.play(images)
        player.idle()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _listen(player: Player) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "ask" in command:
            player.ask(command["ask"])
        else:
            player.allow(command["play_s"])


def _images(path: Path, topic: str, seconds: float) -> tuple[type, list[tuple[int, Any]]]:
    """Their type, and (stamp in ns, message) of the first `seconds`: all at once, so that reading does not disturb the
    schedule."""
    images = []
    with BagReader(path) as bag:
        kind = Image if bag.topics[topic].msgtype == "sensor_msgs/msg/Image" else CompressedImage
        for recorded in bag.messages([topic]):
            message = deserialize_message(recorded.data, kind)
            stamp_ns = message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec
            if images and stamp_ns - images[0][0] > seconds * 1e9:
                break
            images.append((stamp_ns, message))
    return kind, images


if __name__ == "__main__":
    sys.exit(main())
