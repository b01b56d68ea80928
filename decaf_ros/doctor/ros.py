"""Starts the checks of ROS, which are in `decaf_ros/nodes/doctor.py`, where there is ROS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from decaf_ros.config import DecafConfig, options
from decaf_ros.doctor.findings import NOT_CHECKED, WRONG, Finding, run_trial
from decaf_ros.doctor.packages import NUMPY_MEND

# Discovery, each camera's images and camera_info, and starting Python.
_BASE_S, _CAMERA_S = 120.0, 10.0


def check_ros(config: DecafConfig, topics: Sequence[str], target: str, watch_s: float) -> Iterator[Finding]:
    """Messages, cv_bridge, middleware, images, camera_info and frames. Without rclpy: one finding that says so.

    Args:
        config: the segmenter's configuration.
        topics: its image topics, with full names.
        target: frame that the images' frame must have a transform to; empty: none.
        watch_s: how long the images of each topic are counted, in seconds.
    """
    if find_spec("rclpy") is None:
        reason = "rclpy is not installed: messages, cv_bridge, RMW, images, camera_info and frames are left out"
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
            option.name: option.value for option in options(config) if option.name.startswith(("node.", "window."))
        },
        "topics": list(topics),
        "target": target,
        "watch_s": watch_s,
    }
    limit_s = _BASE_S + len(topics) * (_CAMERA_S + 3 * watch_s)
    yield from run_trial("decaf_ros.nodes.doctor", request, "ROS", NUMPY_MEND, limit_s)


def image_topics(config: DecafConfig, namespace: str, given: Sequence[str]) -> list[str]:
    """The image topics of the segmenter: the given ones, else those of its cameras in the namespace, for the configured
    transport."""
    names = [f"/{namespace.strip('/')}/{f'{camera}/' if camera else ''}image" for camera in config.cameras or ("",)]
    suffix = "/compressed" if config.node.image_transport == "compressed" else ""
    return [topic if topic.endswith(suffix) else topic + suffix for topic in given or names]
