"""Converts the core's outputs to ROS messages and camera messages to frames. Needs no ROS installation.

`make(type_name, **fields)` builds a message such as decaf_ros/msg/Tracklet: `decaf_ros.io.bags.make_message` for
rosbags classes, `decaf_ros.nodes.message_factory.make_message` for rclpy classes. Field values are numbers, strings,
messages, lists of messages, and for number arrays NumPy arrays of the field's type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np

from decaf_ros.io.geometry_messages import point, vector
from decaf_ros.io.images import Convert, builtin_rgb, message_to_rgb
from decaf_ros.types import Frame, FrameResult, Heatmap, MaskCode, Output, Place, QueryEvent, QueryState, Target

Make = Callable[..., Any]

# Types of the topics that the node publishes in its namespace.
TOPICS = {
    "masks": "sensor_msgs/msg/Image",
    "target_mask": "sensor_msgs/msg/Image",
    "heatmaps": "sensor_msgs/msg/Image",
    "tracklets": "decaf_ros/msg/TrackletArray",
    "status": "decaf_ros/msg/QueryStatus",
    "overlay": "sensor_msgs/msg/Image",
    "confidence": "sensor_msgs/msg/Image",
}
# Encoding in sensor_msgs/Image by (ndim, dtype) of the array.
_ENCODINGS = {(3, "uint8"): "rgb8", (2, "uint8"): "mono8", (2, "uint16"): "16UC1", (2, "float32"): "32FC1"}
# Maximum length of a query text in logs and in the status of a failed query.
_SHORT_CHARS = 200
_NS_PER_S = 1_000_000_000
_NO_PLACE = Place((math.nan,) * 3, (math.nan,) * 3)
_NO_CODE = MaskCode("", b"")


def shortened(text: str) -> str:
    """The text, cut to 200 characters with its full length appended if it is longer."""
    return text if len(text) <= _SHORT_CHARS else f"{text[:_SHORT_CHARS]}... ({len(text)} characters)"


def time(make: Make, stamp_ns: int) -> Any:
    """builtin_interfaces/Time."""
    seconds, rest = divmod(stamp_ns, _NS_PER_S)
    return make("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)


def stamp_ns(stamp: Any) -> int:
    """builtin_interfaces/Time (any object with its fields) in nanoseconds."""
    return int(stamp.sec * _NS_PER_S + stamp.nanosec)


def frame_from_message(
    message: Any,
    index: int,
    warn: Callable[[str], None] | None = None,
    settle: Callable[[int], int] = lambda stamp_ns: stamp_ns,
    max_mpx: float = math.inf,
    convert: Convert = builtin_rgb,
) -> Frame:
    """A Frame from sensor_msgs/Image or CompressedImage (any object with their fields).

    warn, max_mpx, convert: see `message_to_rgb`. settle: makes the frame's stamp from that of the header, only called
    for images that can be decoded; see `decaf_ros.io.stamps`. Raises ValueError ("expected X, got Y") for the others.
    """
    image = message_to_rgb(message, warn, max_mpx, convert)
    return Frame(image, settle(stamp_ns(message.header.stamp)), message.header.frame_id, index)


def header(make: Make, stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header."""
    return make("std_msgs/msg/Header", stamp=time(make, stamp_ns), frame_id=frame_id)


def image(make: Make, pixels: np.ndarray, header: Any) -> Any:
    """sensor_msgs/Image.

    pixels: (H, W, 3) uint8 (rgb8), or (H, W) uint8 (mono8), uint16 (16UC1) or float32 (32FC1); else ValueError.
    """
    encoding = _ENCODINGS.get((pixels.ndim, pixels.dtype.name))
    if encoding is None or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"image: expected (H, W, 3) uint8 or (H, W) uint8, uint16, float32, got {pixels.shape} {pixels.dtype}"
        )
    height, width = pixels.shape[:2]
    return make(
        "sensor_msgs/msg/Image",
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * pixels.itemsize * (3 if pixels.ndim == 3 else 1),
        data=np.ascontiguousarray(pixels).view(np.uint8).reshape(-1),
    )


def frame_image(make: Make, pixels: np.ndarray, frame: Frame) -> Any:
    """sensor_msgs/Image with the stamp and frame_id of `frame`; see `image`."""
    return image(make, pixels, header(make, frame.stamp_ns, frame.frame_id))


def topic_messages(make: Make, output: Output) -> Iterator[tuple[str, Any]]:
    """Topic (see TOPICS) and message for each message of an output.

    A FrameResult gives `masks` (mono8: 0 background, k the target with label k), `target_mask` (mono8: 0 or 255) and
    `tracklets`; a Heatmap gives `heatmaps` (32FC1 in [0, 1], at the camera's size); a QueryEvent gives `status`;
    others give nothing.
    """
    if isinstance(output, FrameResult):
        yield from mask_messages(make, output)
        yield "tracklets", tracklet_array(make, output)
    elif isinstance(output, Heatmap):
        size = output.frame.camera_hw[::-1]
        yield "heatmaps", frame_image(make, cv2.resize(output.values, size), output.frame)
    elif isinstance(output, QueryEvent):
        yield "status", query_status(make, output)


def mask_messages(make: Make, result: FrameResult) -> Iterator[tuple[str, Any]]:
    """Topic and message of `masks` and `target_mask`."""
    yield "masks", frame_image(make, result.labels, result.frame)
    union = (result.labels > 0).view(np.uint8) * np.uint8(255)
    yield "target_mask", frame_image(make, union, result.frame)


def tracklet_array(make: Make, result: FrameResult) -> Any:
    """decaf_ros/TrackletArray with the stamp and frame_id of the source frame."""
    return make(
        "decaf_ros/msg/TrackletArray",
        header=header(make, result.frame.stamp_ns, result.frame.frame_id),
        query_id=result.query.id if result.query else "",
        query=result.query.text if result.query else "",
        tracklets=[_tracklet(make, target) for target in result.targets],
    )


def _tracklet(make: Make, target: Target) -> Any:
    x, y, width, height = target.box_xywh
    place, code = target.place or _NO_PLACE, target.code or _NO_CODE
    rows, columns = target.mask.shape if target.code else (0, 0)
    return make(
        "decaf_ros/msg/Tracklet",
        id=target.id,
        label=target.label,
        query_id=target.query_ids[0],
        query_ids=list(target.query_ids),
        category=target.category,
        state=int(target.state),
        box=make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
        ),
        area=target.area_px,
        centroid_x=target.centroid_xy[0],
        centroid_y=target.centroid_xy[1],
        source_stamp=time(make, target.source_stamp_ns),
        mask=make(
            "decaf_ros/msg/Mask",
            encoding=code.encoding,
            height=rows,
            width=columns,
            data=np.frombuffer(code.data, np.uint8),
        ),
        position=point(make, place.position),
        size=vector(make, place.size),
        **{name: float(value) for name, value in target.scores._asdict().items()},
    )


def query_status(make: Make, event: QueryEvent) -> Any:
    """decaf_ros/QueryStatus. The text of a FAILED query is shortened, since it may have failed for its length."""
    presence, failed = event.presence, event.state == QueryState.FAILED
    return make(
        "decaf_ros/msg/QueryStatus",
        header=header(make, event.stamp_ns, event.frame_id),
        query_id=event.query.id,
        query=shortened(event.query.text) if failed else event.query.text,
        state=int(event.state),
        text=event.text,
        category=event.category,
        presence=float(presence.score) if presence else -1.0,
        presence_contrast=float(presence.contrast) if presence else 0.0,
        presence_separation=float(presence.separation) if presence else 0.0,
        presence_consistency=float(presence.consistency) if presence else 0.0,
        presence_agreement=float(presence.agreement) if presence else 0.0,
        presence_iou=float(presence.iou) if presence else 0.0,
        presence_object=float(presence.object_presence) if presence else 0.0,
        presence_asked=float(presence.asked) if presence and presence.asked is not None else -1.0,
        window_start=time(make, event.window_start_ns),
        window_end=time(make, event.window_end_ns),
        stage_times=[
            make("decaf_ros/msg/StageTime", stage=stage, milliseconds=float(ms)) for stage, ms in event.stage_ms
        ],
        tracklet_ids=np.array(event.target_ids, np.uint32),
        keypoints=[
            make(
                "decaf_ros/msg/Keypoint",
                stamp=time(make, point.stamp_ns),
                x=float(point.x),
                y=float(point.y),
                score=float(point.score),
            )
            for point in event.keypoints
        ],
    )
