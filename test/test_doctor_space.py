"""`decaf doctor` and targets in space: depth, camera info and transforms, with a real camera node."""

from __future__ import annotations

import array
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")
pytest.importorskip("domain_coordinator")

import rclpy  # noqa: E402
from camera_driver import DEPTH, INFO, SIZE_HW, TOPIC  # noqa: E402
from doctor_runs import TABLETOP, named, wrong  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from node_process import unused_domain  # noqa: E402
from rclpy.context import Context  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest  # noqa: E402
from test_doctor_ros import calibrated, driver  # noqa: E402

from decaf_ros.cli.main import _parser  # noqa: E402
from decaf_ros.config import DecafConfig, replace  # noqa: E402
from decaf_ros.doctor.ros import camera_topics  # noqa: E402
from decaf_ros.nodes import doctor_space, doctor_topics  # noqa: E402
from decaf_ros.nodes.doctor import check_robot  # noqa: E402
from decaf_ros.nodes.doctor_space import check_frames  # noqa: E402

pytestmark = pytest.mark.ros

FRAME = "camera_optical"


def depth_image(millimetres: int = 1000, size_hw: tuple[int, int] = SIZE_HW, frame: str = FRAME, **changes) -> Image:
    height, width = size_hw
    message = Image(height=height, width=width, encoding="16UC1", step=2 * width)
    message.data = array.array("B", np.full(size_hw, millimetres, np.uint16).tobytes())
    message.header.frame_id = frame
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def examined(env, images: list[str], depths: list[str]):
    """The part of the cameras, in this process."""
    config = replace(DecafConfig(), {"space.enabled": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", env["ROS_DOMAIN_ID"])
        patch.setattr(doctor_topics, "_DISCOVERY_S", 1.0)
        return list(check_robot(config, camera_topics(config, "decaf", images, depths), "", 0.5))


DEPTHS = {
    DEPTH: depth_image(),
    "/camera/mono": depth_image(encoding="mono16"),
    "/camera/near": depth_image(millimetres=1),
    "/camera/small": depth_image(size_hw=(24, 32)),
    "/camera/other": depth_image(frame="depth_optical"),
}
WRONG = {
    "/camera/nowhere": ("nobody publishes images here", "name its topic: --depth TOPIC here, depth:=TOPIC at the laun"),
    "encoding of /camera/mono": (
        "depth: expected one of the encodings 16UC1, 32FC1, got 'mono16'",
        "publish 16UC1 (millime",
    ),
    "encoding of /camera/near": ("16UC1, 64 x 48 px, 0% between 0.1 and 10 m", "is the unit right (16UC1: mm"),
    "registration of /camera/small": (
        "32 x 24 px in 'camera_optical', images 64 x 48 px in 'camera_optical', and no camera info on /decaf/depth",
        "use the topic that the driver registers",
    ),
    "registration of /camera/other": (
        "64 x 48 px in 'depth_optical', images 64",
        "(depth_camera_info:=TOPIC at the lau",
    ),
    "/camera/image_raw/theora": (
        "expected images as raw (node.image_transport), got theora",
        "let image_transport decode it: ros2 run image_transport republish theora raw",
    ),
    "/camera/compressed": ("expected images as raw (space.depth_transport), got compressed", "name /camera"),
}


def test_each_depth_topic_and_what_is_wrong_with_it():
    """A camera for each: the same images, and another topic of depth."""
    depths = [*DEPTHS, "/camera/nowhere", "/camera/compressed"]
    with driver(info=calibrated(), depths=DEPTHS) as env:
        findings = examined(env, [TOPIC] * len(depths) + [f"{TOPIC}/theora"], [*depths, DEPTH])
    found = named(findings)
    assert set(wrong(findings)) == set(WRONG)
    for name, (text, mend) in WRONG.items():
        assert found[name].text.startswith(text) and mend in found[name].mend, found[name]
    assert found[f"QoS of {DEPTH}"].text == "camera_driver offers best_effort, the segmenter asks for best_effort"
    assert "Hz" in found[f"images of {DEPTH}"].text
    assert found[f"encoding of {DEPTH}"].text == "16UC1, 64 x 48 px, 100% between 0.1 and 10 m"
    assert found[f"registration of {DEPTH}"].text == "size and frame of the images"
    assert found[f"stamps of {DEPTH}"].state == "ok" and "within 0.03 s" in found[f"stamps of {DEPTH}"].text
    assert found[INFO].text == "64 x 48 px, plumb_bob, frame camera_optical"


def test_stamps_apart_and_a_missing_camera_info():
    with driver(depths={DEPTH: depth_image()}, depth_later_s=20.0) as env:
        findings = examined(env, [TOPIC], [DEPTH])
    assert wrong(findings) == [INFO, f"stamps of {DEPTH}"]
    assert named(findings)[INFO].text.startswith("nobody publishes it; positions in space need it")
    assert "--camera-info TOPIC here" in named(findings)[INFO].mend
    assert named(findings)[f"stamps of {DEPTH}"].text.startswith("0% of the images have depth within 0.03 s")


class _Heard(NamedTuple):
    """A node that hears a publisher of the camera info."""

    info: CameraInfo

    def get_publishers_info_by_topic(self, topic: str) -> list[str]:
        return [topic]


P = [60.0, 0.0, 32.0, 0.0, 0.0, 60.0, 24.0, 0.0, 0.0, 0.0, 1.0, 0.0]
CROPPED = RegionOfInterest(x_offset=32, y_offset=24, width=128, height=96)


@pytest.mark.parametrize(
    ("rectified", "changes", "state", "text"),
    [
        (True, {"k": [0.0] * 9, "p": P}, "ok", "64 x 48 px, rectified, frame camera_optical"),
        (True, {}, "wrong", "no focal length (the camera is not calibrated)"),
        (True, {"p": [*P[:3], -6.0, *P[4:]]}, "wrong", "camera info: expected P as [fx 0 cx 0; 0 fy cy 0; 0 0 1 0]"),
        (False, {"k": [0.0] * 9, "p": P}, "wrong", "no focal length (the camera is not calibrated)"),
        (False, {"width": 128, "height": 96, "binning_x": 2, "binning_y": 2}, "ok", "64 x 48 px, plumb_bob"),
        (False, {"width": 640, "height": 480, "roi": CROPPED, "binning_x": 2, "binning_y": 2}, "ok", "64 x 48 px"),
        (False, {"binning_x": 2, "binning_y": 2}, "wrong", "for 32 x 24 px, images have 64 x 48 px"),
    ],
)
def test_camera_info_as_the_segmenter_reads_it(rectified, changes, state, text, monkeypatch):
    """`space.rectified`, the region and the binning count."""
    info = calibrated(**changes)
    monkeypatch.setattr(doctor_space, "newest", lambda node, *_: node.info)
    config = replace(DecafConfig(), {"space.enabled": True, "space.rectified": rectified})
    (found,) = doctor_space.check_info(_Heard(info), INFO, depth_image(), SIZE_HW, config, 0.1)
    assert found.state == state and found.text.startswith(text)


def test_a_camera_info_that_only_masks_do_not_need(monkeypatch):
    monkeypatch.setattr(doctor_space, "newest", lambda node, *_: node.info)
    info = calibrated(distortion_model="thin_prism", d=[0.1] * 12)
    for enabled, state in ((True, "wrong"), (False, "not checked")):
        config = replace(DecafConfig(), {"space.enabled": enabled})
        (found,) = doctor_space.check_info(_Heard(info), INFO, depth_image(), SIZE_HW, config, 0.1)
        assert found.state == state and "got 'thin_prism'" in found.text


@pytest.fixture
def node(monkeypatch):
    """A node like the doctor's, beside one that publishes a transform from the camera's frame to "base"."""
    with unused_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        rclpy.init()
        context, stopping = Context(), threading.Event()
        rclpy.init(context=context, domain_id=domain)
        other = rclpy.create_node("transforms", context=context)
        publisher = other.create_publisher(TransformStamped, "tf_stand_in", 10)
        message = TransformStamped(child_frame_id=FRAME)
        message.header.frame_id = "base"

        def publish() -> None:
            while not stopping.wait(0.05):
                publisher.publish(message)

        thread = threading.Thread(target=publish)
        thread.start()
        own = rclpy.create_node("doctor")
        yield own
        stopping.set()
        thread.join()
        other.destroy_node()
        context.try_shutdown()
        own.destroy_node()
        rclpy.try_shutdown()


def test_transforms(node, monkeypatch):
    """With the stand-in of tf2_ros."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "tf2_stand_in")
    (found,) = check_frames(node, FRAME, "base", True, 5.0)
    assert (found.state, found.text) == ("ok", "camera_optical to base is known")
    (found,) = check_frames(node, FRAME, "map", True, 0.2)
    assert found.state == "wrong" and found.mend.startswith("start robot_state_publisher")
    assert found.text == 'no transform from camera_optical to map in 0.2 s: "map" does not exist'


@pytest.mark.skipif(find_spec("tf2_ros") is not None, reason="tf2_ros is installed")
def test_a_target_frame_without_tf2(node, monkeypatch):
    """The segmenter refuses the parameter, so it is wrong; a frame that is only asked for is not checked."""
    monkeypatch.delitem(sys.modules, "tf2_ros", raising=False)  # the stand-in of another test
    (found,) = check_frames(node, FRAME, "base", True, 0.2)
    assert found.state == "wrong" and "tf2_ros is not installed: the segmenter refuses" in found.text
    assert found.mend.endswith("or leave space.target_frame empty")
    (found,) = check_frames(node, FRAME, "base", False, 0.2)
    assert found.state == "not checked"


def test_the_command_turns_space_on_for_depth():
    """As the launch file does."""
    for arguments, is_on in ((["--depth", DEPTH], True), ([], False)):
        args = _parser().parse_args(["doctor", "--params", str(TABLETOP), *arguments])
        assert args.configure(args).space.enabled is is_on
    args = _parser().parse_args(["doctor", "--params", str(TABLETOP), "--depth", "/a", "/b"])
    with pytest.raises(ValueError, match="--depth: expected at most one topic for each of 1 cameras, got 2"):
        args.configure(args)
