"""One camera of the node: its topics, action and services, and its stream."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rclpy.lifecycle import LifecycleNode
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.config import DecafConfig
from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS, check_topic
from decaf_ros.nodes.action import SegmentAction
from decaf_ros.nodes.outputs import Outputs
from decaf_ros.nodes.queries import QueryServices
from decaf_ros.nodes.worker import Worker
from decaf_ros.types import Notice, Query, QueryState

if TYPE_CHECKING:
    from decaf_ros.online.handlers import Handlers

# All: each query gets an answer, also in a burst that comes faster than this process takes it.
EVERY_QUERY = QoSProfile(history=HistoryPolicy.KEEP_ALL)
# Invariant: queries and images come only while the node is configured.
_CONFIGURED = "the node is configured"


def image_qos(config: DecafConfig) -> QoSProfile:
    """QoS of the image subscriptions. Depth 1 if the inbox keeps only the newest image, else enough for a burst."""
    reliability = ReliabilityPolicy[config.node.reliability.upper()]
    return QoSProfile(depth=1 if config.node.drop_frames else 100, reliability=reliability)


class Camera:
    """A camera. Its action and services live until `destroy`, so that results can be sent after a deactivation.

    Its handlers run on the worker thread, the methods below "On the worker thread" too, all others on the executor's.

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
        # Whether a command for `check_space` and `check_patience` waits.
        self._is_space_due = self._is_patience_due = False
        self._topics: dict[str, str] = {}
        self._inputs: list[Subscription[Any]] = []
        self._outputs: Outputs | None = None
        self._action = SegmentAction(
            node, f"{self._prefix}segment", self._new_query, is_active, self._ask, self.end_query
        )
        self._services = QueryServices(
            node,
            f"~/{self._prefix}",
            config,
            is_active,
            self._new_query,
            self._ask,
            self.end_query,
            lambda: self.handlers.ledger.events if self.handlers else (),
            self.command,
        )

    # Transitions

    def configure(self, config: DecafConfig, worker: Worker, make_handlers: Callable[..., Handlers]) -> Handlers:
        """Makes the publishers and the handlers, and returns these.

        make_handlers: makes Handlers from its arguments `publish`, `log`, `is_wanted` and `watch`.
        """
        self._worker = worker
        self._is_space_due = self._is_patience_due = False
        outputs = Outputs(self._node, self._prefix, config, lambda: self.busy, self._action.watch, self._log_own)
        self._outputs = outputs
        self.handlers = make_handlers(
            publish=outputs.publish, log=outputs.log, is_wanted=outputs.is_wanted, watch=outputs.watch
        )
        return self.handlers

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
        if self._outputs is not None:
            self._outputs.close()
        self._outputs = self.handlers = self._worker = None

    def wait_until_sent(self) -> None:
        """Waits for subscribers of `status`."""
        if self._outputs is not None:
            self._outputs.wait_until_sent()

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

    def _log_own(self, level: str, text: str) -> None:
        self._log(level, f"{self.name}: {text}" if self.name else text)

    # To the worker thread

    def _take_image(self, message: Any) -> None:
        """Notes when the image came: it may wait. A simulated clock that has not begun counts as none."""
        if self._worker is not None and self.handlers is not None:
            arrival_ns = self._node.get_clock().now().nanoseconds or time.time_ns()
            handle = partial(self.handlers.on_image, message, arrival_ns)
            self._worker.put_image(partial(self._run_own, self.handlers, handle), self.name)

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
        if self.handlers is None or not self.handlers.is_waiting or self._is_patience_due:
            return

        def check(handlers: Handlers) -> None:
            self._is_patience_due = False
            handlers.check_patience()

        self._is_patience_due = True  # before the command, as above
        if not self.command(check):
            self._is_patience_due = False

    def _new_query(self, text: str, policy: str = "", priority: int = 0) -> Query:
        assert self.handlers is not None, _CONFIGURED
        return self.handlers.new_query(text, self._node.get_clock().now().nanoseconds, policy, priority)

    def _ask(self, query: Query) -> bool:
        """Passes a query to the worker thread. Returns False if there is none."""
        handlers = self.handlers
        if handlers is None:
            return False
        handlers.ledger.open(query)
        is_asked = self.command(lambda handlers: handlers.on_query(query))
        if not is_asked:
            handlers.ledger.forget(query.id)
        return is_asked

    def end_query(self, query_id: str, reason: str, state: QueryState = QueryState.CANCELLED) -> list[str]:
        """Ends a query, or all if the id is empty, at once; the worker thread follows. Returns the ids of those that it
        ended."""
        if self.handlers is None:
            return []
        ended = self.handlers.ledger.close(query_id, state, reason)
        self.command(lambda handlers: None)  # wakes the thread, which then settles
        return ended

    def fail_unanswered(self, for_s: float, reason: str) -> None:
        """Answers with FAILED, at once, the queries that have been waiting for an answer for so many seconds."""
        for query_id in self.handlers.ledger.unanswered(for_s) if self.handlers is not None else ():
            self.end_query(query_id, reason, QueryState.FAILED)

    def end_all(self, reason: str) -> None:
        """Ends all queries and goals at once."""
        try:
            self.end_query("", reason)
        finally:
            self._action.end_all(reason)

    def command(self, run: Callable[[Handlers], None]) -> bool:
        """Runs a function on the worker thread. Returns False if there is none; the function will not run then."""
        worker, handlers = self._worker, self.handlers
        if worker is None or handlers is None:
            return False
        return worker.put_command(partial(self._run_own, handlers, partial(run, handlers)))

    # On the worker thread

    def _run_own(self, handlers: Handlers, run: Callable[[], None]) -> None:
        """Runs a part of this camera's work. An unexpected error is a problem of this camera alone."""
        # Before, too: what ended on another thread must not show up in the outputs of this work.
        for step in (handlers.settle, run, handlers.settle):
            try:
                step()
            except Exception as error:
                _report(handlers, error)
                if self._outputs is not None:
                    self._outputs.log("error", "".join(traceback.format_exception(error)))

    def report_error(self, error: Exception) -> None:
        """Shows an unexpected error in the diagnostics."""
        if self.handlers is not None:
            _report(self.handlers, error)

    def end_stream(self, reason: str) -> None:
        """Ends the stream and all goals."""
        try:
            assert self.handlers is not None, _CONFIGURED
            self.handlers.stop(reason)
        finally:
            self._action.end_all(reason)


def _report(handlers: Handlers, error: Exception) -> None:
    handlers.report(Notice("error", f"unexpected error: {error!r}"), kind=repr(error))
