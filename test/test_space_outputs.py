"""3D outputs of a stream with a hand-driven clock: waiting for depth and transforms, order, what is left out."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import DecafConfig, replace
from decaf_ros.io.bags import make_header, make_message
from decaf_ros.io.messages import header, image, stamp_ns
from decaf_ros.io.space_messages import BUILDERS
from decaf_ros.online.space import SpaceOutputs
from decaf_ros.online.statistics import Statistics
from decaf_ros.types import Frame, FrameResult, Query, Target, TargetState, TrackletScores

SIZE_HW = (48, 64)
MS = 1_000_000


class FixedTransforms:
    """Stands in for TF: transforms by frames, as far as they are set."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], np.ndarray] = {}
        self.asked: list[int] = []

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        self.asked.append(stamp_ns)
        if (target, source) not in self.known:
            raise LookupError(f"{target} does not exist")
        return self.known[target, source]


class Stream:
    """SpaceOutputs with a record of what they publish and report."""

    def __init__(self, wanted=lambda topic: True, transforms=None, **options) -> None:
        self.now = 0.0
        self.published: list[tuple[str, object]] = []
        self.reported: list[str] = []
        self.statistics = Statistics()
        changes = {"space.enabled": True, "space.min_points": 10}
        config = replace(DecafConfig(), changes | {f"space.{name}": value for name, value in options.items()})
        self.outputs = SpaceOutputs(
            make_message,
            lambda *output: self.published.append(output),
            wanted,
            lambda notice, kind: self.reported.append(notice.text),
            self.statistics,
            lambda: config,
            lambda: self.now,
            False,
            transforms,
        )
        self.outputs.put_info(camera_info())

    def depth(self, at_ms: int, frame_id: str = "camera", size_hw=SIZE_HW) -> None:
        values = np.full(size_hw, 1000, np.uint16)
        self.outputs.put_depth(image(make_message, values, header(make_message, at_ms * MS, frame_id)))
        self.outputs.publish_ready()

    def frame(self, at_ms: int, targets: int = 1) -> FrameResult:
        """Tracks a frame; returns its result as it is published."""
        frame = Frame(np.full((*SIZE_HW, 3), (200, 100, 50), np.uint8), at_ms * MS, "camera", 0)
        self.outputs.begin(frame)
        result = self.outputs.locate(result_of(frame, targets))
        self.outputs.publish_ready()
        return result

    def on(self, topic: str) -> list:
        return [message for name, message in self.published if name == topic]

    def stamps(self, topic: str = "detections_3d") -> list[int]:
        return [stamp_ns(message.header.stamp) // MS for message in self.on(topic)]


def result_of(frame: Frame, targets: int) -> FrameResult:
    labels = np.zeros(SIZE_HW, np.uint8)
    found = []
    for number in range(targets):
        mask = np.zeros(SIZE_HW, bool)
        mask[10:30, 5 + 20 * number : 20 + 20 * number] = True
        labels[mask] = number + 1
        scores = TrackletScores(0.5, 0.5, 0.5, 0.5 + 0.1 * number)
        found.append(Target(number + 7, number + 1, ("q1",), "cup", TargetState.TRACKED, mask, scores, 0))
    return FrameResult(frame, labels, (Query("q1", "the cup"),), tuple(found))


def camera_info(frame_id: str = "camera", size_hw=SIZE_HW, **changes):
    roi = make_message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    matrix = np.array([[50, 0, (size_hw[1] - 1) / 2], [0, 50, (size_hw[0] - 1) / 2], [0, 0, 1.0]])
    fields = {
        "header": make_header(0, frame_id),
        "height": size_hw[0],
        "width": size_hw[1],
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": matrix.ravel(),
        "r": np.eye(3).ravel(),
        "p": np.hstack([matrix, np.zeros((3, 1))]).ravel(),
        "binning_x": 0,
        "binning_y": 0,
        "roi": roi,
    }
    return make_message("sensor_msgs/msg/CameraInfo", **fields | changes)


def test_depth_that_has_come_gives_places_at_once():
    stream = Stream()
    stream.depth(100)
    place = stream.frame(100, targets=2).targets[1].place
    # The mask is 15 px wide, 20 px high and 1 m away, with a focal length of 50 px: 0.3 m by 0.4 m.
    assert place.position[2] == pytest.approx(1.0) and place.position[1] == pytest.approx(-4 / 50)
    assert sorted(place.size) == pytest.approx([0.0, 14 / 50, 19 / 50], abs=0.01)
    assert {topic for topic, _ in stream.published} == {*BUILDERS, "depth_masked/camera_info"}
    (pose,) = stream.on("target_pose")
    assert (pose.pose.position.x, pose.pose.position.y, pose.pose.position.z) == place.position  # the better one
    cloud = stream.on("points")[0]
    points = cloud.data.view(np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("label", "<u4")]))
    assert len(points) == cloud.width == 2 * 13 * 18 and set(points["label"]) == {1, 2}
    assert set(points["rgb"]) == {200 << 16 | 100 << 8 | 50} and np.allclose(points["xyz"][:, 2], 1.0)
    boxes = [marker for marker in stream.on("markers")[0].markers if marker.ns == "targets"]
    assert [marker.action for marker in boxes] == [3, 0, 0] and [marker.id for marker in boxes[1:]] == [7, 8]
    texts = [marker.text for marker in stream.on("markers")[0].markers if marker.ns == "names"]
    assert texts == ["7 cup", "8 cup"]


def test_late_depth_gives_the_outputs_later_and_frames_keep_their_order():
    stream = Stream(depth_wait_s=0.03)
    assert stream.frame(100).targets[0].place is None
    stream.frame(133)
    assert stream.outputs.waits and not stream.published
    stream.now = 0.02
    stream.depth(100)
    assert stream.stamps() == [100]
    stream.depth(133)
    assert stream.stamps() == [100, 133] and not stream.outputs.waits
    assert (stream.statistics.located, stream.statistics.unlocated) == (2, 0)


def test_a_frame_does_not_wait_longer_and_is_counted():
    stream = Stream(depth_wait_s=0.03)
    stream.frame(100)
    stream.now = 0.031
    stream.outputs.publish_ready()
    assert not stream.outputs.waits and not stream.published
    assert stream.reported == [
        "no 3D: depth: expected an image within 0.03 s of the frame (space.sync_slop_s), got none"
    ]
    assert (stream.statistics.located, stream.statistics.unlocated) == (0, 1)


def test_after_the_wait_an_earlier_depth_within_the_slop_is_used():
    stream = Stream(depth_wait_s=0.03)
    stream.depth(90)
    stream.frame(100)
    assert not stream.published
    stream.now = 0.031
    stream.outputs.publish_ready()
    assert stream.stamps() == [100]


def test_the_end_of_the_stream_ends_all_waiting():
    stream = Stream()
    stream.depth(90)
    stream.frame(100)
    stream.outputs.publish_ready(is_end=True)
    assert stream.stamps() == [100] and not stream.outputs.waits


def test_waiting_frames_are_bounded():
    stream = Stream(depth_wait_s=10.0)
    for number in range(100):
        stream.frame(number)
    assert stream.statistics.unlocated == 70


def test_only_what_is_wanted_is_published_and_measured():
    stream = Stream(wanted=lambda topic: topic == "points")
    stream.depth(100)
    stream.frame(100)
    assert [topic for topic, _ in stream.published] == ["points"]
    idle = Stream(wanted=lambda topic: False)
    idle.depth(100)
    assert idle.frame(100).targets[0].place is None
    assert not idle.published and not idle.outputs.waits and idle.statistics.located == 0


def test_a_frame_without_targets_has_empty_outputs_and_no_pose():
    stream = Stream()
    stream.depth(100)
    stream.frame(100, targets=0)
    assert not stream.on("target_pose") and not stream.on("detections_3d")[0].detections
    assert stream.on("points")[0].width == 0 and len(stream.on("markers")[0].markers) == 1


BAD = {
    "size": (camera_info(size_hw=(24, 32)), "camera info: expected 64 x 48 px, as the image, got 32 x 24"),
    "frame": (camera_info("other"), "camera info: expected frame 'camera', as the image, got 'other'"),
    "uncalibrated": (camera_info(k=np.zeros(9)), "camera info: expected a calibrated camera, got K of zeros"),
    "none": (None, "camera info: expected a message, got none yet"),
}


@pytest.mark.parametrize("info, text", BAD.values(), ids=BAD)
def test_a_camera_info_that_does_not_fit_is_named(info, text):
    stream = Stream()
    stream.outputs.put_info(info)
    stream.depth(100)
    stream.frame(100)
    assert stream.reported == [f"no 3D: {text}"] and not stream.published
    stream.outputs.put_info(camera_info())
    stream.depth(133)
    stream.frame(133)
    assert stream.stamps() == [133]


@pytest.mark.parametrize("rectified, focal", [(False, 50), (True, 100)])
def test_a_rectified_image_takes_the_other_matrix(rectified, focal):
    stream = Stream(rectified=rectified)
    matrix = np.array([[100, 0, 31.5, 0], [0, 100, 23.5, 0], [0, 0, 1.0, 0]])
    stream.outputs.put_info(camera_info(p=matrix.ravel()))
    stream.depth(100)
    assert stream.frame(100).targets[0].place.position[1] == pytest.approx(-4 / focal)


def test_depth_of_another_size_is_registered_with_its_own_camera_info():
    stream = Stream()
    stream.depth(100, size_hw=(24, 32))
    stream.frame(100)
    assert "expected 64 x 48 px in frame 'camera', as the image, got 32 x 24 in 'camera'" in stream.reported[0]
    matrix = np.array([[25, 0, 15.5], [0, 25, 11.5], [0, 0, 1.0]])
    stream.outputs.put_depth_info(camera_info(size_hw=(24, 32), k=matrix.ravel()))
    stream.depth(133, size_hw=(24, 32))
    assert stream.frame(133).targets[0].place.position[2] == pytest.approx(1.0)


def test_depth_of_another_frame_is_registered_by_its_transform():
    transforms = FixedTransforms()
    stream = Stream(transforms=transforms)
    stream.outputs.put_depth_info(camera_info("depth"))
    stream.depth(100, "depth")
    stream.frame(100)
    assert "expected a transform from 'depth' to the image's frame, got none" in stream.reported[0]
    transforms.known["camera", "depth"] = np.eye(4) + np.outer([0, 0, 0.25, 0], [0, 0, 0, 1])
    stream.depth(133, "depth")
    assert stream.frame(133).targets[0].place.position[2] == pytest.approx(1.25)
    alone = Stream()
    alone.outputs.put_depth_info(camera_info("depth"))
    alone.depth(100, "depth")
    alone.frame(100)
    assert "expected frame 'camera', as the image, got 'depth'; without tf2_ros" in alone.reported[0]
    alone.depth(133, "elsewhere")
    alone.frame(133)
    assert "depth camera info: expected frame 'elsewhere', as the depth, got 'depth'" in alone.reported[1]


def test_outputs_are_in_the_target_frame_by_the_transform_at_the_stamp():
    transforms = FixedTransforms()
    # The optical frame in a base: x forward, y left, z up, 0.5 m above the base.
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1.0]])
    transforms.known["base", "camera"] = turn
    stream = Stream(transforms=transforms, target_frame="base")
    stream.depth(100)
    place = stream.frame(100).targets[0].place
    assert transforms.asked == [100 * MS]
    for topic in ("target_pose", "points", "detections_3d"):
        assert stream.on(topic)[0].header.frame_id == "base"
    assert stream.on("depth_masked")[0].header.frame_id == "camera"
    x, y, z = place.position
    pose = stream.on("target_pose")[0].pose
    assert (pose.position.x, pose.position.y, pose.position.z) == pytest.approx((z, -x, 0.5 - y))
    box = stream.on("detections_3d")[0].detections[0].bbox
    assert (box.center.position.x, box.center.position.z) == pytest.approx((1.0, 0.5 - y), abs=0.02)
    points = stream.on("points")[0].data.view("<f4").reshape(-1, 5)[:, :3]
    assert points.mean(axis=0) == pytest.approx([z, -x, 0.5 - y], abs=1e-5)


def test_a_missing_transform_is_waited_for_and_then_named():
    transforms = FixedTransforms()
    stream = Stream(transforms=transforms, target_frame="base", tf_timeout_s=0.1)
    stream.depth(100)
    stream.frame(100)
    assert stream.outputs.waits and not stream.published
    stream.now = 0.05
    transforms.known["base", "camera"] = np.eye(4)
    stream.outputs.publish_ready()
    assert [message.header.frame_id for message in stream.on("detections_3d")] == ["base"] and not stream.reported
    transforms.known.clear()
    stream.depth(133)
    stream.frame(133)
    stream.now = 0.2
    stream.outputs.publish_ready()
    assert [message.header.frame_id for message in stream.on("detections_3d")] == ["base", "camera"]
    assert stream.reported == [
        "space.target_frame: no transform from 'camera' to 'base': base does not exist; 3D outputs are in the "
        "camera's frame"
    ]


def test_a_target_frame_without_transforms_is_refused():
    with pytest.raises(ValueError, match="space.target_frame: expected transforms, got none"):
        Stream(target_frame="base")
