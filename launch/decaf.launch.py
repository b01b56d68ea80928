"""Starts the segmenter: `ros2 launch decaf_ros decaf.launch.py image:=/camera/image_raw`.

The parameter file holds all parameters of the node. The launch arguments select that file, names, topics and logging.
"""

from __future__ import annotations

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# Fast DDS 3 (Kilted) renamed the environment variable, and warns about the old name.
FASTDDS_2_DISTROS = ("humble", "iron", "jazzy")


def generate_launch_description() -> LaunchDescription:
    config = os.path.join(get_package_share_directory("decaf_ros"), "config")
    generation = "FASTRTPS" if os.environ.get("ROS_DISTRO") in FASTDDS_2_DISTROS else "FASTDDS"
    variable = f"{generation}_DEFAULT_PROFILES_FILE"
    profile = {variable: os.path.join(config, "fastdds_large_shm.xml")}
    # A profile of the user takes precedence: Fast DDS reads only one file.
    has_profile = variable in os.environ
    image = LaunchConfiguration("image")
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "params_file",
                default_value=os.path.join(config, "decaf.yaml"),
                description="parameter file of the node; config/paper.yaml is the paper's evaluation protocol",
            ),
            DeclareLaunchArgument("namespace", default_value="decaf", description="one for each camera"),
            DeclareLaunchArgument(
                "image",
                default_value="image",
                description="topic of the raw images; compressed images are expected on its /compressed",
            ),
            DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
            Node(
                package="decaf_ros",
                executable="segmenter",
                name="segmenter",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params_file")],
                remappings=[("image", image), ("image/compressed", [image, "/compressed"])],
                arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
                additional_env={} if has_profile else profile,
                output="screen",
                emulate_tty=True,
                on_exit=Shutdown(),
            ),
        ]
    )
