"""Runs a node as a process that nothing but SIGINT and SIGTERM ends, and those cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

# A stage of a model, or its loading, cannot be interrupted. ros2 launch waits 10 s before it kills a process.
STOP_S = 8.0
# For clients to get the results of their goals.
_RESULTS_S = 1.0
# An error that comes back at once must not fill the log.
_AFTER_ERROR_S = 0.1
# An executor that is woken goes on waiting where it finds nothing to call, so it has to look up by itself.
_LOOK_UP_S = 0.2


class StoppableNode(Protocol):
    """What `run_node` needs besides a Node. All are called on the executor's thread.

    autostart(): before the first callback. stop(): after the last. busy: whether clients wait for results still.
    """

    busy: bool

    def autostart(self) -> None: ...

    def stop(self) -> None: ...


def run_node(make_node: Callable[[], Node], args: Sequence[str] | None = None) -> int:
    """Makes the node and spins it until a signal comes. Returns the exit code: 1 where the node cannot be made
    or its thread broke down.

    The executor spins on a thread of its own, so that signals are seen at once, whatever a callback is doing.
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
    executor.add_node(node)
    broke_down = threading.Event()
    spinner = threading.Thread(target=_spin, args=(executor, node, stopping, broke_down), name="executor")
    spinner.start()
    stopping.wait()
    spinner.join(timeout=STOP_S)
    if spinner.is_alive():
        node.get_logger().error(f"a model is still busy {STOP_S:g} s after the signal: ending the process under it")
        os._exit(1)
    executor.shutdown(timeout_sec=5)
    node.destroy_node()
    rclpy.try_shutdown()
    return 1 if broke_down.is_set() else 0


def _spin(
    executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event, broke_down: threading.Event
) -> None:
    """All that the thread does. An error ends the process too, but not without the node's `stop`."""
    for step in (_run, _stop):
        try:
            step(executor, node, stopping)
        except Exception:
            broke_down.set()
            node.get_logger().fatal(traceback.format_exc())
        finally:
            stopping.set()


def _run(executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event) -> None:
    node.autostart()
    while not stopping.is_set():
        _spin_once(executor, node, stopping, _LOOK_UP_S)


def _stop(executor: SingleThreadedExecutor, node: StoppableNode, stopping: threading.Event) -> None:
    had_goals = node.busy
    node.stop()
    until = time.monotonic() + _RESULTS_S
    while had_goals and time.monotonic() < until:
        _spin_once(executor, node, stopping, 0.05)


def _spin_once(executor: SingleThreadedExecutor, node: Node, stopping: threading.Event, timeout_s: float) -> None:
    """One callback. An exception that escapes from it is logged, and the node goes on: some releases of rclpy raise
    where a client has gone before its answer."""
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except ExternalShutdownException:
        stopping.set()
    except Exception:
        node.get_logger().error(traceback.format_exc())
        stopping.wait(_AFTER_ERROR_S)


def answer_impossible_transitions(node: LifecycleNode) -> None:
    """Makes the node's `change_state` answer false where no such transition is possible.

    Kilted does; earlier releases let an RCLError out of the executor instead, and the client waits for ever.
    """
    for service in node.services:
        if service.srv_type is ChangeState:
            service.callback = _answering(node, service.callback)


def _answering(node: Node, change_state: Callable) -> Callable:
    def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change_state(request, response)
        except Exception as error:
            node.get_logger().error(f"transition {request.transition.label or request.transition.id}: {error}")
            response.success = False
            return response

    return answer
