"""One camera of the node: its topics, action and services, and its stream."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.config import DecafConfig
from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS, check_topic
from decaf_ros.io.messages import TOPICS
from decaf_ros.io.space_messages import SPACE_TOPICS
from decaf_ros.io.vision_messages import VISION_TOPICS
from decaf_ros.nodes.action import SegmentAction
from decaf_ros.nodes.message_factory import CLASSES
from decaf_ros.nodes.queries import QueryServices
from decaf_ros.nodes.worker import Worker
from decaf_ros.types import Notice, Query

if TYPE_CHECKING:
    from decaf_ros.online.handlers import Handlers

# All: each query gets an answer, also in a burst that comes faster than this process takes it.
EVERY_QUERY = QoSProfile(history=HistoryPolicy.KEEP_ALL)
_LATCHED = ("status", "label_info")
# Invariant: queries and images come only while the node is configured.
_CONFIGURED = "the node is configured"


def image_qos(config: DecafConfig) -> QoSProfile:
    """QoS of the image subscriptions. Depth 1 if the inbox keeps only the newest image, else enough for a burst."""
    reliability = ReliabilityPolicy[config.node.reliability.upper()]
    return QoSProfile(depth=1 if config.node.drop_frames else 100, reliability=reliability)


class Camera:
    """A camera. Its action and services live until `destroy`, so that results can be sent after a deactivation.

    Its handlers run on the worker thread, all methods except `end_stream` on the executor's.

    Args:
        node: the node.
        name: comes before all its names, `NAME/masks`; empty for the only camera of a node.
        config: returns the configuration.
        is_active: whether the node is active.
        log: called with level ("info", "warn", "error") and text.
    """

    def __init__(
        self,
        node: LifecycleNode,
        name: str,
        config: Callable[[], DecafConfig],
        is_active: Callable[[], bool],
        log: Callable[[str, str], None],
    ) -> None:
        self.name = name
        self.handlers: Handlers | None = None
        self._node = node
        self._log = log
        self._prefix = f"{name}/" if name else ""
        self._worker: Worker | None = None
        # Whether a command for `check_space` waits.
        self._is_space_due = False
        self._topics: dict[str, str] = {}
        self._inputs: list[Subscription[Any]] = []
        self._outputs: dict[str, Publisher[Any]] = {}
        self._action = SegmentAction(
            node, f"{self._prefix}segment", self._new_query, is_active, self._ask, self._cancel
        )
        self._services = QueryServices(
            node, f"~/{self._prefix}", config, is_active, self._new_query, self._ask, self.command
        )

    # Transitions

    def configure(self, config: DecafConfig, worker: Worker, make_handlers: Callable[..., Handlers]) -> None:
        """make_handlers: makes Handlers from its arguments `publish`, `log`, `is_wanted` and `watch`."""
        self._worker = worker
        self.handlers = make_handlers(
            publish=self._publish, log=self._log_own, is_wanted=self._is_wanted, watch=self._action.watch
        )
        self._outputs = self._make_outputs(config)

    def activate(self, config: DecafConfig) -> None:
        """Subscribes."""
        qos = image_qos(config)
        compressed = config.node.image_transport == "compressed"
        kind = CompressedImage if compressed else Image
        subscribe = self._node.create_subscription
        self._inputs = [
            subscribe(kind, self._topics["image"], self._take_image, qos),
            subscribe(String, self._prefix + "query", lambda message: self.take_query(message.data), EVERY_QUERY),
        ]
        space = self.handlers.space if self.handlers is not None else None
        if space is not None:
            compressed = config.space.depth_transport == "compressed"
            kind = CompressedImage if compressed else Image
            several = QoSProfile(depth=5 if config.node.drop_frames else 100, reliability=qos.reliability)
            # Best effort matches every publisher.
            newest = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._inputs += [
                subscribe(kind, self._topics["depth"], self._take_depth, several),
                subscribe(CameraInfo, self._prefix + "camera_info", space.put_info, newest),
                subscribe(CameraInfo, self._prefix + "depth/camera_info", space.put_depth_info, newest),
            ]

    def deactivate(self) -> None:
        for subscription in self._inputs:
            self._node.destroy_subscription(subscription)
        self._inputs = []

    def clean_up(self) -> None:
        for publisher in self._outputs.values():
            self._node.destroy_publisher(publisher)
        self._outputs, self.handlers, self._worker = {}, None, None

    def wait_until_sent(self) -> None:
        """Waits for subscribers of `status`: destroying a publisher discards undelivered messages."""
        if self._outputs:
            self._outputs["status"].wait_for_all_acked(Duration(seconds=1))

    def destroy(self) -> None:
        self._action.destroy()
        self._services.destroy()

    @property
    def busy(self) -> bool:
        """Whether a goal of the action has not ended yet."""
        return self._action.busy

    # Topics

    def name_topics(self, config: DecafConfig) -> None:
        """Names the topics of images and depth, before `activate`. Raises ValueError for one of another transport."""
        image, depth = config.node.image_transport, config.space.depth_transport
        self._topics = {
            "image": f"{self._prefix}image{IMAGE_TRANSPORTS[image]}",
            "depth": f"{self._prefix}depth{DEPTH_TRANSPORTS[depth]}",
        }
        resolved = {name: self._node.resolve_topic_name(topic) for name, topic in self._topics.items()}
        check_topic("node.image_transport", resolved["image"], image, IMAGE_TRANSPORTS)
        if config.space.enabled:
            check_topic("space.depth_transport", resolved["depth"], depth, DEPTH_TRANSPORTS)

    def _make_outputs(self, config: DecafConfig) -> dict[str, Publisher[Any]]:
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
            topic: self._node.create_publisher(CLASSES[type_name], self._prefix + topic, qos.get(topic, 5))
            for topic, type_name in topics.items()
            if type_name in CLASSES
        }

    def _publish(self, topic: str, message: Any) -> None:
        self._outputs[topic].publish(message)

    def _is_wanted(self, topic: str) -> bool:
        publisher = self._outputs.get(topic)
        # Results of the action hold what `tracklets` has, with the places.
        has_consumer = topic in _LATCHED or (topic == "tracklets" and self.busy)
        return publisher is not None and (has_consumer or publisher.get_subscription_count() > 0)

    def _log_own(self, level: str, text: str) -> None:
        self._log(level, f"{self.name}: {text}" if self.name else text)

    # To the worker thread

    def _take_image(self, message: Any) -> None:
        """Notes when the image came: it may wait. A simulated clock that has not begun counts as none."""
        if self._worker is not None and self.handlers is not None:
            arrival_ns = self._node.get_clock().now().nanoseconds or time.time_ns()
            handle = partial(self.handlers.on_image, message, arrival_ns)
            self._worker.put_image(partial(self._run_own, handle), self.name)

    def _take_depth(self, message: Any) -> None:
        if self.handlers is not None and self.handlers.space is not None:
            self.handlers.space.put_depth(message)
            self.check_space()

    def check_space(self) -> None:
        """Publishes 3D outputs whose depth or transform has come, or has not come in time."""
        space = self.handlers.space if self.handlers is not None else None
        if space is None or not space.waits or self._is_space_due:
            return

        def publish(handlers: Handlers) -> None:
            self._is_space_due = False
            space.publish_ready()

        self._is_space_due = True  # before the command, which may run at once
        if not self.command(publish):
            self._is_space_due = False

    def take_query(self, text: str) -> None:
        self._ask(self._new_query(text))

    def check_patience(self) -> None:
        if self.handlers is not None and self.handlers.is_waiting:
            self.command(lambda handlers: handlers.check_patience())

    def _new_query(self, text: str, policy: str = "", priority: int = 0) -> Query:
        assert self.handlers is not None, _CONFIGURED
        return self.handlers.new_query(text, self._node.get_clock().now().nanoseconds, policy, priority)

    def _ask(self, query: Query) -> bool:
        return self.command(lambda handlers: handlers.on_query(query))

    def _cancel(self, query_id: str, reason: str, then: Callable[[], None]) -> bool:
        def cancel(handlers: Handlers) -> None:
            handlers.cancel(query_id, reason)
            then()

        return self.command(cancel)

    def command(self, run: Callable[[Handlers], None]) -> bool:
        """Runs a function on the worker thread. Returns False if there is none; the function will not run then."""
        worker, handlers = self._worker, self.handlers
        if worker is None or handlers is None:
            return False
        return worker.put_command(partial(self._run_own, partial(run, handlers)))

    # On the worker thread

    def _run_own(self, run: Callable[[], None]) -> None:
        """Runs a part of this camera's work. An unexpected error is a problem of this camera alone."""
        try:
            run()
        except Exception as error:
            self.report_error(error)
            self._log_own("error", "".join(traceback.format_exception(error)))

    def report_error(self, error: Exception) -> None:
        """Shows an unexpected error in the diagnostics."""
        if self.handlers is not None:
            self.handlers.report(Notice("error", f"unexpected error: {error!r}"), kind=repr(error))

    def end_stream(self, reason: str) -> None:
        """Ends the stream and all goals."""
        try:
            assert self.handlers is not None, _CONFIGURED
            self.handlers.stop(reason)
        finally:
            self._action.end_all(reason)
