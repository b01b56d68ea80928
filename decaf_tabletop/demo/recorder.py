"""Records everything that the node publishes into a bag, and tells the demo of frames, states and counts."""

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

from decaf_ros.io.bags import BagWriter
from decaf_ros.io.messages import TOPICS, stamp_ns
from decaf_ros.msg import QueryStatus, TrackletArray
from decaf_ros.nodes.conversions import CLASSES
from decaf_ros.types import QueryState
from decaf_tabletop.demo.processes import tell

OUTPUTS = {**{topic: CLASSES[type_name] for topic, type_name in TOPICS.items()}, "/diagnostics": DiagnosticArray}


class Recorder(Node):
    """Subscribes to the topics of OUTPUTS and writes what comes, as it comes, at the time of its arrival."""

    def __init__(self, bag: BagWriter, namespace: str) -> None:
        super().__init__("recorder")
        self._bag = bag
        self._last_ns = 0
        for name, kind in OUTPUTS.items():
            topic = name if name.startswith("/") else f"{namespace}/{name}"
            late = DurabilityPolicy.TRANSIENT_LOCAL if name == "status" else DurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=200, durability=late)
            self.create_subscription(kind, topic, partial(self._record, topic, kind), qos, raw=True)

    def _record(self, topic: str, kind: type, data: bytes) -> None:
        # Two messages of one instant keep their order.
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        self._bag.write(topic, f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}", self._last_ns, data)
        if kind is QueryStatus:
            status = deserialize_message(data, kind)
            tell(event="status", id=status.query_id, state=QueryState(status.state).name, text=status.text)
        elif kind is TrackletArray:
            stamp = deserialize_message(data, kind).header.stamp
            tell(event="frame", stamp_ns=stamp_ns(stamp))
        elif kind is DiagnosticArray:
            _tell_diagnostics(deserialize_message(data, kind))


def _tell_diagnostics(array: Any) -> None:
    for status in array.status:
        values = {entry.key: entry.value for entry in status.values}
        counts = {key.removeprefix("frames "): int(value) for key, value in values.items() if key.startswith("frames ")}
        tell(event="diagnostics", state=values["state"], counts=counts, message=status.message)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bag", type=Path)
    parser.add_argument("--namespace", required=True)
    given = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    errors: list[Exception] = []
    with BagWriter(given.bag) as bag:
        node = Recorder(bag, given.namespace)
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
        tell(event="ready")
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
