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

from decaf_ros.images import message_to_rgb
from decaf_ros.msg import Keypoint, QueryStatus, StageTime, Tracklet, TrackletArray
from decaf_ros.types import Frame, FrameResult, Heatmap, QueryEvent, Target

# sensor_msgs/Image encoding -> bytes of one pixel, of the images that are published.
_PIXEL_BYTES = {"mono8": 1, "rgb8": 3, "32FC1": 4}


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (any object with its fields) in nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def time_message(nanoseconds: int) -> Time:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def header_message(nanoseconds: int, frame_id: str) -> Header:
    return Header(stamp=time_message(nanoseconds), frame_id=frame_id)


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
    message = TrackletArray(header=header_message(result.frame.stamp_ns, result.frame.frame_id))
    if result.query is not None:
        message.query_id, message.query = result.query.id, result.query.text
    message.tracklets = [_tracklet_message(target) for target in result.targets]
    return message


def _tracklet_message(target: Target) -> Tracklet:
    x, y, width, height = target.box_xywh
    return Tracklet(
        id=target.id,
        label=target.label,
        query_id=target.query_id,
        category=target.category,
        state=int(target.state),
        box=RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height),
        area=target.area_px,
        centroid_x=target.centroid_xy[0],
        centroid_y=target.centroid_xy[1],
        attention=float(target.scores.attention),
        iou=float(target.scores.iou),
        consistency=float(target.scores.consistency),
        combined=float(target.scores.combined),
        source_stamp=time_message(target.source_stamp_ns),
    )


def status_message(event: QueryEvent) -> QueryStatus:
    message = QueryStatus(
        header=header_message(event.stamp_ns, event.frame_id),
        query_id=event.query.id,
        query=event.query.text,
        state=int(event.state),
        text=event.text,
        category=event.category,
        presence=-1.0,
        window_start=time_message(event.window_start_ns),
        window_end=time_message(event.window_end_ns),
        stage_times=[StageTime(stage=stage, milliseconds=float(ms)) for stage, ms in event.stage_ms],
        tracklet_ids=list(event.target_ids),
        keypoints=[
            Keypoint(stamp=time_message(point.stamp_ns), x=float(point.x), y=float(point.y), score=float(point.score))
            for point in event.keypoints
        ],
    )
    if event.presence is not None:
        message.presence = float(event.presence.score)
        message.presence_contrast = float(event.presence.contrast)
        message.presence_consistency = float(event.presence.consistency)
        message.presence_agreement = float(event.presence.agreement)
        message.presence_iou = float(event.presence.iou)
        message.presence_object = float(event.presence.object_presence)
    return message
