"""RViz with the segmenter's layout: `ros2 launch decaf_ros rviz.launch.py fixed_frame:=camera_color_optical_frame`.

For another namespace, camera or frame the layout is copied with these names.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnShutdown
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from decaf_ros.io.layouts import layout

ARGUMENTS = {
    "namespace": ("decaf", "namespace of the segmenter"),
    "camera": ("", "one of the segmenter's cameras, if it has several"),
    "image": ("", "full name of the topic of the camera's raw images; default: NAMESPACE/CAMERA/image"),
    "fixed_frame": (
        "",
        "frame in which targets are shown: that of the camera's images, or space.target_frame; default: "
        "camera_color_optical_frame",
    ),
}


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in ARGUMENTS.items()
            ),
            OpaqueFunction(function=make_rviz),
        ]
    )


def make_rviz(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """RViz, and the removal of its copy of the layout. Raises RuntimeError without rviz2, ValueError for bad names."""
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError as error:
        distribution = os.environ.get("ROS_DISTRO", "$ROS_DISTRO")
        raise RuntimeError(
            f"rviz: expected the package rviz2, got none in AMENT_PREFIX_PATH. Install it, `sudo apt install "
            f"ros-{distribution}-rviz2`, start without RViz (rviz:=false), or use another computer's RViz"
        ) from error
    names = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    text = layout("rviz", **names)
    number, name = tempfile.mkstemp(prefix="decaf_", suffix=".rviz")
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(text)

    def remove(*_: object) -> None:
        Path(name).unlink(missing_ok=True)

    return [
        # Not in the segmenter's namespace, and without the layout's topics as remappings: RViz shows the real names.
        Node(package="rviz2", executable="rviz2", name="decaf_rviz", arguments=["-d", name], output="screen"),
        RegisterEventHandler(OnShutdown(on_shutdown=remove)),
    ]
