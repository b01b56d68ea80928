"""The doctor's look at what targets in space need: depth images, camera info, and transforms of tf2."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo

from decaf_ros.config import DecafConfig
from decaf_ros.doctor.findings import NOT_CHECKED, OK, WRONG, Finding
from decaf_ros.nodes.doctor_topics import Topic, newest
from decaf_ros.space.camera import camera_from_info
from decaf_ros.space.depth import message_depth

_TF2 = "sudo apt install ros-$ROS_DISTRO-tf2-ros-py, or for another Python the package tf2_ros of its ROS"
_REGISTERED = "use the topic that the driver registers to the colour image (realsense2_camera: align_depth.enable)"


def check_info(
    node: Node, topic: str, image: Any, size_hw: tuple[int, int] | None, config: DecafConfig, watch_s: float
) -> Iterator[Finding]:
    """The camera info of an image topic.

    Args:
        node: a node without other subscriptions.
        topic: of the camera info.
        image: a message of the image topic.
        size_hw: of its image; None if it cannot be decoded.
        config: the segmenter's configuration; it needs the camera info if `space.enabled`.
        watch_s: how long to wait for it, in seconds.
    """
    is_needed = config.space.enabled
    named = "--camera-info TOPIC here, camera_info:=TOPIC at the launch"
    mend = f"let the camera driver publish it, or name its topic: {named}"
    if not node.get_publishers_info_by_topic(topic):
        if is_needed:
            yield Finding(topic, WRONG, "nobody publishes it; positions in space need it (space.enabled)", mend)
        else:
            yield Finding(topic, NOT_CHECKED, "nobody publishes it; masks do not need it, positions in space do")
        return
    info = newest(node, CameraInfo, topic, watch_s)
    if info is None:
        yield Finding(topic, WRONG, f"none came in {watch_s:g} s", mend)
        return
    errors, is_rectified = [], config.space.rectified
    if not all(length > 0 for length in ((info.p[0], info.p[5]) if is_rectified else (info.k[0], info.k[4]))):
        errors.append("no focal length (the camera is not calibrated)")
    else:
        try:
            # As the segmenter: K and D, or P, and the size after region and binning.
            camera = camera_from_info(info, is_rectified)
        except ValueError as error:
            if not is_needed:
                yield Finding(topic, NOT_CHECKED, f"{error}; masks do not need it, positions in space do")
                return
            errors.append(str(error))
        else:
            if size_hw is not None and camera.size_hw != size_hw:
                errors.append(f"for {camera.width} x {camera.height} px, images have {size_hw[1]} x {size_hw[0]} px")
    if info.header.frame_id != image.header.frame_id:
        errors.append(f"frame {info.header.frame_id!r}, images have {image.header.frame_id!r}")
    if errors:
        yield Finding(topic, WRONG, "; ".join(errors), "calibrate the camera, and let one driver publish both")
    else:
        model = "rectified" if is_rectified else info.distortion_model or "no distortion model"
        yield Finding(topic, OK, f"{camera.width} x {camera.height} px, {model}, frame {info.header.frame_id}")


def check_depth(
    node: Node,
    depth: Topic,
    image: Topic,
    size_hw: tuple[int, int],
    info_topic: str,
    config: DecafConfig,
    watch_s: float,
) -> Iterator[Finding]:
    """Depth images that came together with images: rate, encoding, size and frame, stamps.

    Args:
        node: a node without other subscriptions.
        depth: after `listen`.
        image: the images that came at the same time.
        size_hw: of an image.
        info_topic: of the camera info of depth that is not registered.
        config: the segmenter's configuration.
        watch_s: how long was listened, in seconds.
    """
    rate = depth.rate(watch_s)
    yield rate
    if depth.message is None:
        return
    name = f"encoding of {depth.name}"
    try:
        metres = message_depth(depth.message, config.node.max_image_mpx)
    except ValueError as error:
        mend = "publish 16UC1 (millimetres) or 32FC1 (metres), raw or as compressedDepth with PNG or RVL"
        yield Finding(name, WRONG, str(error), mend)
        return
    height, width = metres.shape
    space = config.space
    with np.errstate(invalid="ignore"):
        share = float(np.mean((metres >= space.min_m) & (metres <= space.max_m)))
    encoding = getattr(depth.message, "encoding", "") or depth.message.format
    text = f"{encoding}, {width} x {height} px, {share:.0%} between {space.min_m:g} and {space.max_m:g} m"
    if share:
        yield Finding(name, OK, text)
    else:
        yield Finding(
            name, WRONG, text, "is the unit right (16UC1: mm, 32FC1: m)? Else set space.min_m and space.max_m"
        )
    yield _registration(node, depth, metres.shape, image, size_hw, info_topic, config, watch_s)
    if rate.state == OK and image.stamps_ns:
        yield _pairs(depth, image, space.sync_slop_s)


def _registration(
    node: Node,
    depth: Topic,
    depth_hw: tuple[int, ...],
    image: Topic,
    size_hw: tuple[int, int],
    info_topic: str,
    config: DecafConfig,
    watch_s: float,
) -> Finding:
    """Whether depth has the pixels of the image, or can be registered."""
    name = f"registration of {depth.name}"
    is_same_frame = depth.frame.lstrip("/") == image.frame.lstrip("/")
    if depth_hw == size_hw and is_same_frame:
        return Finding(name, OK, "size and frame of the images")
    differs = (
        f"{depth_hw[1]} x {depth_hw[0]} px in {depth.frame!r}, images {size_hw[1]} x {size_hw[0]} px in {image.frame!r}"
    )
    if newest(node, CameraInfo, info_topic, watch_s) is None:
        mend = f"{_REGISTERED}, or publish its camera info on {info_topic} (depth_camera_info:=TOPIC at the launch)"
        return Finding(name, WRONG, f"{differs}, and no camera info on {info_topic}", mend)
    if is_same_frame:
        return Finding(name, OK, f"{differs}; registered by {info_topic}")
    transform = transform_finding(node, image.frame, depth.frame, watch_s)
    if transform.state == OK:
        return Finding(name, OK, f"{differs}; registered by {info_topic} and tf2")
    mend = f"{_REGISTERED}, or: {transform.mend}"
    return Finding(name, WRONG, f"{differs}; {transform.text}", mend)


def _pairs(depth: Topic, image: Topic, slop_s: float) -> Finding:
    """Whether images have depth of their time; those before the first depth and after the last one do not count."""
    name = f"stamps of {depth.name}"
    stamps, depths = np.array(image.stamps_ns), np.array(depth.stamps_ns)
    within = (stamps >= depths.min()) & (stamps <= depths.max())
    stamps = stamps[within] if within.any() else stamps
    distances = np.abs(stamps[:, None] - depths[None]).min(axis=1)
    share, middle_s = float(np.mean(distances <= slop_s * 1e9)), float(np.median(distances)) / 1e9
    text = (
        f"{share:.0%} of the images have depth within {slop_s:g} s (space.sync_slop_s), the median is {middle_s:.3f} s"
    )
    if share >= 0.5:
        return Finding(name, OK, text)
    mend = "let one driver publish both with the same stamps, raise the rate of depth, or raise space.sync_slop_s"
    return Finding(name, WRONG, text, mend)


def check_frames(node: Node, frame: str, target: str, is_needed: bool, watch_s: float) -> Iterator[Finding]:
    """The transform from the images' frame.

    Args:
        node: a node without other subscriptions.
        frame: of the images.
        target: the frame that is asked for; empty to check the frame's name alone.
        is_needed: whether the segmenter needs the transform.
        watch_s: how long to wait for it, in seconds.
    """
    name = "frames"
    if not frame:
        mend = "the driver must set header.frame_id"
        yield Finding(name, WRONG, "images have no frame_id: nobody can say where the camera is", mend)
        return
    if not target:
        yield Finding(name, OK, f"images have the frame {frame}")
        return
    finding = transform_finding(node, target, frame, watch_s)
    if finding.state == NOT_CHECKED and is_needed:
        text = f"{finding.text}: the segmenter refuses space.target_frame"
        finding = Finding(name, WRONG, text, f"{_TF2}, or leave space.target_frame empty")
    yield finding


def transform_finding(node: Node, target: str, frame: str, watch_s: float) -> Finding:
    """Whether tf2 knows a transform from one frame to another. NOT_CHECKED without tf2."""
    name = "frames"
    try:
        import tf2_ros
    except ModuleNotFoundError:
        return Finding(name, NOT_CHECKED, f"{frame} to {target}: tf2_ros is not installed", _TF2)
    buffer = tf2_ros.Buffer()
    listener = tf2_ros.TransformListener(buffer, node)
    until = time.monotonic() + watch_s
    target, frame = target.lstrip("/"), frame.lstrip("/")
    while True:
        known, reason = buffer.can_transform(target, frame, Time(), return_debug_tuple=True)
        if known or time.monotonic() > until:
            break
        rclpy.spin_once(node, timeout_sec=0.1)
    listener.unregister()
    if known:
        return Finding(name, OK, f"{frame} to {target} is known")
    mend = "start robot_state_publisher or a static_transform_publisher, or name another frame"
    return Finding(name, WRONG, f"no transform from {frame} to {target} in {watch_s:g} s: {reason}".rstrip(": "), mend)
