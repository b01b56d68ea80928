"""Stands in for tf2_ros where it is not installed: the part of its interface that the node uses.

Not tf2: it keeps one transform for each pair of frames, at any time, as published on `tf_stand_in`.
"""

from __future__ import annotations

from geometry_msgs.msg import TransformStamped


class TransformException(Exception):  # noqa: N818, tf2's name
    """The base class of tf2's errors."""


class Buffer:
    def __init__(self) -> None:
        self.known: dict[tuple[str, str], TransformStamped] = {}

    def can_transform(self, target_frame: str, source_frame: str, time, return_debug_tuple: bool) -> tuple[bool, str]:
        assert return_debug_tuple
        known = (target_frame, source_frame) in self.known
        return known, "" if known else f'"{target_frame}" does not exist'

    def lookup_transform(self, target_frame: str, source_frame: str, time) -> TransformStamped:
        if (target_frame, source_frame) not in self.known:
            raise TransformException(f'"{target_frame}" passed to lookupTransform does not exist')
        assert time.nanoseconds > 0
        return self.known[target_frame, source_frame]


class TransformListener:
    def __init__(self, buffer: Buffer, node) -> None:
        self._node = node

        def take(message: TransformStamped) -> None:
            buffer.known[message.header.frame_id, message.child_frame_id] = message

        self._subscription = node.create_subscription(TransformStamped, "tf_stand_in", take, 10)

    def unregister(self) -> None:
        self._node.destroy_subscription(self._subscription)
