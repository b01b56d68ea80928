"""Plays a bag to the segmenter: `ros2 launch decaf_ros replay.launch.py bag:=BAG query:='the red ball' rviz:=true`.

The topics are found in the bag, or named as for decaf.launch.py. Needs no rosbag2: see decaf_ros/nodes/player.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from importlib.util import find_spec

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription, LogInfo, OpaqueFunction
from launch.launch_description_entity import LaunchDescriptionEntity
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from decaf_ros.io.bags import BagReader
from decaf_ros.io.cameras import DepthTopics, recorded_cameras, recorded_depth, split_cameras
from decaf_ros.resources import resolve_path

SHARE = get_package_share_directory("decaf_ros")
# Passed on to decaf.launch.py.
PASSED = {
    "params_file": (os.path.join(SHARE, "config", "decaf.yaml"), "parameter file of the node"),
    "namespace": ("decaf", "namespace of the node"),
    "rviz": ("false", "also start RViz"),
    "fixed_frame": ("", "RViz: frame in which targets are shown; default: that of the bag's images"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}
OWN = {
    "image": ("", "image topic of the only camera; default: the only colour topic of the bag"),
    "cameras": ("", "several cameras, NAME=TOPIC,..."),
    "depth": ("", "depth topic, or with cameras NAME=TOPIC,..."),
    "camera_info": ("", "camera info, or NAME=TOPIC,...; depth needs it"),
    "rate": ("1.0", "seconds of the bag in a second"),
    "loop": ("false", "true: begin again at the end"),
    "query": ("", "a question"),
    "query_at": ("2.0", "when it is asked, in seconds of the bag"),
}
_COMPRESSED, _COMPRESSED_DEPTH = "/compressed", "/compressedDepth"


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            DeclareLaunchArgument("bag", description="folder or file; also package://PACKAGE/PATH"),
            *(
                DeclareLaunchArgument(name, default_value=default, description=description)
                for name, (default, description) in (OWN | PASSED).items()
            ),
            OpaqueFunction(function=replay),
        ]
    )


def replay(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """The node and the player. Raises OSError or ValueError for a bad bag or bad topics."""
    own = {name: LaunchConfiguration(name).perform(context) for name in ("bag", *OWN, "namespace")}
    namespace = f"/{own['namespace'].strip('/')}"
    bag = resolve_path(own["bag"])
    warnings: list[str] = []
    with BagReader(bag, warnings.append) as reader:
        cameras = {name: _recorded(reader, topic, _COMPRESSED) for name, topic in split_cameras(own["cameras"]).items()}
        if cameras:
            images = recorded_cameras(reader, cameras, namespace, warnings.append)
        else:
            images = {"": reader.image_topic(_recorded(reader, own["image"], _COMPRESSED))}
        entries = [[each for each in own[name].split(",") if each] for name in ("depth", "camera_info")]
        entries[0] = [_recorded(reader, entry, _COMPRESSED_DEPTH) for entry in entries[0]]
        depth = recorded_depth(reader, list(images), *entries)
        first = next(reader.frames(next(iter(images.values())), warnings.append), None)
        # Useless without tf2.
        transforms = [topic for topic in ("/tf", "/tf_static") if topic in reader.topics and find_spec("tf2_msgs")]
    topics = {*images.values(), *(topic for each in depth.values() for topic in each), *transforms}
    player = ["--topics", *sorted(topics), "--rate", own["rate"], "--wait-for", f"{namespace}/segmenter"]
    player += ["--loop"] if own["loop"].lower() in ("true", "1") else []
    if own["query"]:
        player += ["--query", own["query"], "--query-at", own["query_at"], "--query-topic", f"{namespace}/query"]
    passed = {name: LaunchConfiguration(name).perform(context) for name in PASSED}
    passed["fixed_frame"] = passed["fixed_frame"] or (first.frame_id if first else "")
    transports = {
        "node.image_transport": _transport(images.values(), _COMPRESSED),
        "space.depth_transport": _transport([each.depth for each in depth.values()], _COMPRESSED_DEPTH),
    }
    # Not by SetParameter, which a parameter file overrides: with another transport the player would wait for ever.
    overrides = {"use_sim_time": True, **{name: value for name, value in transports.items() if value}}
    passed["overrides"] = json.dumps(overrides)
    launch_file = PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "decaf.launch.py"))
    segmenter = IncludeLaunchDescription(
        launch_file, launch_arguments={**passed, **_topics(images, depth, bool(cameras))}.items()
    )
    return [
        *(LogInfo(msg=text) for text in warnings),
        # A group: its arguments are not those of this file.
        GroupAction([segmenter]),
        Node(
            package="decaf_ros",
            executable="player",
            name="player",
            arguments=[bag, *player],
            output="screen",
            emulate_tty=True,
        ),
    ]


def _recorded(reader: BagReader, entry: str, ending: str) -> str:
    """A topic, or NAME=TOPIC, with the ending of its transport if the bag has only that."""
    topic = entry.rpartition("=")[2]
    return entry + ending if topic not in reader.topics and topic + ending in reader.topics else entry


def _topics(images: dict[str, str], depth: dict[str, DepthTopics], has_names: bool) -> dict[str, str]:
    """Arguments of decaf.launch.py, which wants the names without their transports."""
    named = {
        "cameras" if has_names else "image": {name: topic.removesuffix(_COMPRESSED) for name, topic in images.items()},
        "depth": {name: each.depth.removesuffix(_COMPRESSED_DEPTH) for name, each in depth.items()},
        "camera_info": {name: each.camera_info for name, each in depth.items()},
    }
    texts = {
        argument: ",".join(f"{name}={topic}" if name else topic for name, topic in topics.items())
        for argument, topics in named.items()
    }
    # Otherwise this file's empty ones would count there.
    return {"cameras": "", "image": "image"} | texts


def _transport(topics: Iterable[str], ending: str) -> str:
    """The transport of all topics; empty without any. Raises ValueError for both."""
    names = list(topics)
    found = {"compressed" if topic.endswith(ending) else "raw" for topic in names}
    if len(found) > 1:
        raise ValueError(f"topics: expected all raw or all compressed, got {', '.join(names)}")
    return found.pop() if found else ""
