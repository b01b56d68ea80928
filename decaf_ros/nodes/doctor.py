"""The doctor's look at the robot's ROS, without starting the segmenter: messages, middleware, images, camera, frames.

`decaf doctor` starts it as `python -m decaf_ros.nodes.doctor REQUEST`, because a message class that was compiled for
another NumPy can end the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible, qos_profile_sensor_data
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from decaf_ros.config import DecafConfig, replace
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding, serve
from decaf_ros.doctor.packages import NUMPY_MEND
from decaf_ros.io.images import message_to_rgb, source_encoding
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import TrackletArray
from decaf_ros.nodes.camera import image_qos
from decaf_ros.nodes.image_backend import CvBridgeConverter, UnusableError

_DISCOVERY_S = 5.0
_COMPRESSED = "/compressed"
# In the name of a node that is not known yet.
_UNKNOWN = "_UNKNOWN_"
# An image of more bytes needs a larger shared-memory segment than Fast DDS has by default.
_DEFAULT_SEGMENT = 512 * 1024
_PROFILE = "config/fastdds_large_shm.xml"
_LOSSES = (
    f"images larger than 512 KiB are lost on the way: give {_PROFILE} to the camera driver (docs/workspace.md), or "
    "publish reliably and set node.reliability to reliable"
)
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
    mend = f"export {variable}=.../{_PROFILE} for the camera driver, which publishes the images (docs/workspace.md)"
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
    """An image topic as the segmenter would subscribe to it.

    Args:
        node: a node without other subscriptions.
        topic: the image topic as the segmenter has it, with `/compressed` if that transport is configured.
        config: the segmenter's configuration.
        watch_s: how long images are counted, in seconds.
    """

    def __init__(self, node: Node, topic: str, config: DecafConfig, watch_s: float) -> None:
        self._node, self._config, self._watch_s = node, config, watch_s
        self._topic = node.resolve_topic_name(topic)
        self._kind: Any = CompressedImage if config.node.image_transport == "compressed" else Image
        self._message: Any = None

    def check(self) -> Iterator[Finding]:
        """Publisher, QoS, rate and encoding, and camera_info."""
        publishers = self._publishers()
        if not publishers:
            yield Finding(f"{self._topic}", WRONG, "nobody publishes images here", self._others())
            return
        expected = f"sensor_msgs/msg/{self._kind.__name__}"
        kinds = sorted({publisher.topic_type for publisher in publishers})
        if kinds != [expected]:
            mend = "name another topic (--image), or set node.image_transport to the other transport"
            yield Finding(self._topic, WRONG, f"expected {expected}, got {', '.join(kinds)}", mend)
            return
        names = ", ".join(f"{entry.node_namespace.rstrip('/')}/{entry.node_name}" for entry in publishers)
        yield Finding(self._topic, OK, f"{expected} from {names}")
        qos = image_qos(self._config)
        matched = False
        for publisher in publishers:
            finding = self._qos_finding(publisher, qos)
            matched = matched or finding.state == OK
            yield finding
        if not matched:
            yield Finding(f"images of {self._topic}", NOT_CHECKED, "the QoS of no publisher fits")
            return
        yield from self._watch(qos)
        if self._message is not None:
            yield from self._info()

    @property
    def has_image(self) -> bool:
        """Whether an image came."""
        return self._message is not None

    @property
    def frame(self) -> str:
        """The frame_id of the images, empty if none came."""
        return str(self._message.header.frame_id) if self._message is not None else ""

    def _publishers(self) -> list[Any]:
        """Waits until there are some, and their nodes' names, which come later."""
        until = time.monotonic() + _DISCOVERY_S
        while True:
            found = self._node.get_publishers_info_by_topic(self._topic)
            named = found and not any(_UNKNOWN in publisher.node_name for publisher in found)
            if named or time.monotonic() > until:
                return found
            rclpy.spin_once(self._node, timeout_sec=0.1)

    def _others(self) -> str:
        """Names the image topics that there are."""
        kinds = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
        topics = sorted(name for name, types in self._node.get_topic_names_and_types() if kinds.intersection(types))
        topics = [name for name in topics if self._node.get_publishers_info_by_topic(name)]
        there = f"images are on {', '.join(topics)}" if topics else "no node publishes images on any topic"
        return f"{there}; start the camera driver, or name its topic: --image TOPIC here, image:=TOPIC at the launch"

    def _qos_finding(self, publisher: Any, qos: QoSProfile) -> Finding:
        name = f"QoS of {self._topic}"
        verdict, reason = qos_check_compatible(publisher.qos_profile, qos)
        offered = f"{publisher.node_name} offers {publisher.qos_profile.reliability.name.lower()}"
        asked = f"the segmenter asks for {qos.reliability.name.lower()}"
        if verdict == QoSCompatibility.ERROR:
            mend = "set node.reliability to best_effort, or let the camera driver publish reliably"
            reason = reason.removeprefix("ERROR: ").strip(" ;")
            return Finding(name, WRONG, f"{offered}, {asked}: no image will come ({reason})", mend)
        return Finding(name, OK, f"{offered}, {asked}")

    def _watch(self, qos: QoSProfile) -> Iterator[Finding]:
        """Counts images for a while, and converts the first one."""
        name = f"images of {self._topic}"
        stamps: list[int] = []

        def take(message: Any) -> None:
            self._message = self._message or message
            stamps.append(stamp_ns(message.header.stamp))

        # The node keeps fewer; here all are counted.
        counted = QoSProfile(depth=100, reliability=qos.reliability)
        times = _spin(self._node, self._kind, self._topic, counted, take, self._watch_s)
        if not stamps:
            mend = f"is the camera on, by its driver's own log? If it is, {_LOSSES}"
            yield Finding(name, WRONG, f"none came in {self._watch_s:g} s", mend)
            return
        yield self._rate(name, stamps, times)
        yield self._encoding()

    def _rate(self, name: str, stamps: list[int], times: list[float]) -> Finding:
        several = len(times) > 1
        rate = (len(times) - 1) / (times[-1] - times[0]) if several else 1 / self._watch_s
        text = f"{len(times)} in {self._watch_s:g} s, {rate:.1f} Hz"
        steps = np.diff(stamps)
        if not stamps[0] or several and not (steps > 0).any():
            mend = "the driver must set header.stamp; until then the segmenter uses the time of arrival"
            return Finding(name, WRONG, f"{text}, but their stamps do not move", mend)
        period_s = self._config.window.keyframe_period_s
        if rate * period_s < 1:
            mend = f"raise the camera's rate or window.keyframe_period_s; if the camera is faster, {_LOSSES}"
            return Finding(name, WRONG, f"{text}: fewer than key frames, one each {period_s:g} s", mend)
        return Finding(name, OK, text)

    def _encoding(self) -> Finding:
        name = f"encoding of {self._topic}"
        try:
            pixels = message_to_rgb(self._message, max_mpx=self._config.node.max_image_mpx)
        except ValueError as error:
            mend = "publish a colour, mono or Bayer picture; image_proc and image_transport convert"
            return Finding(name, WRONG, str(error), mend)
        height, width = pixels.shape[:2]
        encoding = source_encoding(self._message) or self._message.format
        return Finding(name, OK, f"{encoding}, {width} x {height} px")

    def _info(self) -> Iterator[Finding]:
        """camera_info beside the images."""
        base = self._topic.removesuffix(_COMPRESSED)
        topic = f"{base.rpartition('/')[0]}/camera_info"
        if not self._node.get_publishers_info_by_topic(topic):
            yield Finding(topic, NOT_CHECKED, "nobody publishes it; masks do not need it, positions in space do")
            return
        infos: list[CameraInfo] = []
        _spin(self._node, CameraInfo, topic, qos_profile_sensor_data, infos.append, self._watch_s, enough=1)
        if not infos:
            yield Finding(topic, WRONG, f"none came in {self._watch_s:g} s", "let the camera driver publish it")
            return
        info, errors = infos[0], []
        if not (info.k[0] > 0 and info.k[4] > 0):
            errors.append("no focal length (the camera is not calibrated)")
        if isinstance(self._message, Image) and (info.height, info.width) != (
            self._message.height,
            self._message.width,
        ):
            errors.append(
                f"for {info.width} x {info.height} px, images have {self._message.width} x {self._message.height} px"
            )
        if info.header.frame_id != self.frame:
            errors.append(f"frame {info.header.frame_id!r}, images have {self.frame!r}")
        if errors:
            yield Finding(topic, WRONG, "; ".join(errors), "calibrate the camera, and let one driver publish both")
        else:
            model = info.distortion_model or "no distortion model"
            yield Finding(topic, OK, f"{info.width} x {info.height} px, {model}, frame {info.header.frame_id}")


def check_frames(node: Node, frame: str, target: str, watch_s: float) -> Iterator[Finding]:
    """The transform from the images' frame. target: empty to check the frame's name alone."""
    name = "frames"
    if not frame:
        mend = "the driver must set header.frame_id"
        yield Finding(name, WRONG, "images have no frame_id: nobody can say where the camera is", mend)
        return
    if not target:
        yield Finding(name, OK, f"images have the frame {frame}")
        return
    try:
        import tf2_ros
    except ModuleNotFoundError:
        yield Finding(name, NOT_CHECKED, f"{frame} to {target}: tf2_ros is not installed")
        return
    buffer = tf2_ros.Buffer()
    listener = tf2_ros.TransformListener(buffer, node)
    until = time.monotonic() + watch_s
    while not (known := buffer.can_transform(target, frame, rclpy.time.Time())) and time.monotonic() < until:
        rclpy.spin_once(node, timeout_sec=0.1)
    del listener
    if known:
        yield Finding(name, OK, f"{frame} to {target} is known")
    else:
        mend = "start robot_state_publisher or a static_transform_publisher, or name another frame"
        yield Finding(name, WRONG, f"no transform from {frame} to {target} in {watch_s:g} s", mend)


def _spin(
    node: Node, kind: Any, topic: str, qos: QoSProfile, take: Callable[[Any], None], limit_s: float, enough: int = 0
) -> list[float]:
    """Receives messages for a time, or until there are enough. Returns the monotonic times at which they came."""
    times: list[float] = []

    def receive(message: Any) -> None:
        times.append(time.monotonic())
        take(message)

    subscription = node.create_subscription(kind, topic, receive, qos)
    until = time.monotonic() + limit_s
    while time.monotonic() < until and not 0 < enough <= len(times):
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_subscription(subscription)
    return times


def check_robot(config: DecafConfig, topics: list[str], target: str, watch_s: float) -> Iterator[Finding]:
    """Every camera, with a node that exists for this check only."""
    rclpy.init()
    node = rclpy.create_node("decaf_doctor")
    try:
        for topic in topics:
            camera = Camera(node, topic, config, watch_s)
            yield from camera.check()
            if camera.has_image:
                yield from check_frames(node, camera.frame, target, watch_s)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def main() -> None:
    request = json.loads(sys.argv[1])
    config = replace(DecafConfig(), request["options"])
    serve([("messages", check_messages), ("cv_bridge", lambda: check_cv_bridge(config))], NUMPY_MEND)
    topics, target, watch_s = request["topics"], request["target"], request["watch_s"]
    serve([("RMW", check_middleware), ("images", lambda: check_robot(config, topics, target, watch_s))])


if __name__ == "__main__":
    main()
