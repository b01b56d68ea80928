"""Records the node's topics into a bag and sends events with frames, states and counts to the demo."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.messages import TOPICS, stamp_ns
from decaf_ros.msg import QueryStatus, TrackletArray
from decaf_ros.nodes.message_factory import CLASSES
from decaf_ros.types import QueryState
from decaf_tabletop.demo.processes import emit

_DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
# Not the confidence, which is only computed for subscribers.
OUTPUTS = {topic: kind for topic, kind in TOPICS.items() if topic != "confidence"} | {"/diagnostics": _DIAGNOSTICS}
_CLASSES = {**CLASSES, _DIAGNOSTICS: DiagnosticArray}


class Recorder(Node):
    """Subscribes to the topics of OUTPUTS and writes the serialized messages with their arrival times."""

    def __init__(self, bag: BagWriter, namespace: str) -> None:
        super().__init__("recorder")
        self._bag = bag
        self._last_ns = 0
        for name, type_name in OUTPUTS.items():
            topic = name if name.startswith("/") else f"{namespace}/{name}"
            durability = DurabilityPolicy.TRANSIENT_LOCAL if name == "status" else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=200, durability=durability)
            record = partial(self._record, topic, type_name)
            self.create_subscription(_CLASSES[type_name], topic, record, qos, raw=True)

    def _record(self, topic: str, type_name: str, data: bytes) -> None:
        # Strictly increasing times keep the order of messages that arrive together.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        self._bag.write(topic, type_name, self._last_ns, data)
        kind = _CLASSES[type_name]
        if kind is QueryStatus:
            status = deserialize_message(data, kind)
            emit(event="status", id=status.query_id, state=QueryState(status.state).name, text=status.text)
        elif kind is TrackletArray:
            stamp = deserialize_message(data, kind).header.stamp
            emit(event="frame", stamp_ns=stamp_ns(stamp))
        elif kind is DiagnosticArray:
            _emit_diagnostics(deserialize_message(data, kind))


def _emit_diagnostics(array: Any) -> None:
    for status in array.status:
        values = {entry.key: entry.value for entry in status.values}
        counts = {key.removeprefix("frames "): int(value) for key, value in values.items() if key.startswith("frames ")}
        emit(event="diagnostics", state=values["state"], counts=counts, message=status.message)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--namespace", required=True)
    arguments = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    errors: list[Exception] = []
    with BagWriter(arguments.bag) as bag:
        node = Recorder(bag, arguments.namespace)
        executor = SingleThreadedExecutor()
        executor.add_node(node)

        def spin() -> None:
            try:
                executor.spin()
            except Exception as error:
                errors.append(error)
                stopping.set()

        spinner = threading.Thread(target=spin)
        spinner.start()
        emit(event="ready")
        stopping.wait()
        executor.shutdown(timeout_sec=5)
        spinner.join()
        node.destroy_node()
        rclpy.try_shutdown()
    if errors:
        raise errors[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
