"""A topic of the doctor's: who publishes it, whether the QoS fits, how fast it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible

from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS, PACKET_TYPES, decoding, transport_of
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding
from decaf_ros.io.messages import stamp_ns

_DISCOVERY_S = 5.0
# In the name of a node that is not known yet.
_UNKNOWN = "_UNKNOWN_"
_TRANSPORTS = {"node.image_transport": IMAGE_TRANSPORTS, "space.depth_transport": DEPTH_TRANSPORTS}
_IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage", *PACKET_TYPES)
PROFILE = "config/fastdds_large_shm.xml"
LOSSES = (
    f"images larger than 512 KiB are lost on the way: give {PROFILE} to the camera driver (docs/workspace.md), or "
    "publish reliably and set node.reliability to reliable"
)


class Topic:
    """A topic of images as the segmenter would subscribe to it.

    message: the first one; None before it came. stamps_ns: of all that came.

    Args:
        node: a node without other subscriptions.
        name: of the topic, with the end of its transport.
        kind: class of the messages.
        reliability: that the segmenter asks for.
        option: the option that says the transport.
        argument: the command's argument and the launch file's that name the topic.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        kind: Any,
        reliability: ReliabilityPolicy,
        option: str,
        argument: tuple[str, str],
    ) -> None:
        self._node, self._option, self._argument = node, option, argument
        self.name = node.resolve_topic_name(name)
        self.kind = kind
        # The segmenter keeps fewer; here all are counted.
        self.qos = QoSProfile(depth=100, reliability=reliability)
        self.message: Any = None
        self.stamps_ns: list[int] = []
        self._times: list[float] = []

    def find(self) -> Iterator[Finding]:
        """Publishers, their type and QoS. The last finding is WRONG or NOT_CHECKED if no message can come."""
        publishers = self._publishers()
        if not publishers:
            yield Finding(self.name, WRONG, "nobody publishes images here", self._others())
            return
        expected = f"sensor_msgs/msg/{self.kind.__name__}"
        kinds = sorted({publisher.topic_type for publisher in publishers})
        if kinds != [expected]:
            transport = next(filter(None, (transport_of(self.name, kind) for kind in kinds)), "")
            mend = f"name another topic ({self._argument[0]}), or set {self._option} to the other transport"
            mend = decoding(self.name, transport) if transport else mend
            yield Finding(self.name, WRONG, f"expected {expected}, got {', '.join(kinds)}", mend)
            return
        names = ", ".join(f"{entry.node_namespace.rstrip('/')}/{entry.node_name}" for entry in publishers)
        yield Finding(self.name, OK, f"{expected} from {names}")
        matched = False
        for publisher in publishers:
            finding = self._qos_finding(publisher)
            matched = matched or finding.state == OK
            yield finding
        if not matched:
            yield Finding(f"images of {self.name}", NOT_CHECKED, "the QoS of no publisher fits")

    def take(self, message: Any) -> None:
        self.message = self.message or message
        self.stamps_ns.append(stamp_ns(message.header.stamp))
        self._times.append(time.monotonic())

    def rate(self, watch_s: float) -> Finding:
        """The messages that came in this time. WRONG if nothing did, or stamps stand still."""
        name, times = f"images of {self.name}", self._times
        if not times:
            mend = f"is the camera on, by its driver's own log? If it is, {LOSSES}"
            return Finding(name, WRONG, f"none came in {watch_s:g} s", mend)
        text = f"{len(times)} in {watch_s:g} s, {self.hz(watch_s):.1f} Hz"
        several = len(times) > 1
        if not self.stamps_ns[0] or several and not (np.diff(self.stamps_ns) > 0).any():
            mend = "the driver must set header.stamp; until then the segmenter uses the time of arrival"
            return Finding(name, WRONG, f"{text}, but their stamps do not move", mend)
        return Finding(name, OK, text)

    def hz(self, watch_s: float) -> float:
        """Messages a second, by the times of arrival."""
        times = self._times
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else len(times) / watch_s

    @property
    def frame(self) -> str:
        """The frame_id of the messages, empty if none came."""
        return str(self.message.header.frame_id) if self.message is not None else ""

    def _publishers(self) -> list[Any]:
        """Waits until there are some, and their nodes' names, which come later."""
        until = time.monotonic() + _DISCOVERY_S
        while True:
            found = self._node.get_publishers_info_by_topic(self.name)
            named = found and not any(_UNKNOWN in publisher.node_name for publisher in found)
            if named or time.monotonic() > until:
                return found
            rclpy.spin_once(self._node, timeout_sec=0.1)

    def _others(self) -> str:
        """Names the image topics that there are."""
        all_topics = self._node.get_topic_names_and_types()
        topics = sorted(name for name, types in all_topics if set(_IMAGE_TYPES).intersection(types))
        topics = [name for name in topics if self._node.get_publishers_info_by_topic(name)]
        transports = _TRANSPORTS[self._option]
        raw = self.name.removesuffix(transports["compressed"])
        for transport, end in transports.items():
            if raw + end in topics:
                return f"set {self._option} to {transport}: that topic is published"
        there = f"images are on {', '.join(topics)}" if topics else "no node publishes images on any topic"
        command, launch = self._argument
        return (
            f"{there}; start the camera driver, or name its topic: {command} TOPIC here, {launch}:=TOPIC at the launch"
        )

    def _qos_finding(self, publisher: Any) -> Finding:
        name = f"QoS of {self.name}"
        verdict, reason = qos_check_compatible(publisher.qos_profile, self.qos)
        offered = f"{publisher.node_name} offers {publisher.qos_profile.reliability.name.lower()}"
        asked = f"the segmenter asks for {self.qos.reliability.name.lower()}"
        if verdict == QoSCompatibility.ERROR:
            mend = "set node.reliability to best_effort, or let the camera driver publish reliably"
            reason = reason.removeprefix("ERROR: ").strip(" ;")
            return Finding(name, WRONG, f"{offered}, {asked}: no image will come ({reason})", mend)
        return Finding(name, OK, f"{offered}, {asked}")


def listen(node: Node, topics: Sequence[Topic], watch_s: float) -> None:
    """Receives the messages of all topics for a time."""
    subscriptions = [node.create_subscription(topic.kind, topic.name, topic.take, topic.qos) for topic in topics]
    spin(node, watch_s)
    for subscription in subscriptions:
        node.destroy_subscription(subscription)


def newest(node: Node, kind: Any, topic: str, watch_s: float) -> Any:
    """The first message of a topic, by best effort, within a time; None if none comes."""
    found: list[Any] = []
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    subscription = node.create_subscription(kind, topic, found.append, qos)
    until = time.monotonic() + watch_s
    while not found and time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_subscription(subscription)
    return found[0] if found else None


def spin(node: Node, duration_s: float) -> None:
    until = time.monotonic() + duration_s
    while time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.1)
