"""Writes the core's outputs to a bag as the messages that the node publishes. Needs no ROS installation."""

from __future__ import annotations

from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import make_message
from decaf_ros.io.messages import topic_messages
from decaf_ros.types import FrameResult, Heatmap, Output, QueryEvent


class OutputBag:
    """Writes outputs to the node's topics under `namespace`, recorded at the stamps of their source frames."""

    def __init__(self, writer: BagWriter, namespace: str = "/decaf") -> None:
        self._writer = writer
        self._namespace = namespace

    def write(self, output: Output) -> None:
        """Writes a FrameResult, Heatmap or QueryEvent; ignores other outputs."""
        if isinstance(output, (FrameResult, Heatmap)):
            stamp_ns = output.frame.stamp_ns
        elif isinstance(output, QueryEvent):
            stamp_ns = output.stamp_ns
        else:
            return
        for topic, message in topic_messages(make_message, output):
            self._writer.write_message(f"{self._namespace}/{topic}", message, stamp_ns)
