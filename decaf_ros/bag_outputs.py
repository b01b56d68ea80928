"""Outputs of the core as the messages that the node publishes, in a bag; no ROS installation needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from decaf_ros.bags import BagWriter, make_header, make_time, typestore
from decaf_ros.types import FrameResult, Heatmap, Output, QueryEvent, Target


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
            self._writer.write_message(f"{self._namespace}/tracklets", _tracklet_array(output), frame.stamp_ns)
        elif isinstance(output, Heatmap):
            frame = output.frame
            self._writer.write_image(f"{self._namespace}/heatmaps", output.values, frame.stamp_ns, frame.frame_id)
        elif isinstance(output, QueryEvent):
            self._writer.write_message(f"{self._namespace}/status", _query_status(output), output.stamp_ns)


def _make(msgtype: str, **fields: Any) -> Any:
    return typestore().types[msgtype](**fields)


def _tracklet_array(result: FrameResult) -> Any:
    return _make(
        "decaf_ros/msg/TrackletArray",
        header=make_header(result.frame.stamp_ns, result.frame.frame_id),
        query_id=result.query.id if result.query else "",
        query=result.query.text if result.query else "",
        tracklets=[_tracklet(target) for target in result.targets],
    )


def _tracklet(target: Target) -> Any:
    x, y, width, height = target.box_xywh
    return _make(
        "decaf_ros/msg/Tracklet",
        id=target.id,
        label=target.label,
        query_id=target.query_id,
        category=target.category,
        state=int(target.state),
        box=_make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=x, y_offset=y, width=width, height=height, do_rectify=False
        ),
        area=target.area_px,
        centroid_x=target.centroid_xy[0],
        centroid_y=target.centroid_xy[1],
        source_stamp=make_time(target.source_stamp_ns),
        **{name: float(value) for name, value in target.scores._asdict().items()},
    )


def _query_status(event: QueryEvent) -> Any:
    presence = event.presence
    return _make(
        "decaf_ros/msg/QueryStatus",
        header=make_header(event.stamp_ns, event.frame_id),
        query_id=event.query.id,
        query=event.query.text,
        state=int(event.state),
        text=event.text,
        category=event.category,
        presence=float(presence.score) if presence else -1.0,
        presence_contrast=float(presence.contrast) if presence else 0.0,
        presence_consistency=float(presence.consistency) if presence else 0.0,
        presence_agreement=float(presence.agreement) if presence else 0.0,
        presence_iou=float(presence.iou) if presence else 0.0,
        presence_object=float(presence.object_presence) if presence else 0.0,
        window_start=make_time(event.window_start_ns),
        window_end=make_time(event.window_end_ns),
        stage_times=[
            _make("decaf_ros/msg/StageTime", stage=stage, milliseconds=float(ms)) for stage, ms in event.stage_ms
        ],
        tracklet_ids=np.asarray(event.target_ids, np.uint32),
        keypoints=[
            _make(
                "decaf_ros/msg/Keypoint",
                stamp=make_time(point.stamp_ns),
                x=float(point.x),
                y=float(point.y),
                score=float(point.score),
            )
            for point in event.keypoints
        ],
    )
