"""Replay of a simulated bag with depth: 3D outputs of every frame, the same bytes twice, and bad inputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from played_bags import played_bytes, played_messages, played_stamps

from decaf_ros.cli.main import main
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, make_message
from decaf_ros.io.messages import stamp_ns
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC, write_tabletop_bag
from decaf_tabletop.world.simulator import make_clip

# Not importorskip: that would import MuJoCo before the simulator sets MUJOCO_GL.
pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")

DEPTH = ["--depth", DEPTH_TOPIC, "--camera-info", INFO_TOPIC]
OUTPUTS = ("points", "depth_masked", "depth_masked/camera_info", "detections_3d", "markers")


@pytest.fixture(scope="module")
def bag(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bag") / "bag"
    write_tabletop_bag(path, make_clip(990002, depth=True), compressed=True)
    return path


@pytest.fixture
def play(tiny_mllm_dir, tiny_sam2_dir, tmp_path):
    parameters = {
        "mllm": {"checkpoint": str(tiny_mllm_dir), "local_files_only": True, "video_tokens": 16, "device": "cpu"},
        "sam2": {"checkpoint": str(tiny_sam2_dir), "local_files_only": True, "device": "cpu"},
        "grounding": {"mode": "fast"},
        "segmentation": {"max_points": 2, "fallback": "best"},
        "presence": {"threshold": 0},
        "window": {"size": 3, "min_frames": 2, "keyframe_period_s": 0.1},
        "regrounding": {"policy": "off"},
    }
    params_file = tmp_path / "params.yaml"
    params_file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))

    def play_bag(bag: Path, *args: str, name: str = "out") -> tuple[int, Path]:
        out = tmp_path / name
        query = ["--query", "the red ball", "--query-at", "0.5"]
        return main(["replay", str(bag), "--out", str(out), "--config", str(params_file), *query, *args]), out

    return play_bag


def _changed(bag: Path, path: Path, change) -> Path:
    """A copy of a bag. change: called with the number of a depth message and it; returns the time by which it is
    recorded later, or None to leave it out."""
    number = 0
    messages = []
    with BagReader(bag) as reader:
        for message in reader.messages([COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC]):
            later_ns = 0
            if message.topic == DEPTH_TOPIC:
                later_ns, number = change(number), number + 1
            if later_ns is not None:
                messages.append((message.stamp_ns + later_ns, message))
    with BagWriter(path) as writer:
        for at_ns, message in sorted(messages, key=lambda pair: pair[0]):
            writer.write(message.topic, message.msgtype, at_ns, message.data)
    return path


def test_every_frame_has_3d_outputs_and_two_replays_give_the_same_bytes(play, bag, capsys):
    runs = []
    for name in ("first", "second"):
        code, out = play(bag, *DEPTH, name=name)
        assert code == 0
        runs.append(played_bytes(out))
    assert runs[0] == runs[1]
    masks = played_stamps(out, "masks")
    assert len(masks) == 32
    for topic in OUTPUTS[:-1]:
        assert played_stamps(out, topic) == masks
    assert len(played_messages(out, "markers")) == len(masks)
    assert "3D: 32 frames with, 0 without" in capsys.readouterr().out
    poses = played_messages(out, "target_pose")
    places = {
        (stamp_ns(message.header.stamp), one.position.x, one.position.y, one.position.z): one.size
        for message in played_messages(out, "tracklets")
        for one in message.tracklets
    }
    assert len(poses) > 3
    for pose in poses:
        at = pose.pose.position
        size = places[stamp_ns(pose.header.stamp), at.x, at.y, at.z]
        assert 0.3 < at.z < 3 and 0 < max(size.x, size.y, size.z) < 3
    info, depth = played_messages(out, "depth_masked/camera_info")[0], played_messages(out, "depth_masked")[0]
    assert (info.width, info.height, info.header.frame_id) == (depth.width, depth.height, depth.header.frame_id)


def test_without_depth_there_are_no_3d_outputs(play, bag):
    code, out = play(bag)
    assert code == 0
    with BagReader(out) as reader:
        assert not {f"/decaf/{topic}" for topic in (*OUTPUTS, "target_pose")} & set(reader.topics)
    assert all(np.isnan(one.position.x) for message in played_messages(out, "tracklets") for one in message.tracklets)


def test_depth_recorded_a_little_later_is_there_for_the_tracklets(play, bag, tmp_path):
    late = _changed(bag, tmp_path / "late", lambda number: 20_000_000)
    (_, out), (_, expected) = play(late, *DEPTH), play(bag, *DEPTH, name="expected")
    assert list(map(repr, played_messages(out, "tracklets"))) == list(map(repr, played_messages(expected, "tracklets")))
    assert played_stamps(out, "detections_3d") == played_stamps(out, "masks")


def test_depth_recorded_later_than_the_wait_and_missing_depth_give_frames_without_3d(play, bag, tmp_path, capsys):
    missing = _changed(bag, tmp_path / "missing", lambda number: {5: None, 9: 75_000_000}.get(number, 0))
    code, out = play(missing, *DEPTH, "--set", "space.depth_wait_s=0.03")
    assert code == 0
    masks = played_stamps(out, "masks")
    assert played_stamps(out, "detections_3d") == [stamp for number, stamp in enumerate(masks) if number not in (5, 9)]
    said = capsys.readouterr()
    assert "3D: 30 frames with, 2 without" in said.out
    assert "within 0.03 s of the frame (space.sync_slop_s), got one 0.100 s away" in said.err


def test_a_long_wait_loses_no_depth(play, bag):
    code, out = play(bag, *DEPTH, "--set", "space.depth_wait_s=3")
    assert code == 0 and played_stamps(out, "detections_3d") == played_stamps(out, "masks")


def test_damaged_depth_is_reported_and_the_rest_is_played(play, bag, tmp_path, capsys):
    damaged = tmp_path / "damaged"
    with BagReader(bag) as reader, BagWriter(damaged) as writer:
        for number, message in enumerate(reader.messages([COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC])):
            cut = message.topic == DEPTH_TOPIC and number < 10
            writer.write(message.topic, message.msgtype, message.stamp_ns, message.data[:50] if cut else message.data)
    code, out = play(damaged, *DEPTH)
    assert code == 0 and len(played_stamps(out, "masks")) == 32 and len(played_stamps(out, "detections_3d")) == 29
    assert "depth rejected: " in capsys.readouterr().err


def test_compressed_depth_gives_the_same_outputs(play, bag, tmp_path):
    import cv2

    packed = tmp_path / "packed"
    with BagReader(bag) as reader, BagWriter(packed) as writer:
        for message in reader.messages([COMPRESSED_TOPIC, DEPTH_TOPIC, INFO_TOPIC]):
            if message.topic != DEPTH_TOPIC:
                writer.write(message.topic, message.msgtype, message.stamp_ns, message.data)
                continue
            raw = reader.deserialize(message)
            values = raw.data.view(np.uint16).reshape(raw.height, raw.width)
            data = np.concatenate([np.zeros(12, np.uint8), cv2.imencode(".png", values)[1].reshape(-1)])
            content = make_message(
                "sensor_msgs/msg/CompressedImage",
                header=make_header(message.stamp_ns, "camera_optical"),
                format="16UC1; compressedDepth png",
                data=data,
            )
            writer.write_message(f"{DEPTH_TOPIC}/compressedDepth", content, message.stamp_ns)
    (_, out), (_, expected) = (
        play(packed, "--depth", f"{DEPTH_TOPIC}/compressedDepth", *DEPTH[2:], "--image-topic", COMPRESSED_TOPIC),
        play(bag, *DEPTH, name="expected"),
    )
    assert list(map(repr, played_messages(out, "detections_3d"))) == list(
        map(repr, played_messages(expected, "detections_3d"))
    )


@pytest.mark.parametrize(
    "args, message",
    [
        (["--depth", DEPTH_TOPIC], "expected --depth and --camera-info of a camera, got one for ''"),
        (["--depth", "/nowhere", *DEPTH[2:]], "/nowhere: expected sensor_msgs/msg/Image or sensor_msgs/msg/Compressed"),
        ([*DEPTH[:2], "--camera-info", DEPTH_TOPIC], "expected sensor_msgs/msg/CameraInfo, got sensor_msgs/msg/Image"),
        (["--depth", f"wrist={DEPTH_TOPIC}", "--camera-info", f"wrist={INFO_TOPIC}"], "got 'wrist'"),
        ([*DEPTH, "--depth", DEPTH_TOPIC], "--depth: expected one topic for a camera"),
        ([*DEPTH, "--set", "space.target_frame=base"], "a replay has no transforms, got 'base'"),
    ],
)
def test_bad_arguments_write_no_bag(play, bag, capsys, args, message):
    code, out = play(bag, *args)
    assert code != 0 and not out.exists()
    assert message in capsys.readouterr().err
