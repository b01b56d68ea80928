"""Plays a bag's compressed images over DDS and drives /clock, like `ros2 bag play --clock`. Also publishes queries.

Each JSON line on standard input is a command. {"play_s": SECONDS} allows playing up to that clip time, where camera and
clock then pause. {"ask": TEXT} publishes a query.
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

import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import stamp_ns as message_stamp_ns
from decaf_ros.nodes.message_factory import time_message
from decaf_tabletop.demo.processes import emit

# Longest time between two clock ticks.
_TICK_S = 0.05
_DISCOVERY_S = 30.0


class Player:
    """Publishes images at the bag's own stamps, in real time except for pauses. `stopping` ends every wait."""

    def __init__(self, node: Node, image_topic: str, query_topic: str, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._pending: queue.Queue[str] = queue.Queue()
        self._allowed_s = -1.0
        self._clock = node.create_publisher(Clock, "/clock", 10)
        self._images = node.create_publisher(CompressedImage, image_topic, QoSProfile(depth=10))
        self._queries = node.create_publisher(String, query_topic, 10)
        self._started = 0.0
        self._start_ns = 0

    def allow(self, seconds: float) -> None:
        """Allows playing the clip's first `seconds`. `wait_for_listeners` waits for the first call. Thread-safe."""
        self._allowed_s = seconds

    def wait_for_listeners(self) -> None:
        """Returns once playing is allowed and images, queries and clock have subscribers, or when stopped.

        Raises TimeoutError when a subscriber is missing.
        """
        while self._allowed_s < 0:
            if self._stopping.wait(_TICK_S):
                return
        until = time.monotonic() + _DISCOVERY_S
        publishers = (self._clock, self._images, self._queries)
        while not all(publisher.get_subscription_count() for publisher in publishers):
            if time.monotonic() > until:
                raise TimeoutError(f"no subscriber for images, queries or clock after {_DISCOVERY_S:g} s")
            if self._stopping.wait(0.05):
                return

    def ask(self, text: str) -> None:
        """Schedules a query for publication. Thread-safe."""
        self._pending.put(text)

    def play(self, images: list[tuple[int, CompressedImage]]) -> None:
        """Publishes (stamp in ns, message) pairs in order. Returns early when stopped."""
        self._started, self._start_ns = time.monotonic(), images[0][0]
        emit(event="playing", stamp_ns=self._start_ns)
        for stamp_ns, message in images:
            if not (self._hold_until_allowed(stamp_ns) and self._keep_time_until(stamp_ns)):
                return
            self._images.publish(message)
        emit(event="played")

    def idle(self) -> None:
        """Keeps the clock running and publishes queries until stopped."""
        while self._keep_time_until(self._now_ns() + round(_TICK_S * 1e9)):
            pass

    def _hold_until_allowed(self, stamp_ns: int) -> bool:
        """Publishes queries until playing up to `stamp_ns` is allowed. Returns False when stopped."""
        held_at = time.monotonic()
        while stamp_ns - self._start_ns > self._allowed_s * 1e9:
            if self._stopping.wait(_TICK_S / 5):
                return False
            self._publish_queries()
        self._started += time.monotonic() - held_at
        return True

    def _publish_queries(self) -> None:
        while not self._pending.empty():
            self._queries.publish(String(data=self._pending.get()))

    def _now_ns(self) -> int:
        return self._start_ns + round((time.monotonic() - self._started) * 1e9)

    def _keep_time_until(self, stamp_ns: int) -> bool:
        """Ticks the clock and publishes queries until bag time `stamp_ns`. Returns False when stopped."""
        while True:
            now_ns = self._now_ns()
            self._clock.publish(Clock(clock=time_message(min(now_ns, stamp_ns))))
            self._publish_queries()
            left_s = (stamp_ns - now_ns) / 1e9
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
    arguments = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("player")
    try:
        images = _read_images(arguments.bag, arguments.image_topic, arguments.seconds)
        player = Player(node, arguments.image_topic, arguments.query_topic, stopping)
        threading.Thread(target=_read_commands, args=(player,), daemon=True).start()
        player.wait_for_listeners()
        player.play(images)
        player.idle()
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _read_commands(player: Player) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        if "ask" in command:
            player.ask(command["ask"])
        else:
            player.allow(command["play_s"])


def _read_images(path: Path, topic: str, seconds: float) -> list[tuple[int, CompressedImage]]:
    """(Stamp in ns, message) of the first `seconds`.

    Read in advance, because reading while playing would disturb the schedule.
    """
    images: list[tuple[int, CompressedImage]] = []
    with BagReader(path) as bag:
        for recorded in bag.messages([topic]):
            message = deserialize_message(recorded.data, CompressedImage)
            stamp_ns = message_stamp_ns(message.header.stamp)
            if images and stamp_ns - images[0][0] > seconds * 1e9:
                break
            images.append((stamp_ns, message))
    return images


if __name__ == "__main__":
    sys.exit(main())
