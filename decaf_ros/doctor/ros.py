"""Starts the checks of ROS, which are in `decaf_ros/nodes/doctor.py`, where there is ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import NamedTuple

from decaf_ros.config import DecafConfig, options
from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS
from decaf_ros.doctor.findings import NOT_CHECKED, WRONG, Finding, run_trial
from decaf_ros.doctor.packages import NUMPY_MEND

# Discovery, each camera's images and camera_info, and starting Python.
_BASE_S, _CAMERA_S = 120.0, 10.0


class CameraTopics(NamedTuple):
    """The topics of a camera. image and depth: with the ends of their transports."""

    image: str
    depth: str
    camera_info: str
    depth_camera_info: str


def check_ros(config: DecafConfig, cameras: Sequence[CameraTopics], target: str, watch_s: float) -> Iterator[Finding]:
    """Messages, cv_bridge, middleware, images, camera_info, depth and frames. Without rclpy: one finding that says so.

    Args:
        config: the segmenter's configuration.
        cameras: the topics of its cameras, with full names.
        target: frame that the images' frame must have a transform to; empty: none.
        watch_s: how long the images of each topic are counted, in seconds.
    """
    if find_spec("rclpy") is None:
        reason = "rclpy is not installed: messages, cv_bridge, RMW, images, camera_info, depth and frames are left out"
        yield Finding(
            "ROS", NOT_CHECKED, reason, "on a robot: source /opt/ros/DISTRIBUTION/setup.bash and the workspace"
        )
        return
    if find_spec("decaf_ros.msg") is None:
        yield Finding(
            "ROS", WRONG, "the messages of decaf_ros are not built", "colcon build, source install/setup.bash"
        )
        return
    request = {
        "options": {
            option.name: option.value
            for option in options(config)
            if option.name.startswith(("node.", "window.", "space."))
        },
        "cameras": [list(topics) for topics in cameras],
        "target": target,
        "watch_s": watch_s,
    }
    limit_s = _BASE_S + len(cameras) * (_CAMERA_S + 6 * watch_s)
    yield from run_trial("decaf_ros.nodes.doctor", request, "ROS", NUMPY_MEND, limit_s)


def camera_topics(
    config: DecafConfig,
    namespace: str,
    images: Sequence[str] = (),
    depths: Sequence[str] = (),
    infos: Sequence[str] = (),
    depth_infos: Sequence[str] = (),
) -> list[CameraTopics]:
    """The topics of the segmenter's cameras: the given ones, in their order, else those of the namespace.

    A given image topic has its camera info beside it unless that is given too. Raises ValueError for more topics of
    depth or camera info than cameras.
    """
    prefixes = [f"/{namespace.strip('/')}/{f'{camera}/' if camera else ''}" for camera in config.cameras or ("",)]
    count = len(images) or len(prefixes)
    for option, topics in (("--depth", depths), ("--camera-info", infos), ("--depth-camera-info", depth_infos)):
        if len(topics) > count:
            raise ValueError(f"{option}: expected at most one topic for each of {count} cameras, got {len(topics)}")
    found = []
    for place in range(count):
        prefix = prefixes[min(place, len(prefixes) - 1)]
        image = images[place] if images else f"{prefix}image"
        base = image.removesuffix(IMAGE_TRANSPORTS["compressed"])
        info = infos[place] if place < len(infos) else f"{base.rpartition('/')[0]}/camera_info"
        depth = depths[place] if place < len(depths) else f"{prefix}depth"
        found.append(
            CameraTopics(
                _of_transport(image, IMAGE_TRANSPORTS[config.node.image_transport]),
                _of_transport(depth, DEPTH_TRANSPORTS[config.space.depth_transport]),
                info,
                depth_infos[place] if place < len(depth_infos) else f"{prefix}depth/camera_info",
            )
        )
    return found


def _of_transport(topic: str, suffix: str) -> str:
    return topic if topic.endswith(suffix) else topic + suffix
