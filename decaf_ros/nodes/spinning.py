"""Runs a node as a process that ends only with SIGINT or SIGTERM, and then cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

if TYPE_CHECKING:
    from rclpy.impl.rcutils_logger import RcutilsLogger

# Longest wait for the executor thread: loading a model cannot be interrupted. ros2 launch kills a process after 10 s.
STOP_S = 8.0
# Time for clients to fetch the results of their goals.
_RESULTS_S = 1.0
# Pause after an error, so that a repeating error does not fill the log.
_AFTER_ERROR_S = 0.1
# Period at which the executor thread checks for a signal: a woken executor without work goes back to waiting.
_SPIN_TIMEOUT_S = 0.2


_ChangeState: TypeAlias = Callable[[ChangeState.Request, ChangeState.Response], ChangeState.Response]


class StoppableNode(Protocol):
    """The interface of a Node for `run_node`. The first three members are used on the executor thread."""

    def autostart(self) -> None:
        """Called before the first callback."""

    def stop(self) -> None:
        """Called after the last callback."""

    @property
    def busy(self) -> bool:
        """Whether clients still wait for results."""

    @property
    def is_stuck(self) -> bool:
        """Whether a thread of the node hangs after `stop`. The process is then ended."""

    def get_logger(self) -> RcutilsLogger: ...

    def destroy_node(self) -> None: ...


def run_node(make_node: Callable[[], StoppableNode], args: list[str] | None = None) -> int:
    """Makes a Node and spins it until SIGINT or SIGTERM.

    The executor spins on its own thread, so that signals are handled even while a callback runs.
    Returns the exit code: 1 if the node cannot be made or its thread failed. `make_node` may raise ValueError. Ends the
    process with 1 if a thread hangs.
    """
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = make_node()
    except ValueError as error:
        get_logger("decaf_ros").fatal(str(error))
        rclpy.try_shutdown()
        return 1
    executor = SingleThreadedExecutor()
    executor.add_node(cast(Node, node))
    has_failed = threading.Event()
    spinner = threading.Thread(target=_spin, args=(executor, node, stopping, has_failed), name="executor")
    spinner.start()
    stopping.wait()
    spinner.join(timeout=STOP_S)
    if spinner.is_alive():
        node.get_logger().error(f"a model is still busy {STOP_S:g} s after the signal: the process is ended")
        os._exit(1)
    if is_stuck := node.is_stuck:
        node.get_logger().error("every query is answered, but a model hangs: the process is ended")
    executor.shutdown(timeout_sec=5)
    node.destroy_node()
    rclpy.try_shutdown()
    if is_stuck:  # the interpreter would wait for the thread
        os._exit(1)
    return 1 if has_failed.is_set() else 0


def _spin(
    executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event, has_failed: threading.Event
) -> None:
    """Runs and stops the node on the executor thread. An error ends the process, after the node's `stop`."""
    for step in (_run, _stop):
        try:
            step(executor, node, stopping)
        except Exception:
            has_failed.set()
            node.get_logger().fatal(traceback.format_exc())
        finally:
            stopping.set()


def _run(executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event) -> None:
    node.autostart()
    while not stopping.is_set():
        _spin_once(executor, node, stopping, _SPIN_TIMEOUT_S)


def _stop(executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event) -> None:
    had_goals = node.busy
    node.stop()
    deadline = time.monotonic() + _RESULTS_S
    while had_goals and time.monotonic() < deadline:
        _spin_once(executor, node, stopping, 0.05)


def _spin_once(
    executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event, timeout_s: float
) -> None:
    """Runs one callback and logs its exceptions. Some releases of rclpy raise if a client is gone before its answer."""
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except ExternalShutdownException:
        stopping.set()
    except Exception:
        node.get_logger().error(traceback.format_exc())
        stopping.wait(_AFTER_ERROR_S)


def answer_impossible_transitions(node: LifecycleNode) -> None:
    """Makes `change_state` answer false for an impossible transition, as in Kilted.

    Earlier releases raise RCLError in the executor instead, and the client waits for ever.
    """
    for service in node.services:
        if service.srv_type is ChangeState:
            service.callback = _with_answer(node, service.callback)


def _with_answer(node: Node, change_state: _ChangeState) -> _ChangeState:
    def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change_state(request, response)
        except Exception as error:
            node.get_logger().error(f"transition {request.transition.label or request.transition.id}: {error}")
            response.success = False
            return response

    return answer
