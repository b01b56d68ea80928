"""rclpy messages for the functions of `decaf_ros.io.messages`."""

from __future__ import annotations

import array
import importlib
from typing import Any

import geometry_msgs.msg
import numpy as np
import sensor_msgs.msg
from builtin_interfaces.msg import Duration, Time
from std_msgs.msg import ColorRGBA, Header

from decaf_ros.io import messages
from decaf_ros.io.messages import TOPICS
from decaf_ros.io.space_messages import SPACE_TOPICS
from decaf_ros.io.vision_messages import VISION_TOPICS
from decaf_ros.io.vision_types import VISION_MESSAGES
from decaf_ros.msg import Keypoint, Mask, QueryStatus, StageTime, Tracklet, TrackletArray

_GEOMETRY = ("Point", "Pose", "PoseStamped", "PoseWithCovariance", "Quaternion", "Vector3")
_SENSOR = ("CameraInfo", "CompressedImage", "Image", "PointCloud2", "PointField", "RegionOfInterest")
# These packages need not be installed.
_OPTIONAL = {"visualization_msgs": ("Marker", "MarkerArray", "MeshFile"), "vision_msgs": tuple(VISION_MESSAGES)}


def _classes() -> dict[str, Any]:
    found = [ColorRGBA, Duration, Header, Keypoint, Mask, QueryStatus, StageTime, Time, Tracklet, TrackletArray]
    found += [getattr(geometry_msgs.msg, name) for name in _GEOMETRY]
    found += [getattr(sensor_msgs.msg, name) for name in _SENSOR]
    for package, names in _OPTIONAL.items():
        try:
            module = importlib.import_module(f"{package}.msg")
        except ModuleNotFoundError:
            continue
        found += [getattr(module, name) for name in names]
    return {f"{message.__module__.split('.')[0]}/msg/{message.__name__}": message for message in found}


CLASSES: dict[str, Any] = _classes()


def left_out_topics(space: bool) -> str:
    """The topics whose messages are not installed and their packages, as a text; empty if there are none.

    space: whether targets in space are published.
    """
    topics = TOPICS | VISION_TOPICS | (SPACE_TOPICS if space else {})
    if not space:
        topics.pop("detections_3d")
    missing: dict[str, list[str]] = {}
    for topic, kind in topics.items():
        if kind not in CLASSES:
            missing.setdefault(kind.split("/")[0], []).append(topic)
    return "; ".join(f"{', '.join(names)}: {package} is not installed" for package, names in missing.items())


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
