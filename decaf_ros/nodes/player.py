"""Plays topics of a bag with /clock, when a node listens: `ros2 run decaf_ros player BAG --topics /camera/image`."""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import rclpy
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from decaf_ros.io.bags import BagMessage, BagReader
from decaf_ros.io.messages import stamp_ns
from decaf_ros.nodes.message_factory import time_message
from decaf_ros.resources import resolve_path

# Longest time between two clock ticks.
_TICK_S = 0.02
# Period of the line that says what is waited for.
_REMIND_S = 10.0
# Gap between two rounds, where a bag has one time only.
_SHORTEST_NS = 100_000_000
_LATCHED = "/tf_static"
_SKIPPED = ("/clock", "/rosout", "/parameter_events")
# Types of topics that are played if none are named: sensors and transforms, not the outputs of other nodes.
_PLAYED = (
    "sensor_msgs/msg/CameraInfo",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/Image",
    "tf2_msgs/msg/TFMessage",
)


class Player:
    """Publishes messages as they were recorded, with their stamps, and the time of the bag on /clock.

    Args:
        node: publishes.
        reader: the bag.
        topics: names of the topics to play; empty: images, camera infos and transforms.
        log: called with a line.
        stopping: ends every wait.

    Raises ValueError for a topic that the bag does not have, and if there is nothing to play.
    """

    def __init__(
        self,
        node: Node,
        reader: BagReader,
        topics: Iterable[str],
        log: Callable[[str], None],
        stopping: threading.Event,
    ) -> None:
        self._node = node
        self._reader = reader
        self._log = log
        self._stopping = stopping
        self._classes: dict[str, Any] = {}
        self._publishers: dict[str, Publisher[Any]] = {}
        self._clock = node.create_publisher(Clock, "/clock", 10)
        for topic in topics or [name for name, each in reader.topics.items() if each.msgtype in _PLAYED]:
            self._add(topic, is_named=bool(topics))
        if not self._publishers:
            raise ValueError(
                f"{reader.path}: expected topics to play, got {', '.join(reader.topics) or 'an empty bag'}"
            )
        log(f"plays {', '.join(self._publishers)}")

    def wait_for(self, name: str) -> bool:
        """Waits until the node with this full name takes one of the topics. Returns False when stopped."""
        started = reminded = time.monotonic()
        while not any(self._takes(name, topic) for topic in self._publishers):
            if self._stopping.wait(_TICK_S):
                return False
            if time.monotonic() - reminded >= _REMIND_S:
                reminded = time.monotonic()
                topics = ", ".join(self._publishers)
                self._log(f"waits since {reminded - started:.0f} s for {name} to subscribe to one of {topics}")
        return True

    def play(self, rate: float, loop: bool, at: Callable[[float], None]) -> None:
        """Plays the bag, in a loop without an end if `loop` is set. Returns when it is over, or stopped.

        Every round comes later than the one before, by its stamps too.

        Args:
            rate: seconds of the bag in a second.
            loop: whether to begin again.
            at: called before each message with the seconds since the first one, over all rounds.
        """
        shift_ns, begin_ns, began = 0, 0, time.monotonic()
        while True:
            count = first_ns = last_ns = 0
            for message in self._reader.messages(list(self._publishers)):
                count += 1
                first_ns = first_ns or message.stamp_ns
                last_ns = max(last_ns, message.stamp_ns)
                begin_ns = begin_ns or message.stamp_ns
                due_ns = message.stamp_ns + shift_ns
                if not self._keep_time_until(due_ns, begin_ns, began, rate):
                    return
                at((due_ns - begin_ns) / 1e9)
                self._publishers[message.topic].publish(self._shifted(message, shift_ns))
            if not loop or not count:
                return
            shift_ns += last_ns - first_ns + max((last_ns - first_ns) // count, _SHORTEST_NS)

    def _add(self, topic: str, is_named: bool) -> None:
        """Makes a publisher. Leaves out a topic that was not named and whose messages are not installed."""
        if topic not in self._reader.topics or topic in _SKIPPED:
            raise ValueError(f"{self._reader.path}: expected one of {', '.join(self._reader.topics)}, got {topic}")
        kind = self._reader.topics[topic].msgtype
        package, _, name = kind.split("/")
        try:
            self._classes[topic] = getattr(importlib.import_module(f"{package}.msg"), name)
        except (ImportError, AttributeError) as error:
            if is_named:
                raise ValueError(f"{topic}: expected the messages {kind} to be installed, got {error}") from error
            self._log(f"leaves out {topic}: {kind} is not installed")
            return
        is_latched = topic.endswith(_LATCHED)
        durability = DurabilityPolicy.TRANSIENT_LOCAL if is_latched else DurabilityPolicy.VOLATILE
        qos = QoSProfile(depth=100 if is_latched else 10, durability=durability)
        self._publishers[topic] = self._node.create_publisher(self._classes[topic], topic, qos)

    def _takes(self, name: str, topic: str) -> bool:
        """Whether the node is subscribed, and matched with the publisher."""
        infos = self._node.get_subscriptions_info_by_topic(topic)
        known = [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos]
        return name in known and self._publishers[topic].get_subscription_count() >= len(known)

    def _keep_time_until(self, due_ns: int, begin_ns: int, began: float, rate: float) -> bool:
        """Publishes the time until `due_ns` of the bag. Returns False when stopped."""
        while not self._stopping.is_set():
            now_ns = begin_ns + round((time.monotonic() - began) * rate * 1e9)
            self._clock.publish(Clock(clock=time_message(min(now_ns, due_ns))))
            left_s = (due_ns - now_ns) / 1e9 / rate
            if left_s <= 0:
                return True
            self._stopping.wait(min(left_s, _TICK_S))
        return False

    def _shifted(self, message: BagMessage, shift_ns: int) -> Any:
        """The serialized message with later stamps; a message without any as it is."""
        kind = self._classes[message.topic]
        data = bytes(message.data)
        if not shift_ns:
            return data
        fields = kind.get_fields_and_field_types()
        if next(iter(fields.items())) == ("header", "std_msgs/Header"):
            # Four bytes, of which the second tells the order of the others, then the stamp of the header.
            order = "<" if data[1] & 1 else ">"
            seconds, rest = struct.unpack_from(f"{order}iI", data, 4)
            stamp = divmod(seconds * 1_000_000_000 + rest + shift_ns, 1_000_000_000)
            return data[:4] + struct.pack(f"{order}iI", *stamp) + data[12:]
        if fields.get("transforms") == "sequence<geometry_msgs/TransformStamped>":
            found = deserialize_message(data, kind)
            for transform in found.transforms:
                transform.header.stamp = time_message(stamp_ns(transform.header.stamp) + shift_ns)
            return serialize_message(found)
        return data


def main(args: list[str] | None = None) -> int:
    """Returns 0 when the bag is over or the player was stopped, else 1."""
    arguments = _parser().parse_args(remove_ros_args(args if args is not None else sys.argv)[1:])
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("player")
    logger = node.get_logger()
    asked = node.create_publisher(String, arguments.query_topic, 10) if arguments.query else None
    pending = iter([arguments.query] if arguments.query else [])

    def warn(text: str) -> None:
        logger.warning(text)

    def log(text: str) -> None:
        logger.info(text)

    def at(seconds: float) -> None:
        if asked is not None and seconds >= arguments.query_at:
            for text in itertools.islice(pending, 1):
                asked.publish(String(data=text))
                log(f"asks at {seconds:.1f} s: {text}")

    try:
        with BagReader(resolve_path(arguments.bag), warn) as reader:
            player = Player(node, reader, arguments.topics, log, stopping)
            if not arguments.wait_for or player.wait_for(arguments.wait_for):
                player.play(arguments.rate, arguments.loop, at)
                log("stopped" if stopping.is_set() else "the bag is over")
    except (OSError, ValueError) as error:
        logger.fatal(str(error))
        return 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="player",
        description="Plays topics of a bag with their stamps, and its time on /clock: start the listening nodes with "
        "use_sim_time. Needs no rosbag2.",
    )
    add = parser.add_argument
    add("bag", help="folder or file; also package://PACKAGE/PATH")
    add("--topics", nargs="+", default=[], help="default: all images, camera infos and transforms")
    add("--wait-for", default="", metavar="NODE", help="begin when this node, such as /decaf/segmenter, takes a topic")
    add("--rate", type=_positive, default=1.0, help="seconds of the bag in a second (%(default)g)")
    add("--loop", action="store_true", help="begin again at the end, with later stamps")
    add("--query", default="", metavar="TEXT", help="also asks this")
    add("--query-at", type=float, default=2.0, metavar="S", help="at so many seconds of the bag (%(default)g)")
    add("--query-topic", default="/decaf/query", metavar="TOPIC", help="where to ask (%(default)s)")
    return parser


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number over 0, got {text!r}")
    return number


if __name__ == "__main__":
    sys.exit(main())
