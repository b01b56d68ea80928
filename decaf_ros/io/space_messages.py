"""Targets in space as messages. Needs no ROS installation. `make`: see `decaf_ros.io.messages`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from decaf_ros.io.geometry_messages import pose, vector
from decaf_ros.io.messages import Make, frame_image, header
from decaf_ros.io.vision_messages import class_name, detections_3d
from decaf_ros.io.viz import target_color
from decaf_ros.space.scene import Scene

SPACE_TOPICS = {
    "target_pose": "geometry_msgs/msg/PoseStamped",
    "points": "sensor_msgs/msg/PointCloud2",
    "depth_masked": "sensor_msgs/msg/Image",
    "depth_masked/camera_info": "sensor_msgs/msg/CameraInfo",
    "markers": "visualization_msgs/msg/MarkerArray",
}
_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4"), ("label", "<u4")])
# Codes of sensor_msgs/PointField. A colour is a float32 with the bytes b, g, r, 0, as in PCL.
_FIELDS = {"x": 7, "y": 7, "z": 7, "rgb": 7, "label": 6}
_CUBE, _TEXT, _ADD, _DELETE_ALL = 1, 9, 0, 3
_TEXT_M = 0.03


def target_pose(make: Make, scene: Scene) -> Any:
    """geometry_msgs/PoseStamped of the best target: its position with the axes of its box; None without one."""
    best = scene.best
    if best is None:
        return None
    _, geometry = best
    assert geometry.position is not None and geometry.box is not None, "placed"
    where = pose(make, scene.moved(geometry.position), scene.quaternion(geometry.box.axes))
    return make("geometry_msgs/msg/PoseStamped", header=_header(make, scene), pose=where)


def points(make: Make, scene: Scene) -> Any:
    """sensor_msgs/PointCloud2 of all targets: x, y, z in metres, rgb, label (its value in the image on `masks`)."""
    pixels = scene.result.frame.image.reshape(-1, 3)
    cloud = np.zeros(sum(len(geometry.points) for _, geometry in scene.placed), _POINT)
    done = 0
    for target, geometry in scene.placed:
        part = cloud[done : done + len(geometry.points)]
        part["x"], part["y"], part["z"] = scene.moved(geometry.points).T
        red, green, blue = pixels[geometry.pixels].astype(np.uint32).T
        part["rgb"] = red << 16 | green << 8 | blue
        part["label"] = target.label
        done += len(part)
    fields = [
        make("sensor_msgs/msg/PointField", name=name, offset=4 * place, datatype=code, count=1)
        for place, (name, code) in enumerate(_FIELDS.items())
    ]
    return make(
        "sensor_msgs/msg/PointCloud2",
        header=_header(make, scene),
        height=1,
        width=len(cloud),
        fields=fields,
        is_bigendian=False,
        point_step=_POINT.itemsize,
        row_step=_POINT.itemsize * len(cloud),
        data=cloud.view(np.uint8),
        is_dense=True,
    )


def depth_masked(make: Make, scene: Scene) -> Any:
    """sensor_msgs/Image (32FC1, metres) in the camera's frame: depth within the masks, NaN elsewhere."""
    masked = np.where(scene.result.labels > 0, scene.depth_m, np.float32(np.nan))
    return frame_image(make, masked, scene.result.frame)


def camera_info(make: Make, scene: Scene, info: Any) -> Any:
    """sensor_msgs/CameraInfo for `depth_masked`: a copy of `info` with the frame's header."""
    roi = info.roi
    return make(
        "sensor_msgs/msg/CameraInfo",
        header=header(make, scene.result.frame.stamp_ns, scene.result.frame.frame_id),
        height=info.height,
        width=info.width,
        distortion_model=info.distortion_model,
        **{name: np.array(getattr(info, name), np.float64) for name in "dkrp"},
        binning_x=info.binning_x,
        binning_y=info.binning_y,
        roi=make(
            "sensor_msgs/msg/RegionOfInterest",
            x_offset=roi.x_offset,
            y_offset=roi.y_offset,
            width=roi.width,
            height=roi.height,
            do_rectify=roi.do_rectify,
        ),
    )


def markers(make: Make, scene: Scene) -> Any:
    """visualization_msgs/MarkerArray: a box and a name for each target with a position; removes those of before."""
    upright = np.array([0.0, 0.0, 0.0, 1.0])
    found = [_marker(make, scene, "targets", 0, _CUBE, _DELETE_ALL, np.zeros(3), upright, np.zeros(3), (0, 0, 0, 0))]
    for target, geometry in scene.placed:
        assert geometry.box is not None, "placed"
        color = (*(value / 255 for value in target_color(target.id)), 0.4)
        centre, turned = scene.moved(geometry.box.centre), scene.quaternion(geometry.box.axes)
        found.append(_marker(make, scene, "targets", target.id, _CUBE, _ADD, centre, turned, geometry.box.size, color))
        text = f"{target.id} {class_name(scene.result, target)}".rstrip()
        size = np.array([0.0, 0.0, _TEXT_M])
        found.append(_marker(make, scene, "names", target.id, _TEXT, _ADD, centre, upright, size, (1, 1, 1, 1), text))
    return make("visualization_msgs/msg/MarkerArray", markers=found)


def _marker(
    make: Make,
    scene: Scene,
    namespace: str,
    number: int,
    kind: int,
    action: int,
    centre: np.ndarray,
    turned: np.ndarray,
    size: np.ndarray,
    rgba: tuple[float, ...],
    text: str = "",
) -> Any:
    empty_header = header(make, 0, "")
    return make(
        "visualization_msgs/msg/Marker",
        header=_header(make, scene),
        ns=namespace,
        id=number,
        type=kind,
        action=action,
        pose=pose(make, centre, turned),
        scale=vector(make, size),
        color=make("std_msgs/msg/ColorRGBA", **{name: float(value) for name, value in zip("rgba", rgba)}),
        lifetime=make("builtin_interfaces/msg/Duration", sec=0, nanosec=0),
        frame_locked=False,
        points=[],
        colors=[],
        texture_resource="",
        texture=make("sensor_msgs/msg/CompressedImage", header=empty_header, format="", data=np.zeros(0, np.uint8)),
        uv_coordinates=[],
        text=text,
        mesh_resource="",
        mesh_file=make("visualization_msgs/msg/MeshFile", filename="", data=np.zeros(0, np.uint8)),
        mesh_use_embedded_materials=False,
    )


def _header(make: Make, scene: Scene) -> Any:
    return header(make, scene.result.frame.stamp_ns, scene.frame_id)


# How each topic's message is made, if somebody wants it. `depth_masked/camera_info` also needs the camera's message.
BUILDERS: dict[str, Callable[[Make, Scene], Any]] = {
    "target_pose": target_pose,
    "points": points,
    "depth_masked": depth_masked,
    "detections_3d": detections_3d,
    "markers": markers,
}
