import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from decaf_ros.cli.main import main
from decaf_ros.evaluation.baselines.pairs import read_image, read_pairs
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_message
from decaf_tabletop.world.bag import (
    COMPRESSED_TOPIC,
    DEPTH_TOPIC,
    IMAGE_TOPIC,
    INFO_TOPIC,
    LABELS_TOPIC,
    PARTS_TOPIC,
    POSES_TOPIC,
    SCENE_TOPIC,
    read_ground_truth,
    write_tabletop_bag,
)
from decaf_tabletop.world.clip import Expression, TabletopClip, TabletopObject
from decaf_tabletop.world.expressions import expressions_of
from decaf_tabletop.world.store import read_clip

FRAMES = 3
STAMPS = 1_700_000_000_123_456_789 + np.arange(FRAMES) * 10**8
RED = Expression("the red ball", "explicit", (0,), "ball")
NONE = Expression("the green mug", "absent", (), "")


@pytest.fixture
def clip() -> TabletopClip:
    """A hand-made clip: the camera is at (1, 2, 3) and looks along the world's +y, with z up."""
    rng = np.random.default_rng(0)
    camera = (1.0, 2.0, 3.0, np.sqrt(0.5), -np.sqrt(0.5), 0.0, 0.0)
    poses = np.zeros((FRAMES, 2, 7))
    poses[..., :3] = np.array([[1.5, 4.0, 3.0], [1.0, 3.0, 3.25]])
    poses[..., 0, 0] += np.arange(FRAMES)
    poses[..., 3:] = camera[3:]
    return TabletopClip(
        seed=7,
        images=np.repeat(np.repeat(rng.integers(0, 256, (FRAMES, 3, 4, 3), dtype=np.uint8), 8, 1), 8, 2),
        labels=rng.integers(0, 3, (FRAMES, 24, 32), dtype=np.uint8),
        stamps_ns=STAMPS,
        objects=(TabletopObject("ball", "red", "small", 0.04, 0.08), TabletopObject("can", "blue", "large", 0.05, 0.1)),
        poses=poses,
        camera_poses=np.tile(camera, (FRAMES, 1)),
        intrinsics=np.array([[40.0, 0, 15.5], [0, 40.0, 11.5], [0, 0, 1]]),
        surface="wood",
        depth_m=rng.uniform(0.3, 2, (FRAMES, 24, 32)).astype(np.float32),
    )


def read(path: Path, topic: str) -> list:
    with BagReader(path) as bag:
        return [bag.deserialize(message) for message in bag.messages([topic])]


def stamp_ns(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_a_bag_holds_camera_topics_and_ground_truth(clip, tmp_path):
    path = tmp_path / "bag"
    write_tabletop_bag(path, clip, [RED, NONE])
    with BagReader(path) as bag:
        assert {name: (topic.msgtype, topic.message_count) for name, topic in bag.topics.items()} == {
            IMAGE_TOPIC: ("sensor_msgs/msg/Image", FRAMES),
            INFO_TOPIC: ("sensor_msgs/msg/CameraInfo", FRAMES),
            DEPTH_TOPIC: ("sensor_msgs/msg/Image", FRAMES),
            LABELS_TOPIC: ("sensor_msgs/msg/Image", FRAMES),
            POSES_TOPIC: ("geometry_msgs/msg/PoseArray", FRAMES),
            SCENE_TOPIC: ("std_msgs/msg/String", 1),
        }
        frames = list(bag.frames(IMAGE_TOPIC))
    np.testing.assert_array_equal(np.stack([frame.image for frame in frames]), clip.images)
    for topic in (IMAGE_TOPIC, INFO_TOPIC, DEPTH_TOPIC, LABELS_TOPIC, POSES_TOPIC):
        messages = read(path, topic)
        assert [stamp_ns(message) for message in messages] == STAMPS.tolist()
        assert {message.header.frame_id for message in messages} == {clip.frames()[0].frame_id}
    depth = read(path, DEPTH_TOPIC)[1]
    assert depth.encoding == "32FC1"
    np.testing.assert_array_equal(depth.data.view(np.float32).reshape(24, 32), clip.depth_m[1])
    info = read(path, INFO_TOPIC)[0]
    assert (info.height, info.width, info.distortion_model) == (24, 32, "plumb_bob")
    np.testing.assert_array_equal(info.k.reshape(3, 3), clip.intrinsics)
    np.testing.assert_array_equal(info.p.reshape(3, 4)[:, :3], clip.intrinsics)


def test_poses_are_in_the_optical_frame(clip, tmp_path):
    write_tabletop_bag(tmp_path / "bag", clip)
    poses = read(tmp_path / "bag", POSES_TOPIC)[2].poses
    places = [(pose.position.x, pose.position.y, pose.position.z) for pose in poses]
    # Object 0: 2.5 m right of the camera, 2 m ahead. Object 1: 1 m ahead, 0.25 m above (-y).
    np.testing.assert_allclose(places, [(2.5, 0, 2), (0, -0.25, 1)], atol=1e-12)
    # The object has the camera's orientation.
    assert abs(poses[0].orientation.w) == pytest.approx(1)


def test_ground_truth_round_trip(clip, tmp_path):
    write_tabletop_bag(tmp_path / "bag", clip, [RED, NONE])
    truth = read_ground_truth(tmp_path / "bag")
    assert (truth.seed, truth.surface, truth.objects) == (clip.seed, clip.surface, clip.objects)
    assert truth.expressions == (RED, NONE)
    assert list(truth.labels) == list(truth.poses) == STAMPS.tolist()
    np.testing.assert_array_equal(np.stack(list(truth.labels.values())), clip.labels)
    np.testing.assert_allclose(truth.poses[int(STAMPS[1])][0, :3], (1.5, 0, 2), atol=1e-12)
    with pytest.raises(FileExistsError):
        write_tabletop_bag(tmp_path / "bag", clip)


def test_a_compressed_bag(clip, tmp_path):
    path = tmp_path / "bag"
    write_tabletop_bag(path, clip, compressed=True)
    with BagReader(path) as bag:
        assert IMAGE_TOPIC not in bag.topics
        images = np.stack([frame.image for frame in bag.frames(COMPRESSED_TOPIC)])
    assert np.abs(images.astype(int) - clip.images).mean() < 12  # JPEG subsamples the noise's colour
    assert "jpeg" in read(path, COMPRESSED_TOPIC)[0].format
    depth = read(path, DEPTH_TOPIC)[0]
    assert depth.encoding == "16UC1" and depth.step == 64
    np.testing.assert_allclose(depth.data.view(np.uint16).reshape(24, 32) / 1000, clip.depth_m[0], atol=0.00051)


def test_bags_without_valid_ground_truth_raise(tmp_path):
    with BagWriter(tmp_path / "empty") as bag:
        bag.write_image(LABELS_TOPIC, np.zeros((2, 2), np.uint8), 1, "")
    with pytest.raises(ValueError, match=f"got no {SCENE_TOPIC}"):
        read_ground_truth(tmp_path / "empty")
    for index, text in enumerate(("{", json.dumps({"seed": 1}), "[]")):
        with BagWriter(tmp_path / str(index)) as bag:
            bag.write_message(SCENE_TOPIC, make_message("std_msgs/msg/String", data=text), 1)
        with pytest.raises(ValueError, match="not the scene of a tabletop clip"):
            read_ground_truth(tmp_path / str(index))
    with BagWriter(tmp_path / "colour") as bag:
        bag.write_image(LABELS_TOPIC, np.zeros((2, 2, 3), np.uint8), 1, "")
    with pytest.raises(ValueError, match="expected whole mono8 images, got rgb8"):
        read_ground_truth(tmp_path / "colour")


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_simulate_writes_bags_and_files(tmp_path, capsys):
    command = ["simulate", "--seed", "4", "--out", str(tmp_path), "--crossing"]
    assert main([*command, "--depth", "--compressed"]) == 0
    truth = read_ground_truth(tmp_path / "clip_00000004_crossing")
    assert truth.seed == 4 and {expression.kind for expression in truth.expressions} >= {"explicit", "absent"}
    with BagReader(tmp_path / "clip_00000004_crossing") as bag:
        assert DEPTH_TOPIC in bag.topics
    assert main([*command, "--format", "npz"]) == 0
    clip = read_clip(tmp_path / "clip_00000004_crossing.npz")
    assert list(truth.expressions) == expressions_of(clip)
    np.testing.assert_array_equal(clip.labels[5], truth.labels[int(clip.stamps_ns[5])])
    assert main(["simulate", "--story", "--format", "npz", "--out", str(tmp_path)]) == 0
    assert len(read_clip(tmp_path / "story.npz")) > 200
    capsys.readouterr()
    assert main(command) == 1
    assert "clip_00000004_crossing: exists already" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_simulate_writes_pairs_of_phrases_and_boxes(tmp_path, capsys):
    from decaf_tabletop.world.simulator import make_clip

    assert main(["simulate", "--format", "pairs", "--seed", "3", "--out", str(tmp_path)]) == 0
    pairs, clip = read_pairs(tmp_path), make_clip(3)
    middle = len(clip) // 2
    np.testing.assert_array_equal(read_image(pairs[0]), clip.images[middle])
    targets = {one.text: one.targets for one in expressions_of(clip)}
    assert len(pairs) > 2 and len({pair.box for pair in pairs}) > 1
    for pair in pairs:
        left, top, right, bottom = (int(value) for value in pair.box)
        (target,) = targets[pair.phrase]
        seen = clip.labels[middle] == target + 1
        inside = seen[top:bottom, left:right]
        assert inside.sum() == seen.sum() and inside.any(axis=0).all() and inside.any(axis=1)[[0, -1]].all()
    capsys.readouterr()
    assert main(["simulate", "--format", "pairs", "--seed", "3", "--out", str(tmp_path)]) == 1
    assert "pairs.jsonl" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_simulate_adds_parts_and_changes_nothing_else(tmp_path, capsys):
    """A scene with a mug."""
    messages = []
    for options in (["--parts"], []):
        assert main(["simulate", "--seed", "900001", "--out", str(tmp_path / f"of{len(options)}"), *options]) == 0
        with BagReader(tmp_path / f"of{len(options)}" / "clip_00900001") as bag:
            messages.append({(one.topic, one.stamp_ns): bytes(one.data) for one in bag.messages()})
    with_parts, without = messages
    added = {key: value for key, value in with_parts.items() if key not in without}
    assert {topic for topic, _ in added} == {PARTS_TOPIC} and len(added) == 32
    assert {key: with_parts[key] for key in without} == without
    assert all(b"mono8" in value and b"\x01" * 5 in value[200:] for value in added.values())
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].endswith("; the handle of the mug: 1") and "handle" not in shown[1]


@pytest.mark.parametrize(
    "options, text",
    [
        (["--seed", "-1"], "--seed: expected a number >= 0"),
        (["--clips", "0"], "--clips: expected a number >= 1"),
        (["--format", "npz", "--depth"], "--depth: only bags"),
        (["--format", "npz", "--parts"], "--parts: only bags"),
        (["--depth-noise"], "--depth-noise: expected --depth too"),
        (["--story", "--seed", "3"], "--story: it is one clip"),
        (["--format", "pairs", "--depth"], "--depth: only bags"),
        (["--format", "pairs", "--crossing"], "--format pairs: expected --seed, --clips and --out only"),
    ],
)
def test_simulate_rejects_invalid_options(options, text, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["simulate", "--out", str(tmp_path / "new"), *options])
    assert error.value.code == 2 and text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
