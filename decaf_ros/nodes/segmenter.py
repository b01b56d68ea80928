"""The node: takes camera images and queries, publishes masks and tracklets. `ros2 run decaf_ros segmenter`."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from std_msgs.msg import String

from decaf_ros.config import DecafConfig
from decaf_ros.nodes.camera import EVERY_QUERY, Camera
from decaf_ros.nodes.diagnostics import NodeState, diagnostics_message
from decaf_ros.nodes.image_backend import choose_converter
from decaf_ros.nodes.inbox import InboxCounts
from decaf_ros.nodes.memory import give_back_memory
from decaf_ros.nodes.message_factory import left_out_topics, make_message
from decaf_ros.nodes.namesakes import Namesakes
from decaf_ros.nodes.params import Parameters
from decaf_ros.nodes.spinning import answer_impossible_transitions, run_node
from decaf_ros.nodes.transforms import TfTransforms, make_transforms
from decaf_ros.nodes.watchdog import Watchdog
from decaf_ros.nodes.worker import Worker
from decaf_ros.online.statistics import Statistics

if TYPE_CHECKING:
    from decaf_ros.online.handlers import Handlers
    from decaf_ros.online.turns import Turns

_PATIENCE_PERIOD_S = 0.5
_WATCHDOG_PERIOD_S = 0.2
# Longest waits for a unit of work in the worker thread, which cannot be interrupted: until the node is inactive, and
# until the next step, for which the thread must have ended. ros2 launch kills a process after 10 s.
_DEACTIVATE_S, _END_S = 1.0, 4.0
_SPACE_PERIOD_S = 0.02
_DEACTIVATED = "the node was deactivated"


class Segmenter(LifecycleNode):
    """Lifecycle node `segmenter`. Topics, services, parameters and the action: see the README.

    Configuring loads the models. Activating starts the worker thread and the subscriptions. The worker thread owns the
    models and the streams of all cameras; ROS callbacks only put messages into its inbox. Images are converted on the
    worker thread, so dropped images cost nothing.

    Raises ValueError for a bad or unknown parameter.
    """

    def __init__(self) -> None:
        super().__init__("segmenter", automatically_declare_parameters_from_overrides=True)
        self._options = Parameters(self, self._change_config)
        self._phase, self._diagnosed_s = "unconfigured", 0.0
        self._failure = ""
        # Shared by all configurations, so that ids stay unique over the life of the node.
        self._query_numbers, self._target_ids = itertools.count(1), itertools.count(1)
        self._worker: Worker | None = None
        self._watchdog: Watchdog | None = None
        # Workers whose thread hung at clean-up. They keep their models.
        self._left_behind: list[Worker] = []
        self._query_to_all: Subscription[Any] | None = None
        self._transforms: TfTransforms | None = None
        self._space_timer: Timer | None = None
        self._cameras: dict[str, Camera] = {}
        self._namesakes = Namesakes(self)
        self._name_cameras()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady time: diagnostics must also be published while a simulated clock stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        period_s = self._options.config.node.diagnostics_period_s
        self._diagnostics_timer = self.create_timer(period_s, self._diagnose, clock=steady)
        self._patience_timer = self.create_timer(_PATIENCE_PERIOD_S, self._check_patience, clock=steady)
        self._watchdog_timer = self.create_timer(_WATCHDOG_PERIOD_S, self._watch_worker, clock=steady)
        answer_impossible_transitions(self)

    # Transitions

    def autostart(self) -> None:
        """Configures and activates if `node.autostart` is set."""
        if self._options.config.node.autostart and self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        return self._transition(self._configure, "inactive", TransitionCallbackReturn.FAILURE)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        if not self._end_worker(_END_S):
            self._failure = f"cannot become active: expected an idle worker thread, got one in a hanging {self._busy}"
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
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
        self._name_cameras()
        config = self._options.config
        with contextlib.ExitStack() as after_failure:
            after_failure.callback(self._clean_up)
            self._load(config)
            after_failure.pop_all()
        self._diagnostics_timer.timer_period_ns = int(config.node.diagnostics_period_s * 1e9)
        self._options.locked = True

    def _load(self, config: DecafConfig) -> None:
        for camera in self._cameras.values():
            camera.name_topics(config)
        # Imports torch and transformers, which takes seconds; the node is already visible, and can be stopped.
        from decaf_ros.devices import foreground
        from decaf_ros.online.handlers import Handlers
        from decaf_ros.online.turns import Turns
        from decaf_ros.pipeline import Decaf

        if config.space.enabled:
            self._transforms = make_transforms(self, config.space)
        if left_out := left_out_topics(config.space.enabled):
            self.get_logger().info(f"topics that are left out: {left_out}")
        convert = choose_converter(config.node.image_backend, self._log)
        self.get_logger().info(f"loading {config.mllm.checkpoint} and {config.sam2.checkpoint}")
        decaf = Decaf.from_config(config)
        decaf.grounder.engine.pace.unit_ms = config.engine.unit_ms
        decaf.grounder.engine.streams = len(self._cameras)
        turns = Turns(decaf)
        # They belong to this configuration: a thread that is left behind must not reach those of the next one.
        handlers: list[Handlers] = []
        self._worker = Worker(
            config.node.drop_frames,
            lambda handle: handle(),
            partial(_advance, turns, handlers),
            partial(_prepare, turns, handlers),
            lambda: decaf.config.engine.unit_ms / 1e3,
            self._end_streams,
            self._report_error,
            foreground(decaf.sam2.device),
        )
        self._watchdog = Watchdog(
            self._worker, turns, self._cameras, lambda: self._options.config.node.stage_timeout_s, self._log
        )
        make_handlers = partial(
            Handlers,
            decaf,
            make_message,
            live=True,
            query_numbers=self._query_numbers,
            target_ids=self._target_ids,
            convert=convert,
            turns=turns,
            transforms=self._transforms,
        )
        for camera in self._cameras.values():
            handlers.append(camera.configure(config, self._worker, make_handlers))

    def _activate(self) -> None:
        assert self._worker is not None, "the node is configured"
        self._worker.start()
        for camera in self._cameras.values():
            camera.activate(self._options.config)
        if self._options.config.space.enabled:
            steady = Clock(clock_type=ClockType.STEADY_TIME)
            self._space_timer = self.create_timer(_SPACE_PERIOD_S, self._check_space, clock=steady)
        if "" not in self._cameras:
            self._query_to_all = self.create_subscription(String, "query", self._ask_all, EVERY_QUERY)

    def _deactivate(self, within_s: float = _DEACTIVATE_S) -> None:
        """Answers all queries at once, then waits for the worker thread, for so many seconds at most."""
        if self._query_to_all is not None:
            self.destroy_subscription(self._query_to_all)
            self._query_to_all = None
        if self._space_timer is not None:
            self.destroy_timer(self._space_timer)
            self._space_timer = None
        for camera in self._cameras.values():
            camera.deactivate()
            camera.end_all(_DEACTIVATED)
        if not self._end_worker(within_s):
            self.get_logger().warning(f"the worker thread is still busy with {self._busy}; it ends after that")

    def _end_worker(self, within_s: float) -> bool:
        """Ends the streams and the worker thread. Returns whether it has ended; diagnostics go on meanwhile."""
        if self._worker is None:
            return True
        period_s, self._diagnosed_s = self._options.config.node.diagnostics_period_s, time.monotonic()

        def diagnose() -> None:
            if time.monotonic() - self._diagnosed_s >= period_s:
                self._diagnose()

        return self._worker.stop(within_s, diagnose)

    def _clean_up(self) -> None:
        if self._worker is not None and not self._end_worker(_END_S):
            self._worker.abandon()
            self._left_behind.append(self._worker)
            self.get_logger().error(
                f"the worker thread hangs in {self._busy}: it is left behind; its models stay in memory until it ends"
            )
        for camera in self._cameras.values():
            camera.clean_up()
        if self._transforms is not None:
            self._transforms.destroy()
            self._transforms = None
        self._worker = self._watchdog = None
        self._options.locked = False
        give_back_memory()

    def _release(self) -> None:
        self._deactivate()
        self._clean_up()

    def stop(self) -> None:
        """Answers every query before the process ends."""
        self._deactivate(_END_S)
        for camera in self._cameras.values():
            camera.wait_until_sent()

    @property
    def busy(self) -> bool:
        """Whether a goal of an action has not ended yet."""
        return any(camera.busy for camera in self._cameras.values())

    @property
    def is_stuck(self) -> bool:
        """Whether a worker thread hangs."""
        return bool(self._left_behind_alive) or (self._worker is not None and self._worker.is_alive)

    @property
    def _left_behind_alive(self) -> list[Worker]:
        self._left_behind = [worker for worker in self._left_behind if worker.is_alive]
        return self._left_behind

    @property
    def _busy(self) -> str:
        """The work of the worker thread now."""
        return (self._watchdog and self._watchdog.busy_with()) or "a unit of work"

    def destroy_node(self) -> None:
        # rclpy also destroys a node whose __init__ failed.
        for camera in getattr(self, "_cameras", {}).values():
            camera.destroy()
        self._cameras = {}
        super().destroy_node()

    def _is_active(self) -> bool:
        return self._phase == "active"

    # Cameras

    def _name_cameras(self) -> None:
        """Makes the cameras of the configuration, and keeps those that it had before."""
        names = self._options.config.cameras or ("",)
        for name in [name for name in self._cameras if name not in names]:
            self._cameras.pop(name).destroy()
        self._cameras = {
            name: self._cameras.get(name)
            or Camera(self, name, lambda: self._options.config, self._is_active, self._log)
            for name in names
        }

    def _ask_all(self, message: String) -> None:
        """One query for each camera, with an id and an answer of its own."""
        for camera in self._cameras.values():
            camera.take_query(message.data)

    def _watch_worker(self) -> None:
        if self._watchdog is not None:
            self._watchdog.check()

    def _diagnose(self) -> None:
        self._diagnosed_s = time.monotonic()
        streams = {
            camera.name: (
                camera.handlers.statistics if camera.handlers else Statistics(),
                self._worker.counts(camera.name) if self._worker else InboxCounts(),
            )
            for camera in self._cameras.values()
        }
        name, now_ns = self.get_fully_qualified_name(), self.get_clock().now().nanoseconds
        state = NodeState(self._phase, self._failure, left_out_topics(self._options.config.space.enabled))
        state = state._replace(stuck=self._watchdog.problem if self._watchdog else "")
        state = state._replace(left_behind=len(self._left_behind_alive), namesakes=self._namesakes.count())
        self._diagnostics.publish(diagnostics_message(name, state, streams, now_ns))

    def _log(self, level: str, text: str) -> None:
        # Separate calls: rclpy raises if one call site logs with different severities.
        if level == "error":
            self.get_logger().error(text)
        elif level == "warn":
            self.get_logger().warning(text)
        else:
            self.get_logger().info(text)

    def _check_patience(self) -> None:
        if self._is_active():
            for camera in self._cameras.values():
                camera.check_patience()

    def _check_space(self) -> None:
        for camera in self._cameras.values():
            camera.check_space()

    def _change_config(self, config: DecafConfig) -> None:
        for camera in self._cameras.values():
            if camera.handlers is not None:
                camera.handlers.change_config(config)

    # On the worker thread

    def _end_streams(self) -> None:
        """Ends all streams, also if one fails."""
        with contextlib.ExitStack() as ends:
            for camera in reversed(self._cameras.values()):
                ends.callback(camera.end_stream, _DEACTIVATED)

    def _report_error(self, error: Exception) -> None:
        for camera in self._cameras.values():
            camera.report_error(error)
        self.get_logger().error("".join(traceback.format_exception(type(error), error, error.__traceback__)))


def _advance(turns: Turns, handlers: Sequence[Handlers]) -> bool:
    """Runs a unit of a grounding, on the worker thread."""
    try:
        return turns.advance()
    finally:
        for each in handlers:
            each.settle()


def _prepare(turns: Turns, handlers: Sequence[Handlers]) -> bool:
    """Runs a unit of preparation, on the worker thread."""
    ran = turns.prepare()
    for each in handlers if not ran else ():
        each.note_ready()
    return ran


def main(args: list[str] | None = None) -> int:
    return run_node(Segmenter, args)


if __name__ == "__main__":
    sys.exit(main())
