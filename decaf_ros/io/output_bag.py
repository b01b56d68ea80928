"""Outputs of the core as the messages that the node publishes, in a bag; no ROS installation needed."""

from __future__ import annotations

import numpy as np

from decaf_ros.io.bags import BagWriter, make_message
from decaf_ros.io.messages import query_status, tracklet_array
from decaf_ros.types import FrameResult, Heatmap, Output, QueryEvent


class OutputBag:
    """Writes outputs under the node's topic names in a namespace, recorded at the stamps of their source frames."""

    def __init__(self, writer: BagWriter, namespace: str = "/decaf") -> None:
        self._writer = writer
        self._namespace = namespace

    def write(self, output: Output) -> None:
        """Writes a FrameResult, Heatmap or QueryEvent; other outputs are no messages."""
        if isinstance(output, FrameResult):
            frame = output.frame
            union = (output.labels > 0).astype(np.uint8) * np.uint8(255)
            self._writer.write_image(f"{self._namespace}/masks", output.labels, frame.stamp_ns, frame.frame_id)
            self._writer.write_image(f"{self._namespace}/target_mask", union, frame.stamp_ns, frame.frame_id)
            tracklets = tracklet_array(make_message, output)
            self._writer.write_message(f"{self._namespace}/tracklets", tracklets, frame.stamp_ns)
        elif isinstance(output, Heatmap):
            frame = output.frame
            self._writer.write_image(f"{self._namespace}/heatmaps", output.values, frame.stamp_ns, frame.frame_id)
        elif isinstance(output, QueryEvent):
            self._writer.write_message(f"{self._namespace}/status", query_status(make_message, output), output.stamp_ns)
