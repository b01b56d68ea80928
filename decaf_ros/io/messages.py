"""The core's outputs as messages, field by field, for whoever can make them: rclpy's classes or those of `rosbags`.

`make(type_name, **fields)` makes a message such as decaf_ros/msg/Tracklet. Fields are Python numbers, texts, messages
and lists of messages; a list of numbers is a numpy array of the field's type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from decaf_ros.types import FrameResult, QueryEvent, QueryState, Target

Make = Callable[..., Any]

# What people read of a text without end.
_SHORT_CHARS = 200


def shortened(text: str) -> str:
    """The first 200 characters, and how many there were, of a longer text."""
    return text if len(text) <= _SHORT_CHARS else f"{text[:_SHORT_CHARS]}... ({len(text)} characters)"


def time(make: Make, stamp_ns: int) -> Any:
    """builtin_interfaces/Time."""
    seconds, rest = divmod(stamp_ns, 1_000_000_000)
    return make("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)


def header(make: Make, stamp_ns: int, frame_id: str) -> Any:
    """std_msgs/Header."""
    return make("std_msgs/msg/Header", stamp=time(make, stamp_ns), frame_id=frame_id)


def tracklet_array(make: Make, result: FrameResult) -> Any:
    """decaf_ros/TrackletArray with the header of the source frame."""
    return make(
        "decaf_ros/msg/TrackletArray",
        header=header(make, result.frame.stamp_ns, result.frame.frame_id),
        query_id=result.query.id if result.query else "",
        query=result.query.text if result.query else "",
        tracklets=[_tracklet(make, target) for target in result.targets],
    )


def _tracklet(make: Make, target: Target) -> Any:
    x, y, width, height = target.box_xywh
    return make(
        "decaf_ros/msg/Tracklet",
        id=target.id,
        label=target.label,
        query_id=target.query_id,
        category=target.category,
        state=int(target.state),
        box=make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
        ),
        area=target.area_px,
        centroid_x=target.centroid_xy[0],
        centroid_y=target.centroid_xy[1],
        source_stamp=time(make, target.source_stamp_ns),
        **{name: float(value) for name, value in target.scores._asdict().items()},
    )


def query_status(make: Make, event: QueryEvent) -> Any:
    """decaf_ros/QueryStatus. A query that FAILED is shortened: its length may be what it was refused for."""
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
