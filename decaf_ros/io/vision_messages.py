"""Targets as messages of vision_msgs, which other packages know. Needs no ROS installation."""

from __future__ import annotations

from typing import Any

import numpy as np

from decaf_ros.io.geometry_messages import pose, vector
from decaf_ros.io.messages import Make, header
from decaf_ros.space.scene import Scene
from decaf_ros.types import FrameResult, Target

VISION_TOPICS = {
    "detections": "vision_msgs/msg/Detection2DArray",
    "detections_3d": "vision_msgs/msg/Detection3DArray",
    "label_info": "vision_msgs/msg/LabelInfo",
}
_UPRIGHT = np.array([0.0, 0.0, 0.0, 1.0])


def class_name(result: FrameResult, target: Target) -> str:
    """The category, or without one (mode fast) the text of the first query that means the target."""
    texts = {query.id: query.text for query in result.queries}
    return target.category or texts.get(target.query_ids[0], "")


def detections(make: Make, result: FrameResult) -> Any:
    """vision_msgs/Detection2DArray of the visible targets: id, class_name, combined score, box in pixels."""
    head = header(make, result.frame.stamp_ns, result.frame.frame_id)

    def detection(target: Target) -> Any:
        x, y, width, height = target.box_xywh
        # The centre of the first pixel is at (0, 0), as for cameras.
        position = make("vision_msgs/msg/Point2D", x=x + (width - 1) / 2, y=y + (height - 1) / 2)
        return make(
            "vision_msgs/msg/Detection2D",
            header=head,
            results=[_hypothesis(make, result, target, pose(make, np.zeros(3), _UPRIGHT))],
            bbox=make(
                "vision_msgs/msg/BoundingBox2D",
                center=make("vision_msgs/msg/Pose2D", position=position, theta=0.0),
                size_x=float(width),
                size_y=float(height),
            ),
            id=str(target.id),
        )

    visible = [detection(target) for target in result.targets if target.area_px]
    return make("vision_msgs/msg/Detection2DArray", header=head, detections=visible)


def detections_3d(make: Make, scene: Scene) -> Any:
    """vision_msgs/Detection3DArray of the targets with a position: the oriented box around the visible surface; the
    pose of the result is that of `target_pose`."""
    result = scene.result
    head = header(make, result.frame.stamp_ns, scene.frame_id)
    found = []
    for target, geometry in scene.placed:
        assert geometry.position is not None and geometry.box is not None, "placed"
        turned = scene.quaternion(geometry.box.axes)
        box = make(
            "vision_msgs/msg/BoundingBox3D",
            center=pose(make, scene.moved(geometry.box.centre), turned),
            size=vector(make, geometry.box.size),
        )
        results = [_hypothesis(make, result, target, pose(make, scene.moved(geometry.position), turned))]
        found.append(make("vision_msgs/msg/Detection3D", header=head, results=results, bbox=box, id=str(target.id)))
    return make("vision_msgs/msg/Detection3DArray", header=head, detections=found)


def label_names(result: FrameResult) -> tuple[tuple[int, str], ...]:
    """Label and class_name of each target."""
    return tuple((target.label, class_name(result, target)) for target in result.targets)


def label_info(make: Make, result: FrameResult, threshold: float) -> Any:
    """vision_msgs/LabelInfo: what the values of the label image on `masks` mean. threshold: of the combined score."""
    classes = [
        make("vision_msgs/msg/VisionClass", class_id=label, class_name=name) for label, name in label_names(result)
    ]
    head = header(make, result.frame.stamp_ns, result.frame.frame_id)
    return make("vision_msgs/msg/LabelInfo", header=head, class_map=classes, threshold=float(threshold))


def _hypothesis(make: Make, result: FrameResult, target: Target, where: Any) -> Any:
    """The covariance is not known: zeros."""
    hypothesis = make(
        "vision_msgs/msg/ObjectHypothesis",
        class_id=class_name(result, target),
        score=float(target.scores.combined),
    )
    with_covariance = make("geometry_msgs/msg/PoseWithCovariance", pose=where, covariance=np.zeros(36))
    return make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis, pose=with_covariance)
