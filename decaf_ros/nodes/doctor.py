"""The doctor's look at the robot's ROS, without starting the segmenter: messages, middleware, images, camera, frames.

`decaf doctor` starts it as `python -m decaf_ros.nodes.doctor REQUEST`, because a message class that was compiled for
another NumPy can end the process.
"""

from __future__ import annotations

import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from decaf_ros.config import DecafConfig, replace
from decaf_ros.config.transports import DEPTH_TRANSPORTS, IMAGE_TRANSPORTS, check_topic
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding, serve
from decaf_ros.doctor.packages import NUMPY_MEND
from decaf_ros.doctor.ros import CameraTopics
from decaf_ros.io.images import message_to_rgb, source_encoding
from decaf_ros.msg import TrackletArray
from decaf_ros.nodes.camera import image_qos
from decaf_ros.nodes.doctor_space import check_depth, check_frames, check_info
from decaf_ros.nodes.doctor_topics import LOSSES, PROFILE, Topic, listen
from decaf_ros.nodes.image_backend import CvBridgeConverter, UnusableError

# An image of more bytes needs a larger shared-memory segment than Fast DDS has by default.
_DEFAULT_SEGMENT = 512 * 1024
_PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
_FASTDDS_2_DISTROS = ("humble", "iron", "jazzy")


def check_messages() -> Iterator[Finding]:
    """Messages with arrays survive serialisation: their classes are compiled against NumPy."""
    info = CameraInfo(height=480, width=640, k=np.arange(9.0), d=[0.5])
    image = Image(height=1, width=2, encoding="mono8", step=2, data=b"\1\2")
    for message in (info, image, TrackletArray()):
        kind = type(message)
        if deserialize_message(serialize_message(message), kind) != message:
            yield Finding(
                "messages", WRONG, f"{kind.__name__} changes when it is serialised", "build the workspace again"
            )
            return
    yield Finding("messages", OK, f"serialised and read with NumPy {np.__version__}")


def check_cv_bridge(config: DecafConfig) -> Iterator[Finding]:
    """cv_bridge gives the pixels of the built-in conversion, tried in another process."""
    name, backend = "cv_bridge", config.node.image_backend
    if backend == "builtin":
        yield Finding(name, NOT_CHECKED, "node.image_backend is builtin")
        return
    try:
        encodings = CvBridgeConverter().encodings
    except UnusableError as error:
        if backend == "auto" and "no cv_bridge is installed" in str(error):
            yield Finding(name, NOT_CHECKED, f"{error}; the built-in conversion is used")
        else:
            mend = "install the versions of requirements/ros-DISTRIBUTION.txt, or set node.image_backend to builtin"
            yield Finding(name, WRONG, f"{error} (NumPy {np.__version__})", mend)
    else:
        yield Finding(name, OK, f"converts {len(encodings)} encodings")


def check_middleware() -> Iterator[Finding]:
    """The RMW implementation and its profile for large images."""
    rmw = rclpy.get_rmw_implementation_identifier()
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    yield Finding("RMW", OK, f"{rmw}, domain {domain}")
    name = "shared memory"
    if "fastrtps" not in rmw:
        yield Finding(name, NOT_CHECKED, f"known for Fast DDS only, not for {rmw}")
        return
    fast_dds_2 = os.environ.get("ROS_DISTRO") in _FASTDDS_2_DISTROS
    variable = _PROFILE_VARIABLES[fast_dds_2]
    mend = f"export {variable}=.../{PROFILE} for the camera driver, which publishes the images (docs/workspace.md)"
    if variable not in os.environ:
        yield Finding(name, NOT_CHECKED, f"{variable} is not set in this shell; the camera driver's counts", mend)
        return
    path = Path(os.environ[variable])
    try:
        sizes = [int(entry.text or 0) for entry in ElementTree.parse(path).iter() if entry.tag.endswith("segment_size")]
    except (OSError, ElementTree.ParseError, ValueError) as error:
        yield Finding(name, WRONG, f"{variable}={path}: {error}", mend)
        return
    if max(sizes, default=0) > _DEFAULT_SEGMENT:
        yield Finding(name, OK, f"{path}: segment of {max(sizes) // 1024} KiB")
    else:
        yield Finding(name, WRONG, f"{path}: no shared-memory segment larger than {_DEFAULT_SEGMENT // 1024} KiB", mend)


class Camera:
    """The topics of a camera as the segmenter would subscribe to them. See `check_robot` for the arguments."""

    def __init__(self, node: Node, topics: CameraTopics, config: DecafConfig, watch_s: float) -> None:
        self._node, self._config, self._watch_s = node, config, watch_s
        self._names = topics
        reliability = image_qos(config).reliability
        self._image = Topic(
            node,
            topics.image,
            CompressedImage if config.node.image_transport == "compressed" else Image,
            reliability,
            "node.image_transport",
            ("--image", "image"),
        )
        self._depth = Topic(
            node,
            topics.depth,
            CompressedImage if config.space.depth_transport == "compressed" else Image,
            reliability,
            "space.depth_transport",
            ("--depth", "depth"),
        )
        self._size_hw: tuple[int, int] | None = None

    def check(self) -> Iterator[Finding]:
        """Publishers, QoS, rate and encoding of the images, camera_info, and with `space.enabled` depth."""
        config, has_space = self._config, self._config.space.enabled
        named = [(self._image, "node.image_transport", config.node.image_transport, IMAGE_TRANSPORTS)]
        if has_space:
            named.append((self._depth, "space.depth_transport", config.space.depth_transport, DEPTH_TRANSPORTS))
        heard = []
        for topic, option, transport, suffixes in named:
            try:
                check_topic(option, topic.name, transport, suffixes)
            except ValueError as error:
                text, _, mend = str(error).partition("; ")
                yield Finding(topic.name, WRONG, text.removeprefix(f"{topic.name}: "), mend)
                continue
            found = list(topic.find())
            yield from found
            if any(finding.state == OK and finding.name.startswith("QoS of ") for finding in found):
                heard.append(topic)
        if not heard:
            return
        listen(self._node, heard, self._watch_s)
        if self._image in heard:
            yield from self._check_images()
        if self.has_image:
            info = self._node.resolve_topic_name(self._names.camera_info)
            yield from check_info(self._node, info, self._image.message, self._size_hw, config, self._watch_s)
        if self._depth in heard and self._size_hw is None:
            yield self._depth.rate(self._watch_s)
        elif self._depth in heard and self._size_hw is not None:
            yield from check_depth(
                self._node,
                self._depth,
                self._image,
                self._size_hw,
                self._node.resolve_topic_name(self._names.depth_camera_info),
                config,
                self._watch_s,
            )

    @property
    def has_image(self) -> bool:
        """Whether an image came."""
        return self._image.message is not None

    @property
    def frame(self) -> str:
        """The frame_id of the images, empty if none came."""
        return self._image.frame

    def _check_images(self) -> Iterator[Finding]:
        """The rate of the images, and the conversion of the first one."""
        finding, period_s = self._image.rate(self._watch_s), self._config.window.keyframe_period_s
        if finding.state == OK and self._image.hz(self._watch_s) * period_s < 1:
            mend = f"raise the camera's rate or window.keyframe_period_s; if the camera is faster, {LOSSES}"
            text = f"{finding.text}: fewer than key frames, one each {period_s:g} s"
            finding = Finding(finding.name, WRONG, text, mend)
        yield finding
        if not self.has_image:
            return
        name, message = f"encoding of {self._image.name}", self._image.message
        try:
            pixels = message_to_rgb(message, max_mpx=self._config.node.max_image_mpx)
        except ValueError as error:
            mend = "publish a colour, mono or Bayer picture; image_proc and image_transport convert"
            yield Finding(name, WRONG, str(error), mend)
            return
        height, width = self._size_hw = pixels.shape[:2]
        yield Finding(name, OK, f"{source_encoding(message) or message.format}, {width} x {height} px")


def check_robot(config: DecafConfig, cameras: Sequence[CameraTopics], target: str, watch_s: float) -> Iterator[Finding]:
    """Every camera, with a node that exists for this check only.

    Args:
        config: the segmenter's configuration.
        cameras: the topics of each camera.
        target: frame that the images' frame must have a transform to; empty: none.
        watch_s: how long images are counted, in seconds.
    """
    is_needed = config.space.enabled and target == config.space.target_frame
    rclpy.init()
    node = rclpy.create_node("decaf_doctor")
    try:
        for topics in cameras:
            camera = Camera(node, topics, config, watch_s)
            yield from camera.check()
            if camera.has_image:
                yield from check_frames(node, camera.frame, target, is_needed, watch_s)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def main() -> None:
    request = json.loads(sys.argv[1])
    config = replace(DecafConfig(), request["options"])
    serve([("messages", check_messages), ("cv_bridge", lambda: check_cv_bridge(config))], NUMPY_MEND)
    cameras = [CameraTopics(*topics) for topics in request["cameras"]]
    target, watch_s = request["target"], request["watch_s"]
    serve([("RMW", check_middleware), ("images", lambda: check_robot(config, cameras, target, watch_s))])


if __name__ == "__main__":
    main()
