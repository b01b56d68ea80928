"""The node: takes camera images and queries, publishes masks and tracklets. `ros2 run decaf_ros segmenter`."""

from __future__ import annotations

import gc
import itertools
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.config import DecafConfig
from decaf_ros.io.messages import TOPICS
from decaf_ros.nodes.action import SegmentAction
from decaf_ros.nodes.diagnostics import diagnostics_message
from decaf_ros.nodes.image_backend import choose_converter
from decaf_ros.nodes.inbox import InboxCounts
from decaf_ros.nodes.message_factory import CLASSES, make_message
from decaf_ros.nodes.params import Parameters
from decaf_ros.nodes.queries import QueryServices
from decaf_ros.nodes.spinning import answer_impossible_transitions, run_node
from decaf_ros.nodes.worker import Worker
from decaf_ros.online.statistics import Statistics
from decaf_ros.types import Notice, Query

if TYPE_CHECKING:
    from decaf_ros.online.handlers import Handlers

_EVERY_QUERY = QoSProfile(history=HistoryPolicy.KEEP_ALL)
_PATIENCE_PERIOD_S = 0.5
_DEACTIVATED = "the node was deactivated"
# Invariant: queries and images come only while the node is configured.
_CONFIGURED = "the node is configured"


class Segmenter(LifecycleNode):
    """Lifecycle node `segmenter`. Topics, services, parameters and the action: see the README.

    Configuring loads the models. Activating starts the worker thread and the subscriptions. The worker thread owns the
    models and the stream; ROS callbacks only put messages into its inbox. Images are converted on the worker thread, so
    dropped images cost nothing.

    Raises ValueError for a bad or unknown parameter.
    """

    def __init__(self) -> None:
        super().__init__("segmenter", automatically_declare_parameters_from_overrides=True)
        self._options = Parameters(self, self._change_config)
        self._phase = "unconfigured"
        self._failure = ""
        self._handlers: Handlers | None = None
        # Shared by all configurations, so that ids stay unique over the life of the node.
        self._query_numbers, self._target_ids = itertools.count(1), itertools.count(1)
        self._worker: Worker | None = None
        self._inputs: list[Subscription[Any]] = []
        self._outputs: dict[str, Publisher[Any]] = {}
        self._action = SegmentAction(self, self._new_query, self._is_active, self._ask, self._cancel)
        QueryServices(self, lambda: self._options.config, self._is_active, self._new_query, self._ask, self._command)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: diagnostics must also be published while a simulated clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = self._options.config.node.diagnostics_period_s
        self._diagnostics_timer = self.create_timer(period_s, self._diagnose, clock=steady)
        self._patience_timer = self.create_timer(_PATIENCE_PERIOD_S, self._check_patience, clock=steady)
        answer_impossible_transitions(self)

    # Transitions

    def autostart(self) -> None:
        """Configures and activates if `node.autostart` is set."""
        if self._options.config.node.autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._configure, "inactive", TransitionCallbackReturn.FAILURE)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._activate, "active")

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._deactivate, "inactive")

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._clean_up, "unconfigured")

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._release, "finalized")

    def on_error(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._release, "unconfigured", failure=self._failure)

    def _transition(
        self,
        step: Callable[[], None],
        phase: str,
        on_failure: TransitionCallbackReturn = TransitionCallbackReturn.ERROR,
        failure: str = "",
    ) -> TransitionCallbackReturn:
        """Runs the step of a transition. Logs errors, because rclpy does not report why a transition failed.

        failure: error text for the diagnostics after a successful step.
        """
        try:
            step()
        except Exception as error:  # any error of a model or a driver: the node survives, and can be configured again
            self._failure = f"cannot become {phase}: {type(error).__name__}: {error}"
            self.get_logger().error(self._failure)
            self.get_logger().debug(traceback.format_exc())
            return on_failure
        self._phase, self._failure = phase, failure
        self.get_logger().info(phase)
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        # Imports torch and transformers, which takes seconds; the node is already visible, and can be stopped.
        from decaf_ros.online.handlers import Handlers
        from decaf_ros.pipeline import Decaf

        config = self._options.config
        convert = choose_converter(config.node.image_backend, self._log)
        self.get_logger().info(f"loading {config.mllm.checkpoint} and {config.sam2.checkpoint}")
        decaf = Decaf.from_config(config)
        decaf.grounder.engine.pace.unit_ms = config.engine.unit_ms
        self._worker = Worker(
            config.node.drop_frames,
            self._handle_image,
            self._advance,
            self._prepare,
            lambda: decaf.config.engine.unit_ms / 1e3,
            self._end_stream,
            self._report_error,
        )
        self._handlers = Handlers(
            decaf,
            make_message,
            self._publish,
            self._log,
            self._is_wanted,
            True,
            self._action.watch,
            self._query_numbers,
            self._target_ids,
            convert,
        )
        self._outputs = self._make_outputs(config)
        self._diagnostics_timer.timer_period_ns = int(config.node.diagnostics_period_s * 1e9)
        self._options.locked = True

    def _activate(self) -> None:
        assert self._worker is not None, _CONFIGURED
        self._worker.start()
        self._inputs = self._make_inputs(self._options.config, self._worker)

    def _deactivate(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        if self._worker is not None:
            self._worker.stop()

    def _clean_up(self) -> None:
        for publisher in self._outputs.values():
            self.destroy_publisher(publisher)
        self._outputs, self._handlers, self._worker = {}, None, None
        self._options.locked = False
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _release(self) -> None:
        self._deactivate()
        self._clean_up()

    def stop(self) -> None:
        """Answers every query before the process ends."""
        self._deactivate()
        if self._outputs:
            # Destroying a publisher discards undelivered messages.
            self._outputs["status"].wait_for_all_acked(Duration(seconds=1))

    @property
    def busy(self) -> bool:
        """Whether a goal of the action has not ended yet."""
        return self._action.busy

    def destroy_node(self) -> None:
        # rclpy also destroys a node whose __init__ failed.
        if hasattr(self, "_action"):
            self._action.destroy()
            del self._action
        super().destroy_node()

    def _is_active(self) -> bool:
        return self._phase == "active"

    # Topics

    def _make_outputs(self, config: DecafConfig) -> dict[str, Publisher[Any]]:
        """Makes reliable publishers, which match any subscription. `status` is latched for late subscribers."""
        latched = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # The heatmaps of a whole window are published at once.
        qos: dict[str, QoSProfile | int] = {
            "heatmaps": config.window.size,
            "tracklets": 10,
            "status": latched,
            "overlay": 1,
        }
        return {
            topic: self.create_publisher(CLASSES[type_name], topic, qos.get(topic, 5))
            for topic, type_name in TOPICS.items()
        }

    def _make_inputs(self, config: DecafConfig, worker: Worker) -> list[Subscription[Any]]:
        """Makes the subscriptions. Depth 1 if the inbox keeps only the newest image, else enough for a burst."""
        reliability = ReliabilityPolicy[config.node.reliability.upper()]
        qos = QoSProfile(depth=1 if config.node.drop_frames else 100, reliability=reliability)
        compressed = config.node.image_transport == "compressed"
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        return [
            self.create_subscription(kind, topic, self._take_image, qos),
            # All: each query gets an answer, also in a burst that comes faster than this process takes it.
            self.create_subscription(String, "query", self._take_query, _EVERY_QUERY),
        ]

    def _publish(self, topic: str, message: Any) -> None:
        self._outputs[topic].publish(message)

    def _is_wanted(self, topic: str) -> bool:
        return self._outputs[topic].get_subscription_count() > 0

    def _diagnose(self) -> None:
        statistics = self._handlers.statistics if self._handlers else Statistics()
        counts = self._worker.counts if self._worker else InboxCounts()
        name, now_ns = self.get_fully_qualified_name(), self.get_clock().now().nanoseconds
        self._diagnostics.publish(diagnostics_message(name, self._phase, self._failure, statistics, counts, now_ns))

    def _log(self, level: str, text: str) -> None:
        # Separate calls: rclpy raises if one call site logs with different severities.
        if level == "error":
            self.get_logger().error(text)
        elif level == "warn":
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    # To and on the worker thread

    def _take_image(self, message: Any) -> None:
        """Notes when the image came: it may wait. A simulated clock that has not begun counts as none."""
        if self._worker is not None:
            arrival_ns = self.get_clock().now().nanoseconds or time.time_ns()
            self._worker.put_image((message, arrival_ns))

    def _check_patience(self) -> None:
        if self._is_active() and self._handlers and self._handlers.is_waiting:
            self._command(lambda handlers: handlers.check_patience())

    def _take_query(self, message: String) -> None:
        self._ask(self._new_query(message.data))

    def _new_query(self, text: str, policy: str = "", priority: int = 0) -> Query:
        assert self._handlers is not None, _CONFIGURED
        return self._handlers.new_query(text, self.get_clock().now().nanoseconds, policy, priority)

    def _ask(self, query: Query) -> bool:
        return self._command(lambda handlers: handlers.on_query(query))

    def _cancel(self, query_id: str, reason: str, then: Callable[[], None]) -> bool:
        def cancel(handlers: Handlers) -> None:
            handlers.cancel(query_id, reason)
            then()

        return self._command(cancel)

    def _command(self, run: Callable[[Handlers], None]) -> bool:
        """Runs a function on the worker thread. Returns False if there is none; the function will not run then."""
        worker, handlers = self._worker, self._handlers
        return worker is not None and handlers is not None and worker.put_command(lambda: run(handlers))

    def _change_config(self, config: DecafConfig) -> None:
        if self._handlers is not None:
            self._handlers.change_config(config)

    def _handle_image(self, item: tuple[Any, int]) -> None:
        assert self._handlers is not None, _CONFIGURED
        self._handlers.on_image(*item)

    def _advance(self) -> bool:
        assert self._handlers is not None, _CONFIGURED
        return self._handlers.advance()

    def _prepare(self) -> bool:
        assert self._handlers is not None, _CONFIGURED
        return self._handlers.prepare()

    def _end_stream(self) -> None:
        try:
            assert self._handlers is not None, _CONFIGURED
            self._handlers.stop(_DEACTIVATED)
        finally:
            self._action.end_all(_DEACTIVATED)

    def _report_error(self, error: Exception) -> None:
        assert self._handlers is not None, _CONFIGURED
        self._handlers.report(Notice("error", f"unexpected error: {error!r}"), kind=repr(error))
        self.get_logger().error("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def main(args: list[str] | None = None) -> int:
    return run_node(Segmenter, args)


if __name__ == "__main__":
    sys.exit(main())
