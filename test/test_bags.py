import json
import os
import sqlite3
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from decaf_ros.io.bag_writer import STORAGES, BagWriter
from decaf_ros.io.bags import BagReader, is_bag, make_header, typestore
from decaf_ros.io.messages import TOPICS, topic_messages
from decaf_ros.io.output_bag import OutputBag
from decaf_ros.types import (
    Frame,
    FrameResult,
    Heatmap,
    Keypoint,
    Notice,
    Presence,
    Query,
    QueryEvent,
    QueryState,
    Target,
    TargetState,
    TrackletScores,
)

START_NS = 1_700_000_000_123_456_789
STRING = typestore().types["std_msgs/msg/String"]


def picture(value: int) -> np.ndarray:
    image = np.full((6, 8, 3), value, np.uint8)
    image[0, 0] = (255, 0, 0)
    return image


def write_camera(path: Path, storage: str = "mcap", count: int = 3) -> Path:
    with BagWriter(path, storage) as bag:
        for index in range(count):
            bag.write_image("/camera/image", picture(index), START_NS + index * 10**8, "optical")
        bag.write_message("/chatter", STRING("hello"), START_NS)
    return path


def storage_file(bag: Path) -> Path:
    return next(file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))


@pytest.mark.parametrize("storage", list(STORAGES))
def test_frames_come_back_exactly(tmp_path, storage):
    path = write_camera(tmp_path / "bag", storage)
    for bag_path in (path, storage_file(path)):
        assert is_bag(bag_path)
        with BagReader(bag_path) as bag:
            assert {name: tuple(topic) for name, topic in bag.topics.items()} == {
                "/camera/image": ("sensor_msgs/msg/Image", 3),
                "/chatter": ("std_msgs/msg/String", 1),
            }
            frames = list(bag.frames())
        assert [frame.stamp_ns for frame in frames] == [START_NS, START_NS + 10**8, START_NS + 2 * 10**8]
        assert [frame.index for frame in frames] == [0, 1, 2]
        assert {frame.frame_id for frame in frames} == {"optical"}
        np.testing.assert_array_equal(frames[2].image, picture(2))


@pytest.mark.parametrize("storage", list(STORAGES))
def test_messages_come_in_recording_order(tmp_path, storage):
    with BagWriter(tmp_path / "bag", storage) as bag:
        for stamp in (30, 10, 20):
            bag.write_message("/b" if stamp == 10 else "/a", STRING(str(stamp)), START_NS + stamp)
    with BagReader(tmp_path / "bag") as bag:
        assert [bag.deserialize(message).data for message in bag.messages()] == ["10", "20", "30"]
        assert [message.stamp_ns - START_NS for message in bag.messages(["/a"])] == [20, 30]
        assert list(bag.messages(["/nowhere"])) == []


def test_frames_have_header_stamps_not_recording_times(tmp_path):
    image = typestore().types["sensor_msgs/msg/CompressedImage"]
    data = np.frombuffer(cv2.imencode(".png", picture(9)[..., ::-1])[1].tobytes(), np.uint8)
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_message("/c", image(make_header(START_NS, "cam"), "png", data), START_NS + 5 * 10**9)
    with BagReader(tmp_path / "bag") as bag:
        (frame,) = bag.frames()
    assert frame.stamp_ns == START_NS
    np.testing.assert_array_equal(frame.image, picture(9))


def test_image_topic_selection(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        for topic in ("/left", "/right"):
            bag.write_image(topic, picture(0), START_NS, "cam")
    with BagReader(tmp_path / "bag") as bag:
        assert bag.image_topic("/right") == "/right"
        with pytest.raises(ValueError, match=r"several image topics.*/left \(.*1 messages\), /right"):
            bag.image_topic()
        with pytest.raises(ValueError, match="no image topic /up; image topics: /left"):
            list(bag.frames("/up"))
    with BagWriter(tmp_path / "words") as bag:
        bag.write_message("/chatter", STRING("hello"), START_NS)
    with BagReader(tmp_path / "words") as bag, pytest.raises(ValueError, match="expected an image topic, got /chatter"):
        bag.image_topic()


def test_bag_without_definitions(tmp_path):
    """Distributions before Iron record no message definitions."""
    path = write_camera(tmp_path / "bag", "sqlite3")
    with sqlite3.connect(storage_file(path)) as database:
        database.execute("DELETE FROM message_definitions")
        database.execute("UPDATE schema SET schema_version = 3")
    with BagReader(storage_file(path)) as bag:
        assert len(list(bag.frames())) == 3


def test_bag_with_a_foreign_type(tmp_path):
    """The type is read with the definition embedded in the bag."""
    from rosbags.rosbag2 import Writer

    store = get_typestore(Stores.ROS2_HUMBLE)
    store.register(get_types_from_msg("float64 grams\nstd_msgs/Header header\n", "scales/msg/Weight"))
    weight = store.types["scales/msg/Weight"](12.5, make_header(START_NS, "pan"))
    with Writer(tmp_path / "bag", version=8) as bag:
        connection = bag.add_connection("/weight", "scales/msg/Weight", typestore=store)
        bag.write(connection, START_NS, store.serialize_cdr(weight, "scales/msg/Weight"))
    with BagReader(tmp_path / "bag") as bag:
        (message,) = bag.messages()
        assert bag.deserialize(message).grams == 12.5


def test_folder_without_metadata(tmp_path):
    path = write_camera(tmp_path / "bag")
    (path / "metadata.yaml").unlink()
    with BagReader(path) as bag:
        assert len(list(bag.frames())) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected a bag with .mcap or .db3 files, or a folder of JPEG or PNG"):
        BagReader(tmp_path / "empty")


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.mcap"):
        BagReader(tmp_path / "nowhere.mcap")
    (tmp_path / "notes.txt").write_text("no bag")
    with pytest.raises(ValueError, match="notes.txt: not a readable bag"):
        BagReader(tmp_path / "notes.txt")
    assert not is_bag(tmp_path / "notes.txt")


def test_an_undecodable_image_is_named_with_its_index(tmp_path):
    image = typestore().types["sensor_msgs/msg/Image"]
    message = image(make_header(START_NS, "cam"), 4, 4, "rgb8", 0, 12, np.zeros(30, np.uint8))
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_message("/camera/image", message, START_NS)
    with BagReader(tmp_path / "bag") as bag, pytest.raises(ValueError, match="message 0: .*expected 48 bytes.*got 30"):
        list(bag.frames())


def test_undecodable_images_can_be_skipped(tmp_path):
    image = typestore().types["sensor_msgs/msg/Image"]
    short = image(make_header(START_NS, "cam"), 4, 4, "rgb8", 0, 12, np.zeros(30, np.uint8))
    with BagWriter(tmp_path / "bag") as bag:
        bag.write_image("/camera/image", picture(0), START_NS, "cam")
        bag.write_message("/camera/image", short, START_NS + 1)
        bag.write("/camera/image", image.__msgtype__, START_NS + 2, b"\0\1\0\0 cut off")
        bag.write_image("/camera/image", picture(3), START_NS + 3, "cam")
    errors = []
    with BagReader(tmp_path / "bag") as bag:
        assert [frame.index for frame in bag.frames(reject=errors.append)] == [0, 3]
    assert len(errors) == 2 and "message 1: " in errors[0] and "message 2: " in errors[1]


def test_writing_errors(tmp_path):
    write_camera(tmp_path / "bag")
    with pytest.raises(FileExistsError, match="exists already"):
        BagWriter(tmp_path / "bag")
    with pytest.raises(ValueError, match="expected one of mcap, sqlite3, got 'rosbag1'"):
        BagWriter(tmp_path / "other", "rosbag1")
    with BagWriter(tmp_path / "other") as bag:
        with pytest.raises(ValueError, match="/x: expected a standard message"):
            bag.write("/x", "acme/msg/Thing", START_NS, b"")
        bag.write_message("/chatter", STRING("hello"), START_NS)
        with pytest.raises(ValueError, match="/chatter: expected std_msgs/msg/String as before"):
            bag.write_image("/chatter", picture(0), START_NS, "cam")
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8"):
            bag.write_image("/image", np.zeros((4, 4, 4), np.uint8), START_NS, "cam")


def test_messages_before_an_error_stay_readable(tmp_path):
    with pytest.raises(RuntimeError), BagWriter(tmp_path / "bag") as bag:
        bag.write_message("/chatter", STRING("hello"), START_NS)
        raise RuntimeError
    with BagReader(tmp_path / "bag") as bag:
        assert len(list(bag.messages())) == 1


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = (storage_file(write_camera(tmp_path / name / "bag")) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def outputs() -> list:
    frame = Frame(picture(3), START_NS, "cam", 0)
    query = Query("q1", "the mug")
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    scores = TrackletScores(0.9, 0.8, 0.7, 0.8)
    target = Target(7, 2, ("q1",), "mug", TargetState.TRACKED, mask, scores, START_NS - 10**9)
    event = QueryEvent(
        query,
        QueryState.TRACKING,
        "tracking 1 target: mug",
        START_NS,
        "cam",
        "mug",
        Presence(0.6, 0.5, 0.45, 0.4, 0.3, 0.2, 0.1),
        START_NS - 10**9,
        START_NS,
        (("points", 12.5), ("dense", 3.25)),
        (7,),
        (Keypoint(START_NS, 3.5, 2.25, 0.875),),
    )
    received = QueryEvent(query, QueryState.RECEIVED)
    result = FrameResult(frame, mask.astype(np.uint8) * 2, (query,), (target,))
    empty = FrameResult(frame, np.zeros((6, 8), np.uint8))
    heatmap = Heatmap(frame, query, np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8))
    return [received, event, result, empty, heatmap, Notice("warn", "not a message")]


def test_outputs_as_messages(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        for output in outputs():
            OutputBag(bag).write(output)
    found: dict[str, list] = {}
    with BagReader(tmp_path / "bag") as bag:
        for message in bag.messages():
            found.setdefault(message.topic, []).append(bag.deserialize(message))
    assert sorted(found) == [f"/decaf/{name}" for name in ("heatmaps", "masks", "status", "target_mask", "tracklets")]
    labels, union = found["/decaf/masks"][0], found["/decaf/target_mask"][0]
    assert (labels.encoding, labels.step, labels.header.frame_id) == ("mono8", 8, "cam")
    assert labels.data.reshape(6, 8)[2:4, 3:6].tolist() == [[2, 2, 2], [2, 2, 2]] and labels.data.sum() == 12
    assert sorted(set(union.data.tolist())) == [0, 255]
    (tracklet,) = found["/decaf/tracklets"][0].tracklets
    assert (tracklet.id, tracklet.label, tracklet.area, tracklet.box.x_offset, tracklet.centroid_x) == (7, 2, 6, 3, 4.0)
    assert found["/decaf/tracklets"][1].tracklets == [] and found["/decaf/masks"][1].data.sum() == 0
    assert [status.state for status in found["/decaf/status"]] == [0, 2]
    assert [round(status.presence, 3) for status in found["/decaf/status"]] == [-1.0, 0.6]
    assert found["/decaf/heatmaps"][0].data.view(np.float32)[-1] == 1.0


@pytest.mark.ros
def test_outputs_equal_those_of_the_node(tmp_path):
    """Byte for byte except the padding between fields, which Fast CDR does not initialise."""
    pytest.importorskip("decaf_ros.msg")
    from rclpy.serialization import serialize_message

    from decaf_ros.nodes.message_factory import make_message as make_ros_message

    expected = defaultdict(list)
    with BagWriter(tmp_path / "bag") as bag:
        writer = OutputBag(bag)
        for output in outputs():
            writer.write(output)
            for topic, message in topic_messages(make_ros_message, output):
                expected[topic].append(without_padding(serialize_message(message), TOPICS[topic]))
    assert set(expected) == set(TOPICS) - {"overlay", "confidence"}
    with BagReader(tmp_path / "bag") as bag:
        for topic, messages in expected.items():
            written = list(bag.messages([f"/decaf/{topic}"]))
            assert [message.data for message in written] == messages
            assert {message.msgtype for message in written} == {TOPICS[topic]}


def without_padding(data: bytes, msgtype: str) -> bytes:
    return bytes(typestore().serialize_cdr(typestore().deserialize_cdr(data, msgtype), msgtype))


@pytest.mark.ros
def test_type_hashes_equal_those_of_ros(tmp_path):
    """`ros2 bag play` and ROS discovery compare them."""
    pytest.importorskip("decaf_ros.msg")
    from sensor_msgs.msg import Image

    from decaf_ros.msg import QueryStatus, TrackletArray

    with BagWriter(tmp_path / "bag") as bag:
        for output in outputs():
            OutputBag(bag).write(output)
    with Reader(tmp_path / "bag") as reader:
        hashes = {connection.msgtype: connection.digest for connection in reader.connections}
    for kind in (Image, QueryStatus, TrackletArray):
        name = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
        assert hashes[name] == ros_type_hash(name)


def ros_type_hash(name: str) -> str:
    """Type hash from the type description that rosidl installs with the message."""
    package, _, message = name.split("/")
    # Wheels install into the virtual environment, which AMENT_PREFIX_PATH does not contain.
    for prefix in (*os.environ["AMENT_PREFIX_PATH"].split(os.pathsep), sys.prefix):
        file = Path(prefix, "share", package, "msg", f"{message}.json")
        if file.is_file():
            entries = json.loads(file.read_text())["type_hashes"]
            return next(entry["hash_string"] for entry in entries if entry["type_name"] == name)
    pytest.skip(f"no type description of {name}: rosidl before Iron")
