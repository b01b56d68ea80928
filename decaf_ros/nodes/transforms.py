"""Transforms of TF for the 3D outputs. The only file that uses tf2_ros, which need not be installed."""

from __future__ import annotations

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from scipy.spatial.transform import Rotation

from decaf_ros.config import SpaceConfig


def make_transforms(node: Node, config: SpaceConfig) -> TfTransforms | None:
    """The node's transforms, None without tf2_ros. Raises RuntimeError if the target frame needs it."""
    try:
        return TfTransforms(node)
    except ImportError as error:
        if config.target_frame:
            raise RuntimeError(
                f"space.target_frame: expected tf2_ros, for transforms to {config.target_frame!r}, got {error}; leave "
                "it empty for outputs in the camera's frame"
            ) from error
        return None


class TfTransforms:
    """See `decaf_ros.online.space.Transforms`. Raises ImportError without tf2_ros."""

    def __init__(self, node: Node) -> None:
        import tf2_ros

        self._error = tf2_ros.TransformException
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        try:
            found = self._buffer.lookup_transform(target.lstrip("/"), source.lstrip("/"), Time(nanoseconds=stamp_ns))
        except self._error as error:
            raise LookupError(str(error)) from error
        turn, shift = found.transform.rotation, found.transform.translation
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
        matrix[:3, 3] = shift.x, shift.y, shift.z
        return matrix

    def destroy(self) -> None:
        self._listener.unregister()
