"""Between ROS messages and the types of the core. Pure functions.

Outputs carry the exact stamp and frame_id of their source frame. Stamps of the core are nanoseconds since the epoch.
"""

from __future__ import annotations

import array
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from decaf_ros.io import messages
from decaf_ros.io.images import message_to_rgb
from decaf_ros.msg import Keypoint, QueryStatus, StageTime, Tracklet, TrackletArray
from decaf_ros.types import Frame, FrameResult, Heatmap, QueryEvent

# sensor_msgs/Image encoding -> bytes of one pixel, of the images that are published.
_PIXEL_BYTES = {"mono8": 1, "rgb8": 3, "32FC1": 4}
_CLASSES = {
    f"{message.__module__.split('.')[0]}/msg/{message.__name__}": message
    for message in (Header, Keypoint, QueryStatus, RegionOfInterest, StageTime, Time, Tracklet, TrackletArray)
}


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (any object with its fields) in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_message(nanoseconds: int) -> Time:
    return messages.time(_make, nanoseconds)


def header_message(nanoseconds: int, frame_id: str) -> Header:
    return messages.header(_make, nanoseconds, frame_id)


def frame_from_message(message: Any, index: int) -> Frame:
    """sensor_msgs/Image or CompressedImage (any object with their fields) as a Frame.

    Raises ValueError, which says what was expected and what came, for an image that cannot be decoded.
    """
    return Frame(message_to_rgb(message), stamp_ns(message.header.stamp), message.header.frame_id, index)


def image_message(pixels: np.ndarray, encoding: str, frame: Frame) -> Image:
    """An Image with the header of `frame`.

    pixels: (H, W) uint8 for mono8, (H, W, 3) uint8 for rgb8, (H, W) float32 for 32FC1.
    """
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding=encoding, step=width * _PIXEL_BYTES[encoding])
    message.header = header_message(frame.stamp_ns, frame.frame_id)
    # The setter takes an array as it is, and copies whatever else it is given element by element.
    data = array.array("B")
    data.frombytes(memoryview(np.ascontiguousarray(pixels)).cast("B"))
    message.data = data
    return message


def masks_message(result: FrameResult) -> Image:
    """Label image, mono8: 0 background, k the tracklet with label k."""
    return image_message(result.labels, "mono8", result.frame)


def target_mask_message(result: FrameResult) -> Image:
    """Union of all targets, mono8: 0 or 255."""
    return image_message((result.labels > 0).view(np.uint8) * np.uint8(255), "mono8", result.frame)


def heatmap_message(heatmap: Heatmap) -> Image:
    """Fused attention, 32FC1 in [0, 1]."""
    return image_message(heatmap.values, "32FC1", heatmap.frame)


def tracklets_message(result: FrameResult) -> TrackletArray:
    return messages.tracklet_array(_make, result)


def status_message(event: QueryEvent) -> QueryStatus:
    return messages.query_status(_make, event)


def _make(type_name: str, **fields: Any) -> Any:
    # The setters take lists of numbers, and no numpy arrays.
    lists = {name: value.tolist() for name, value in fields.items() if isinstance(value, np.ndarray)}
    return _CLASSES[type_name](**{**fields, **lists})
