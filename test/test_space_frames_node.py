"""Two cameras with depth in one real node process, and transforms from a stand-in of tf2_ros."""
# ruff: noqa: E402

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

from depth_robot import FRAME, DepthRobot
from generated_messages import vision_messages
from geometry_msgs.msg import TransformStamped
from node_process import SegmenterProcess, small_parameters, unused_domain, wait_for

from decaf_ros.io.messages import stamp_ns
from decaf_ros.msg import QueryStatus
from decaf_tabletop.world.simulator import make_clip

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = [pytest.mark.ros, pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed")]

STAND_IN = Path(__file__).parent / "tf2_stand_in"


@pytest.fixture(scope="module")
def running(tiny_mllm_dir, tiny_sam2_dir, tmp_path_factory):
    """A segmenter with two cameras, and a client of each."""
    parameters = small_parameters(tiny_mllm_dir, tiny_sam2_dir) | {
        "cameras": ["wrist", "head"],
        "space": {"enabled": True, "depth_wait_s": 0.5, "target_frame": "base", "tf_timeout_s": 0.3},
    }
    clip = make_clip(990001, depth=True)
    with vision_messages(), unused_domain() as domain_id, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")]))
        process = SegmenterProcess(domain_id, tmp_path_factory.mktemp("segmenter"), parameters)
        robots = DepthRobot(domain_id, clip, "wrist"), DepthRobot(domain_id, clip, "head")
        for robot in robots:
            robot.wait_until_listened_to()
        yield process, *robots
        print(process.log)
        for robot in robots:
            robot.close()
        assert process.stop() == 0 and "Traceback" not in process.log


def _send_transform(robot: DepthRobot, target: str, source: str, z: float) -> None:
    publisher = robot.node.create_publisher(TransformStamped, "tf_stand_in", 10)
    wait_for(publisher.get_subscription_count, "a subscription of the stand-in")
    message = TransformStamped(child_frame_id=source)
    message.header.frame_id = target
    message.transform.translation.z, message.transform.rotation.w = z, 1.0
    publisher.publish(message)
    publisher.wait_for_all_acked()
    robot.node.destroy_publisher(publisher)


def _frames(robot: DepthRobot) -> list[str]:
    return [message.header.frame_id for message in robot.received["detections_3d"]]


def test_outputs_are_in_the_camera_frame_until_the_transform_is_there(running):
    _, wrist, _ = running
    # The first frames may come before the node has seen the subscriptions to its outputs.
    wrist.show_until(lambda: len(_frames(wrist)) >= 2, "outputs after the time-out")
    assert set(_frames(wrist)) == {FRAME}
    expected = f"space.target_frame: no transform from '{FRAME}' to 'base': \"base\" passed to lookupTransform does not"
    wait_for(lambda: expected in wrist.diagnosed()["message"], "the missing transform in the diagnostics")
    _send_transform(wrist, "base", FRAME, 2.0)
    query = wrist.ask("the red square")
    wrist.show_until(lambda: QueryStatus.TRACKING in wrist.states(query), "tracking")
    wrist.show_until(lambda: wrist.received["detections_3d"][-1].detections, "a target with a position")
    wait_for(lambda: wrist.stamps("detections_3d") == wrist.stamps("masks"), "3D outputs of every frame")
    assert _frames(wrist)[-1] == "base"
    found = [message for message in wrist.received["detections_3d"] if message.detections][-1]
    stamp = stamp_ns(found.header.stamp)
    wait_for(lambda: stamp in wrist.stamps("tracklets"), "tracklets of the frame")
    tracklets = wrist.received["tracklets"][wrist.stamps("tracklets").index(stamp)]
    places = {str(one.id): one.position.z for one in tracklets.tracklets}
    for detection in found.detections:
        assert detection.results[0].pose.pose.position.z == pytest.approx(places[detection.id] + 2.0)
    assert {message.header.frame_id for message in wrist.received["depth_masked"]} == {FRAME}


def test_each_camera_has_its_own_depth(running):
    _, wrist, head = running
    shown = head.show(4)
    wait_for(lambda: head.stamps("detections_3d") == head.stamps("masks") and head.received["masks"], "3D outputs")
    assert set(head.stamps("masks")) <= set(shown) and not set(wrist.stamps("detections_3d")) & set(shown)
    wait_for(lambda: int(head.diagnosed()["frames with 3D"]) == len(head.received["masks"]), "the count of the camera")


def test_depth_of_another_frame_is_registered_by_the_transform(running):
    _, _, head = running

    def depth(index: int, stamp_ns: int):
        return head.depth(index, stamp_ns, "depth_optical")

    before = len(_frames(head))
    head.show(1, depth=depth)
    wait_for(lambda: int(head.diagnosed()["frames without 3D"]) == 1, "a frame without 3D")
    assert "got 320 x 240 in 'depth_optical'" in head.diagnosed()["message"]
    head.show_depth_info("depth_optical")
    _send_transform(head, FRAME, "depth_optical", 0.0)
    head.show(3, depth=depth)
    wait_for(lambda: len(_frames(head)) > before, "3D outputs of registered depth")
