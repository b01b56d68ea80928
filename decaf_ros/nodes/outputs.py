"""The outputs of a camera of the node, from configuration to clean-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

from decaf_ros.config import DecafConfig
from decaf_ros.io.messages import TOPICS
from decaf_ros.io.space_messages import SPACE_TOPICS
from decaf_ros.io.vision_messages import VISION_TOPICS
from decaf_ros.nodes.message_factory import CLASSES
from decaf_ros.types import Output

_LATCHED = ("status", "label_info")


class Outputs:
    """The publishers of a camera, its log and the watcher of its goals, until `close`: a thread that was left behind
    with a hanging model has no effect afterwards.

    Args:
        node: the node.
        prefix: comes before the names of the topics.
        config: the configuration.
        has_goals: whether goals of the action have not ended yet.
        watch: see `Handlers`.
        log: see `Handlers`.
    """

    def __init__(
        self,
        node: LifecycleNode,
        prefix: str,
        config: DecafConfig,
        has_goals: Callable[[], bool],
        watch: Callable[[Output], None],
        log: Callable[[str, str], None],
    ) -> None:
        self._node = node
        self._has_goals = has_goals
        self._watch = watch
        self._log = log
        self._publishers = self._make(prefix, config)

    def _make(self, prefix: str, config: DecafConfig) -> dict[str, Publisher[Any]]:
        """Makes reliable publishers, which match any subscription, of the messages that are installed. `status` and
        `label_info` are latched for late subscribers."""
        topics = TOPICS | VISION_TOPICS | SPACE_TOPICS
        if not config.space.enabled:
            topics = {topic: kind for topic, kind in topics.items() if topic not in (*SPACE_TOPICS, "detections_3d")}
        latched = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # The heatmaps of a whole window are published at once.
        qos: dict[str, QoSProfile | int] = {
            "heatmaps": config.window.size,
            "tracklets": 10,
            "status": latched,
            "label_info": QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
            "overlay": 1,
        }
        return {
            topic: self._node.create_publisher(CLASSES[type_name], prefix + topic, qos.get(topic, 5))
            for topic, type_name in topics.items()
            if type_name in CLASSES
        }

    def close(self) -> None:
        publishers, self._publishers = self._publishers, {}
        for publisher in publishers.values():
            self._node.destroy_publisher(publisher)

    def wait_until_sent(self) -> None:
        """Waits for subscribers of `status`: destroying a publisher discards undelivered messages."""
        if self._publishers:
            self._publishers["status"].wait_for_all_acked(Duration(seconds=1))

    def publish(self, topic: str, message: Any) -> None:
        if publishers := self._publishers:
            publishers[topic].publish(message)

    def is_wanted(self, topic: str) -> bool:
        publisher = self._publishers.get(topic)
        # Results of the action hold what `tracklets` has, with the places.
        has_consumer = topic in _LATCHED or (topic == "tracklets" and self._has_goals())
        return publisher is not None and (has_consumer or publisher.get_subscription_count() > 0)

    def watch(self, output: Output) -> None:
        if self._publishers:
            self._watch(output)

    def log(self, level: str, text: str) -> None:
        if self._publishers:
            self._log(level, text)
