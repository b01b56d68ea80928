"""The node: a camera stream and questions about it in, masks and tracklets out. `ros2 run decaf_ros segmenter`."""

from __future__ import annotations

import gc
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.config import DecafConfig
from decaf_ros.io.messages import TOPICS
from decaf_ros.nodes.action import SegmentAction
from decaf_ros.nodes.conversions import CLASSES, make_message
from decaf_ros.nodes.diagnostics import diagnostics_message
from decaf_ros.nodes.inbox import InboxCounts
from decaf_ros.nodes.params import Parameters
from decaf_ros.nodes.spinning import answer_impossible_transitions, run_node
from decaf_ros.nodes.worker import Worker
from decaf_ros.online.statistics import Statistics
from decaf_ros.types import Notice, Query

_DEACTIVATED = "the node was deactivated"


class Segmenter(LifecycleNode):
    """Lifecycle node `segmenter`; topics, parameters and the action as in the README.

    Configuring loads the models, activating starts the worker thread and the subscriptions. The worker thread owns
    the models and the stream: ROS callbacks only put messages into its inbox. Images are converted on the worker, so
    that those which a newer one replaces cost nothing.

    Raises ValueError for a bad or unknown parameter.
    """

    # rclpy destroys a node that could not be made, too.
    _action: SegmentAction | None = None

    def __init__(self) -> None:
        super().__init__("segmenter", automatically_declare_parameters_from_overrides=True)
        self._options = Parameters(self, self._change_config)
        self._phase = "unconfigured"
        self._failure = ""
        self._handlers: Any = None
        # Over all configurations, so that no id that a client has seen ever means something else.
        self._query_numbers, self._target_ids = itertools.count(1), itertools.count(1)
        self._worker: Worker | None = None
        self._inputs: list[Any] = []
        self._outputs: dict[str, Any] = {}
        self._action = SegmentAction(self, self._new_query, lambda: self._phase == "active", self._ask, self._cancel)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A simulated clock that stands still is something to be told of.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = self._options.config.node.diagnostics_period_s
        self._diagnostics_timer = self.create_timer(period_s, self._diagnose, clock=steady)
        answer_impossible_transitions(self)

    # Transitions

    def autostart(self) -> None:
        """Configures and activates, if the parameters say so."""
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
        """Takes the step and logs an error, because rclpy does not say why a transition failed. failure: what the
        diagnostics shall go on telling after it."""
        try:
            step()
        except Exception as error:  # whatever a model or a driver may raise: the node stays, and can be asked again
            self._failure = f"cannot become {phase}: {type(error).__name__}: {error}"
            self.get_logger().error(self._failure)
            self.get_logger().debug(traceback.format_exc())
            return on_failure
        self._phase, self._failure = phase, failure
        self.get_logger().info(phase)
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        # Importing torch and transformers takes seconds; the process can be seen, and stopped, meanwhile.
        from decaf_ros.online.handlers import Handlers
        from decaf_ros.pipeline import Decaf

        config = self._options.config
        self.get_logger().info(f"loading {config.mllm.checkpoint} and {config.sam2.checkpoint}")
        decaf = Decaf.from_config(config)
        self._worker = Worker(
            config.node.drop_frames, lambda message: self._handlers.on_image(message), self._end_stream, self._on_error
        )
        self._handlers = Handlers(
            decaf,
            make_message,
            self._publish,
            self._log,
            self._is_wanted,
            self._worker.between_stages,
            self._action.watch,
            self._query_numbers,
            self._target_ids,
        )
        self._outputs = self._make_outputs(config)
        self._diagnostics_timer.timer_period_ns = int(config.node.diagnostics_period_s * 1e9)
        self._options.locked = True

    def _activate(self) -> None:
        self._worker.start()
        self._inputs = self._make_inputs(self._options.config)

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
        """Gives every query its answer before the process ends."""
        self._deactivate()
        if self._outputs:
            # A publisher takes with it what its subscribers have not received yet.
            self._outputs["status"].wait_for_all_acked(Duration(seconds=1))

    @property
    def busy(self) -> bool:
        """Whether a goal of the action has yet to get its result."""
        return self._action.busy

    def destroy_node(self) -> None:
        if self._action is not None:
            self._action.destroy()
            self._action = None
        super().destroy_node()

    # Topics

    def _make_outputs(self, config: DecafConfig) -> dict[str, Any]:
        """Reliable, which suits any subscriber; heatmaps come a window at a time; latecomers see `status` too."""
        latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        qos = {"heatmaps": config.window.size, "tracklets": 10, "status": latched, "overlay": 1}
        return {
            topic: self.create_publisher(CLASSES[type_name], topic, qos.get(topic, 5))
            for topic, type_name in TOPICS.items()
        }

    def _make_inputs(self, config: DecafConfig) -> list[Any]:
        """Depth 1, as the inbox keeps the newest image only; where it keeps them all, a burst must not be lost."""
        reliability = QoSReliabilityPolicy[config.node.reliability.upper()]
        qos = QoSProfile(depth=1 if config.node.drop_frames else 100, reliability=reliability)
        compressed = config.node.image_transport == "compressed"
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        return [
            self.create_subscription(kind, topic, self._worker.put_image, qos),
            self.create_subscription(String, "query", lambda message: self._ask(self._new_query(message.data)), 10),
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
        # rclpy remembers the severity of each line that logs, and refuses another one.
        if level == "error":
            self.get_logger().error(text)
        elif level == "warn":
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    # To the worker thread, and on it

    def _new_query(self, text: str) -> Query:
        return self._handlers.new_query(text, self.get_clock().now().nanoseconds)

    def _ask(self, query: Query) -> bool:
        return self._worker.put_command(lambda: self._handlers.on_query(query))

    def _cancel(self, query_id: str, reason: str, then: Callable[[], None]) -> bool:
        def cancel() -> None:
            self._handlers.cancel(query_id, reason)
            then()

        return self._worker.put_command(cancel)

    def _change_config(self, config: DecafConfig) -> None:
        if self._handlers is not None:
            self._handlers.change_config(config)

    def _end_stream(self) -> None:
        try:
            self._handlers.stop(_DEACTIVATED)
        finally:
            self._action.end_all(_DEACTIVATED)

    def _on_error(self, error: Exception) -> None:
        self._handlers.report(Notice("error", f"unexpected error: {error!r}"), kind=repr(error))
        self.get_logger().error("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def main(args: Sequence[str] | None = None) -> int:
    return run_node(Segmenter, args)


if __name__ == "__main__":
    sys.exit(main())
