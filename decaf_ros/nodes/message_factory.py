"""rclpy messages for the functions of `decaf_ros.io.messages`."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from decaf_ros.io import messages
from decaf_ros.msg import Keypoint, QueryStatus, StageTime, Tracklet, TrackletArray

CLASSES: dict[str, Any] = {
    f"{message.__module__.split('.')[0]}/msg/{message.__name__}": message
    for message in (Header, Image, Keypoint, QueryStatus, RegionOfInterest, StageTime, Time, Tracklet, TrackletArray)
}


def make_message(type_name: str, **fields: Any) -> Any:
    """Makes a message of a type such as std_msgs/msg/Header. Raises KeyError for a type that is not in CLASSES."""
    arrays = {name: _sequence(value) for name, value in fields.items() if isinstance(value, np.ndarray)}
    return CLASSES[type_name](**{**fields, **arrays})


def time_message(nanoseconds: int) -> Time:
    """builtin_interfaces/Time of nanoseconds since the epoch."""
    return messages.time(make_message, nanoseconds)


def _sequence(values: np.ndarray) -> Any:
    """Converts a 1-D array: message setters refuse NumPy arrays, and copy all but array.array element by element."""
    if values.dtype != np.uint8:
        return values.tolist()
    data = array.array("B")
    data.frombytes(values.data)
    return data
