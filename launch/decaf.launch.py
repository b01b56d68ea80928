"""Starts the segmenter: `ros2 launch decaf_ros decaf.launch.py image:=/camera/image_raw`.

Several cameras: `cameras:=wrist=/wrist_camera/image_raw,head=/head_camera/image_raw`. With depth:
`depth:=/camera/aligned_depth_to_color/image_raw camera_info:=/camera/color/camera_info`. With RViz: `rviz:=true`.

The parameter file holds all parameters of the node. The launch arguments select that file, names, topics and logging.
"""

from __future__ import annotations

import os

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, OpaqueFunction, Shutdown
from launch.conditions import IfCondition
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from decaf_ros.io.cameras import split_cameras
from decaf_ros.resources import resolve_path

# Fast DDS 3 (Kilted) renamed the environment variable, and warns about the old name.
FASTDDS_2_DISTROS = ("humble", "iron", "jazzy")

_DEPTH = ("", "/compressedDepth")


def generate_launch_description() -> LaunchDescription:
    config = os.path.join(get_package_share_directory("decaf_ros"), "config")
    return LaunchDescription(
        [
            DeclareLaunchArgument(
                "params_file",
                default_value=os.path.join(config, "decaf.yaml"),
                description="parameter file of the node, also package://PACKAGE/PATH; config/paper.yaml is the paper's "
                "evaluation protocol",
            ),
            DeclareLaunchArgument("namespace", default_value="decaf", description="one for each node"),
            DeclareLaunchArgument(
                "image",
                default_value="image",
                description="topic of the only camera's raw images; compressed ones are expected on its /compressed",
            ),
            DeclareLaunchArgument(
                "cameras",
                default_value="",
                description="several cameras with one copy of the models: names, each with its image topic, such as "
                "wrist=/wrist/image_raw,head=/head/image_raw; without a topic NAMESPACE/NAME/image; default: the "
                "parameter of this name",
            ),
            DeclareLaunchArgument(
                "depth",
                default_value="",
                description="topic of the only camera's depth images, compressed ones on its /compressedDepth, or with "
                "cameras NAME=TOPIC,...; turns on the parameter space.enabled",
            ),
            DeclareLaunchArgument(
                "camera_info", default_value="", description="topic of the camera info of the image, or NAME=TOPIC,..."
            ),
            DeclareLaunchArgument(
                "depth_camera_info",
                default_value="",
                description="that of the depth, if it is not registered to the image, or NAME=TOPIC,...",
            ),
            DeclareLaunchArgument(
                "rviz", default_value="false", description="true: also start RViz, see rviz.launch.py"
            ),
            DeclareLaunchArgument(
                "fixed_frame",
                default_value="",
                description="RViz: frame in which targets are shown; default: camera_color_optical_frame",
            ),
            DeclareLaunchArgument(
                "overrides",
                default_value="{}",
                description="parameters that win over the parameter file, such as '{node.image_transport: compressed}'",
            ),
            DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error or fatal"),
            # First: without RViz nothing is started.
            OpaqueFunction(function=include_rviz),
            OpaqueFunction(function=make_node, args=[config]),
        ]
    )


def include_rviz(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """rviz.launch.py for the first camera, if `rviz` is set. Raises ValueError for bad names of cameras."""
    namespace = LaunchConfiguration("namespace").perform(context)
    image = LaunchConfiguration("image").perform(context)
    cameras = split_cameras(LaunchConfiguration("cameras").perform(context))
    camera, image = next(iter(cameras.items())) if cameras else ("", image)
    if image and not image.startswith("/"):
        image = f"/{namespace.strip('/')}/{image}"
    launch_file = os.path.join(get_package_share_directory("decaf_ros"), "launch", "rviz.launch.py")
    names = {
        "namespace": namespace,
        "camera": camera,
        "image": image,
        "fixed_frame": LaunchConfiguration("fixed_frame"),
    }
    rviz = IncludeLaunchDescription(PythonLaunchDescriptionSource(launch_file), launch_arguments=names.items())
    # A group: `image` is another argument there.
    return [GroupAction([rviz], condition=IfCondition(LaunchConfiguration("rviz")))]


def make_node(context: LaunchContext, config: str) -> list[Node]:
    """The node. config: folder of the configuration files. Raises ValueError for bad names of cameras."""
    generation = "FASTRTPS" if os.environ.get("ROS_DISTRO") in FASTDDS_2_DISTROS else "FASTDDS"
    variable = f"{generation}_DEFAULT_PROFILES_FILE"
    profile = {variable: os.path.join(config, "fastdds_large_shm.xml")}
    # A profile of the user takes precedence: Fast DDS reads only one file.
    has_profile = variable in os.environ
    image = LaunchConfiguration("image").perform(context)
    cameras = split_cameras(LaunchConfiguration("cameras").perform(context))
    topics = {"image": image, **{f"{name}/image": topic for name, topic in cameras.items() if topic}}
    depth = _by_camera(context, "depth", "depth", cameras)
    infos = _by_camera(context, "camera_info", "camera_info", cameras)
    infos |= _by_camera(context, "depth_camera_info", "depth/camera_info", cameras)
    overrides = yaml.safe_load(LaunchConfiguration("overrides").perform(context))
    if not isinstance(overrides, dict):
        raise ValueError(f"overrides: expected {{NAME: VALUE, ...}}, got {overrides!r}")
    return [
        Node(
            package="decaf_ros",
            executable="segmenter",
            name="segmenter",
            namespace=LaunchConfiguration("namespace"),
            parameters=[
                resolve_path(LaunchConfiguration("params_file").perform(context)),
                *([{"cameras": list(cameras)}] if cameras else []),
                *([{"space.enabled": True}] if depth else []),
                *([overrides] if overrides else []),
            ],
            remappings=[
                (name + transport, topic + transport)
                for name, topic in topics.items()
                for transport in ("", "/compressed")
            ]
            + [(name + transport, topic + transport) for name, topic in depth.items() for transport in _DEPTH]
            + list(infos.items()),
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level")],
            additional_env={} if has_profile else profile,
            output="screen",
            emulate_tty=True,
            on_exit=Shutdown(),
            # The end waits for the running unit of work, and torch unloads: more than 5 s on a busy CPU.
            sigterm_timeout="30",
        ),
    ]


def _by_camera(context: LaunchContext, argument: str, name: str, cameras: dict[str, str]) -> dict[str, str]:
    """The topic of each camera for the node's name `name`. Raises ValueError for an unknown camera."""
    text = LaunchConfiguration(argument).perform(context)
    if not cameras:
        return {name: text} if text else {}
    topics = split_cameras(text)
    if unknown := [each for each in topics if each not in cameras]:
        raise ValueError(f"{argument}: expected cameras of {', '.join(cameras)}, got {', '.join(unknown)}")
    return {f"{each}/{name}": topic for each, topic in topics.items()}
