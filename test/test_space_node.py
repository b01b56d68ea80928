"""Depth through the real node process over real DDS: 3D outputs with the stamps of the frames, and bad inputs."""
# ruff: noqa: E402

from __future__ import annotations

import dataclasses
import os
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from depth_robot import FRAME, DepthRobot
from generated_messages import vision_messages
from node_process import ROOT, SegmenterProcess, small_parameters, unused_domain, wait_for
from sensor_msgs.msg import CompressedImage, Image

from decaf_ros.config.space import SpaceConfig
from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus
from decaf_ros.space.camera import camera_from_info
from decaf_ros.space.objects import TargetMeasurer
from decaf_tabletop.world.simulator import make_clip

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = [pytest.mark.ros, pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed")]

WARN, ERROR = "1", "2"


@pytest.fixture(scope="module")
def clip():
    return make_clip(990001, depth=True)


@pytest.fixture(scope="module")
def vision():
    with vision_messages():
        yield


@pytest.fixture(scope="module")
def parameters() -> dict:
    """The table's models: the masks of random ones seldom have enough depth for a position."""
    models = ROOT / "decaf_tabletop" / "models"
    space = {"enabled": True, "sync_slop_s": 0.5, "depth_wait_s": 0.5}
    return small_parameters(models / "tabletop_mllm", models / "tabletop_sam2") | {"space": space}


@pytest.fixture(scope="module")
def running(parameters, clip, vision, tmp_path_factory):
    with unused_domain() as domain_id:
        process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters)
        robot = DepthRobot(domain_id, clip)
        robot.wait_until_listened_to()
        yield process, robot, domain_id
        print(process.log)
        robot.close()
        assert process.stop() == 0 and "Traceback" not in process.log


@pytest.fixture
def robot(running) -> DepthRobot:
    """The robot, with a freshly configured node."""
    _, robot, _ = running
    for name in ("deactivate", "cleanup", "configure"):
        assert robot.change_state(name)
    for messages in robot.received.values():
        messages.clear()
    assert robot.change_state("activate")
    robot.wait_until_listened_to()
    wait_for(lambda: robot.received["/diagnostics"] and "frames with 3D" in robot.diagnosed(), "diagnostics")
    return robot


def _track(robot: DepthRobot, **options) -> None:
    query_id = robot.ask("the red square")
    robot.show_until(lambda: QueryStatus.TRACKING in robot.states(query_id), "tracking", **options)


def _placed(robot: DepthRobot) -> list[int]:
    """Stamps of frames with a whole target that has a position."""
    masks = dict(zip(robot.stamps("masks"), robot.received["masks"]))
    return [
        stamp
        for stamp, message in zip(robot.stamps("tracklets"), robot.received["tracklets"])
        if stamp in masks and any(_is_whole(one, masks[stamp]) and one.size.x > 0 for one in message.tracklets)
    ]


def _is_whole(tracklet, masks: Image) -> bool:
    """Whether no other target covers it in the label image."""
    return 0 < tracklet.area == np.count_nonzero(np.frombuffer(masks.data, np.uint8) == tracklet.label)


def _at(robot: DepthRobot, topic: str, stamp: int):
    """The message with the stamp, which may still be on its way."""
    wait_for(lambda: stamp in robot.stamps(topic), topic)
    return robot.received[topic][robot.stamps(topic).index(stamp)]


def test_every_used_frame_has_its_3d_outputs_with_the_exact_stamp(robot, clip):
    _track(robot)
    robot.show(10)
    topics = ("detections_3d", "points", "depth_masked", "depth_masked/camera_info", "detections")
    for topic in topics:
        wait_for(lambda topic=topic: robot.stamps(topic) == robot.stamps("masks"), topic)
        assert {message.header.frame_id for message in robot.received[topic]} == {FRAME}
    wait_for(lambda: robot.frames("frames with 3D") == len(robot.received["masks"]), "the count")
    assert robot.frames("frames without 3D") == 0


def test_the_numbers_are_those_of_the_published_masks(robot, clip):
    _track(robot)
    robot.show_until(lambda: _placed(robot), "a target with a position")
    stamp = _placed(robot)[-1]
    tracklets, masks, found, cloud = (
        _at(robot, topic, stamp) for topic in ("tracklets", "masks", "detections_3d", "points")
    )
    labels = np.frombuffer(masks.data, np.uint8).reshape(masks.height, masks.width)
    whole = [one for one in tracklets.tracklets if _is_whole(one, masks)]
    index = robot.shown_index[stamp]
    camera = camera_from_info(robot.info(0))
    depth_m = np.nan_to_num(clip.depth_m[index] * 1000).astype(np.uint16).astype(np.float32) * np.float32(0.001)
    geometry = TargetMeasurer(SpaceConfig()).measure({one.id: labels == one.label for one in whole}, depth_m, camera)
    placed = [one for one in whole if geometry[one.id].position is not None]
    assert placed
    points = np.frombuffer(cloud.data, np.float32).reshape(-1, 5)
    for one in placed:
        position = [one.position.x, one.position.y, one.position.z]
        assert np.allclose(position, geometry[one.id].position, atol=1e-6)
        (detection,) = [each for each in found.detections if each.id == str(one.id)]
        pose = detection.results[0].pose.pose.position
        assert [pose.x, pose.y, pose.z] == position
        assert detection.bbox.size == one.size
        own = points[points.view(np.uint32)[:, 4] == one.label]
        assert np.allclose(own[:, :3].mean(axis=0), position, atol=1e-4)
    masked = np.frombuffer(_at(robot, "depth_masked", stamp).data, np.float32).reshape(labels.shape)
    assert np.array_equal(np.isfinite(masked), (labels > 0) & (depth_m > 0))
    best = max((one for one in tracklets.tracklets if one.size.x > 0), key=lambda one: one.combined)
    pose = _at(robot, "target_pose", stamp).pose
    assert [pose.position.x, pose.position.y, pose.position.z] == [best.position.x, best.position.y, best.position.z]
    assert np.isclose(
        np.linalg.norm([pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w]), 1
    )


def test_detections_and_label_info_tell_the_targets(robot):
    _track(robot)
    stamp = robot.show(3)[-1]  # the newest image is never dropped
    tracklets, found = _at(robot, "tracklets", stamp).tracklets, _at(robot, "detections", stamp).detections
    visible = [one for one in tracklets if one.area]
    assert [one.id for one in found] == [str(one.id) for one in visible]
    for one, detection in zip(visible, found):
        assert detection.results[0].hypothesis.class_id == "the red square"
        assert detection.results[0].hypothesis.score == pytest.approx(one.combined)
        assert (detection.bbox.size_x, detection.bbox.size_y) == (one.box.width, one.box.height)
    expected = {one.label: "the red square" for one in tracklets}

    def names() -> dict[int, str]:
        return {one.class_id: one.class_name for one in robot.received["label_info"][-1].class_map}

    wait_for(lambda: names() == expected, "the names of the labels")
    assert not robot.received["label_info"][0].class_map


def test_late_depth_gives_3d_outputs(robot):
    shown = robot.show(5, hz=5, late_s=0.1)
    wait_for(lambda: robot.stamps("detections_3d") == shown, "3D outputs with late depth")
    assert robot.frames("frames without 3D") == 0


def test_the_nearest_depth_within_the_slop_is_used(robot):
    (shown,) = robot.show(1, shift_s=0.1)
    wait_for(lambda: robot.stamps("detections_3d") == [shown], "3D outputs with the nearest depth")


def test_no_depth_beyond_the_slop_is_used(robot):
    robot.show(1, shift_s=-0.9)
    wait_for(lambda: robot.frames("frames without 3D") == 1, "a frame without depth")
    assert robot.diagnosed()["level"] == WARN and "got one 0.900 s away" in robot.diagnosed()["message"]
    assert not robot.received["detections_3d"]


def _other_size(message: Image) -> Image:
    message.height //= 2
    message.data = message.data[: len(message.data) // 2]
    return message


BAD = {
    "no depth": (lambda robot: {"depth": False}, "within 0.5 s of the frame (space.sync_slop_s), got none"),
    "no camera info": (lambda robot: {"info": False}, "camera info: expected a message, got none yet"),
    "not calibrated": (
        lambda robot: {"info": lambda stamp_ns: robot.info(stamp_ns, k=[0.0] * 9)},
        "expected a calibrated camera, got K of zeros",
    ),
    "unknown encoding": (
        lambda robot: {"depth": lambda index, stamp_ns: _encoded(robot.depth(index, stamp_ns), "mono16")},
        "expected one of the encodings 16UC1, 32FC1, got 'mono16'",
    ),
    "wrong size": (
        lambda robot: {"depth": lambda index, stamp_ns: _other_size(robot.depth(index, stamp_ns))},
        "got 320 x 120 in 'camera_optical'",
    ),
    "another frame": (
        lambda robot: {"depth": lambda index, stamp_ns: robot.depth(index, stamp_ns, "depth_optical")},
        "got 320 x 240 in 'depth_optical'",
    ),
}


def _encoded(message: Image, encoding: str) -> Image:
    message.encoding = encoding
    return message


@pytest.mark.parametrize("options, text", BAD.values(), ids=BAD)
def test_a_bad_input_is_named_and_the_node_goes_on(running, robot, options, text):
    robot.show(4, hz=10, **options(robot))
    wait_for(lambda: robot.frames("frames without 3D") == len(robot.received["masks"]) > 0, "frames without 3D")
    assert robot.diagnosed()["level"] == WARN and text in robot.diagnosed()["message"]
    assert not robot.received["detections_3d"]
    assert len(robot.received["tracklets"]) == len(robot.received["masks"])
    robot.show(3, hz=10)
    wait_for(lambda: robot.received["detections_3d"], "3D outputs with good inputs")


def test_compressed_depth(running, robot):
    for name in ("deactivate", "cleanup"):
        assert robot.change_state(name)
    try:
        assert robot.set_parameter("space.depth_transport", "compressed")[0]
        assert robot.change_state("configure") and robot.change_state("activate")
        publisher = robot.node.create_publisher(CompressedImage, "depth/compressedDepth", 10)
        wait_for(publisher.get_subscription_count, "a subscription")

        def publish(index: int, stamp_ns: int) -> Image:
            raw = robot.depth(index, stamp_ns)
            values = np.frombuffer(raw.data, np.uint16).reshape(raw.height, raw.width)
            message = CompressedImage(header=raw.header, format="16UC1; compressedDepth png")
            message.data = bytes(12) + cv2.imencode(".png", values)[1].tobytes()
            publisher.publish(message)
            return raw

        shown = robot.show(4, hz=10, depth=publish)
        wait_for(lambda: set(robot.stamps("detections_3d")) >= set(shown[1:]), "3D outputs")
    finally:
        robot.change_state("deactivate"), robot.change_state("cleanup")
        robot.set_parameter("space.depth_transport", "raw")
        robot.change_state("configure"), robot.change_state("activate")


def test_the_action_has_places_although_nobody_subscribes(running, robot):
    outputs = [each for each in robot.node.subscriptions if each.topic_name.startswith("/decaf/")]
    outputs = [each for each in outputs if each.topic_name not in ("/decaf/status", "/decaf/label_info")]
    heard = [(each.msg_type, each.topic_name, each.callback, each.qos_profile) for each in outputs]
    for subscription in outputs:
        robot.node.destroy_subscription(subscription)
    try:
        robot.show(4)
        for _ in range(5):  # a target of these models may have too few points
            goal = robot.send_goal("the red square")
            robot.show_until(lambda goal=goal: goal.done, "a result")
            if any(one.size.x > 0 for one in goal.result()[1].tracklets.tracklets):
                break
        else:
            pytest.fail("no result has a place")
    finally:
        for arguments in heard:
            robot.node.create_subscription(*arguments)


def test_topics_of_packages_that_are_missing_are_left_out(running, parameters, tmp_path):
    """A node of its own: without vision_msgs, which the other one has."""
    _, robot, domain_id = running
    if os.environ.get("ROS_DISTRO"):
        pytest.skip("the distribution may have vision_msgs")
    with pytest.MonkeyPatch.context() as patch:
        paths = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if "vision_msgs_" not in path]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        process = SegmenterProcess(domain_id, tmp_path, parameters, namespace="/other")
    try:
        text = "detections, detections_3d, label_info: vision_msgs is not installed"
        if find_spec("visualization_msgs") is None:
            text += "; markers: visualization_msgs is not installed"
        wait_for(lambda: f"topics that are left out: {text}" in process.log, "a line in the log")

        def left_out() -> str:
            found = [one for one in robot.received["/diagnostics"] if one.status[0].hardware_id == "/other/segmenter"]
            return {value.key: value.value for value in found[-1].status[0].values}["topics left out"] if found else ""

        assert wait_for(left_out, "the topics in the diagnostics") == text
        wait_for(lambda: robot.node.get_publishers_info_by_topic("/other/points"), "the other topics")
        assert not robot.node.get_publishers_info_by_topic("/other/detections_3d")
    finally:
        assert process.stop() == 0


def test_markers_show_the_boxes(running, robot):
    pytest.importorskip("visualization_msgs")
    _track(robot)
    robot.show_until(lambda: _placed(robot), "a target with a position")
    stamp = _placed(robot)[-1]
    wait_for(lambda: len(robot.received["markers"]) == len(robot.received["masks"]), "markers of every frame")
    every = [one.markers for one in robot.received["markers"]]
    (found,) = [markers for markers in every if stamp_ns(markers[0].header.stamp) == stamp]
    detections = _at(robot, "detections_3d", stamp).detections
    boxes = [marker for marker in found[1:] if marker.ns == "targets"]
    assert [(str(box.id), box.scale) for box in boxes] == [(one.id, one.bbox.size) for one in detections]
    assert [box.pose for box in boxes] == [one.bbox.center for one in detections]


def test_a_target_frame_without_tf2_is_refused_with_the_reason(running, robot):
    if find_spec("tf2_ros") is not None:
        pytest.skip("tf2_ros is installed")
    for name in ("deactivate", "cleanup"):
        assert robot.change_state(name)
    try:
        assert robot.set_parameter("space.target_frame", "base")[0]
        assert not robot.change_state("configure")
        wait_for(lambda: robot.diagnosed()["level"] == ERROR, "an error in the diagnostics")
        expected = "space.target_frame: expected tf2_ros, for transforms to 'base', got No module named 'tf2_ros'"
        assert expected in robot.diagnosed()["message"]
    finally:
        robot.set_parameter("space.target_frame", "")
        assert robot.change_state("configure") and robot.change_state("activate")


@pytest.mark.slow
def test_a_minute_at_30_hz_in_640x480(parameters, clip, vision, tmp_path):
    """Every frame that the node uses has its 3D outputs with its exact stamp."""
    larger = dataclasses.replace(
        clip,
        images=np.stack([cv2.resize(image, (640, 480)) for image in clip.images]),
        depth_m=np.stack([cv2.resize(depth, (640, 480), interpolation=cv2.INTER_NEAREST) for depth in clip.depth_m]),
        intrinsics=clip.intrinsics * [[2], [2], [1]],
    )
    with unused_domain() as domain_id:
        process = SegmenterProcess(domain_id, tmp_path, parameters | {"space": {"enabled": True}})
        robot = DepthRobot(domain_id, larger)
        try:
            robot.wait_until_listened_to()
            robot.show(10, hz=10)
            robot.ask("the red square")
            shown = robot.show(1800, hz=30)
            wait_for(lambda: robot.stamps("masks")[-1] == shown[-1] == robot.stamps("points")[-1], "the last frame")
            used = robot.stamps("masks")
            missing = set(used) - set(robot.stamps("detections_3d"))
            values = robot.diagnosed()
            counts = ", ".join(f"{key}: {values[key]}" for key in values if key.startswith("frames "))
            print(
                f"{len(used)} used, {len(missing)} without 3D; {counts}; publishing {values['publishing (ms a frame)']}"
            )
            assert len(used) > 300 and not missing
        finally:
            robot.close()
            print(process.log[-2000:])
            assert process.stop() == 0
