"""Replay of a bag through the node's handlers: every frame, every query, reproducible bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from played_bags import played_bytes, played_messages, played_stamps
from rosbags.highlevel import AnyReader

from decaf_ros.cli.main import _parser, main
from decaf_ros.evaluation.datasets.mask_file import decode_rle
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, typestore
from decaf_ros.io.parameter_files import load_config
from decaf_ros.online.replay import TimedQuery, replay
from decaf_ros.pipeline import Decaf
from decaf_ros.types import QueryState

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 50_000_000
# Recording time minus exposure time.
DELAY_NS = 7_000_000
SIZE_HW = (48, 64)


def _pixels(number: int) -> np.ndarray:
    pixels = np.full((*SIZE_HW, 3), 40, np.uint8)
    cv2.circle(pixels, (10 + 2 * number, 24), 8, (230, 60, 30), cv2.FILLED)
    return pixels


def _image(number: int, data: np.ndarray | None = None):
    header = make_header(START_NS + number * PERIOD_NS, "camera")
    data = _pixels(number).reshape(-1) if data is None else data
    return typestore().types["sensor_msgs/msg/Image"](header, SIZE_HW[0], SIZE_HW[1], "rgb8", 0, 3 * SIZE_HW[1], data)


def _jpeg(number: int):
    header = make_header(START_NS + number * PERIOD_NS, "camera")
    data = cv2.imencode(".jpg", _pixels(number)[:, :, ::-1])[1].reshape(-1)
    return typestore().types["sensor_msgs/msg/CompressedImage"](header, "jpeg", data)


def _query(text: str):
    return typestore().types["std_msgs/msg/String"](text)


def _write(path: Path, messages: Sequence[tuple[str, object]], storage: str = "mcap") -> Path:
    """A bag with a camera message every PERIOD_NS. Messages of other topics have the time of the previous one."""
    with BagWriter(path, storage) as writer:
        now_ns = START_NS + DELAY_NS
        for topic, message in messages:
            now_ns += PERIOD_NS if topic.startswith("/camera") else 0
            writer.write_message(topic, message, now_ns)
    return path


def _camera(*numbers: int) -> list[tuple[str, object]]:
    return [("/camera/image", _image(number)) for number in numbers]


@pytest.fixture(scope="module")
def params_file(tiny_mllm_dir, tiny_sam2_dir, tmp_path_factory) -> Path:
    parameters = {
        "mllm": {"checkpoint": str(tiny_mllm_dir), "local_files_only": True, "video_tokens": 16, "device": "cpu"},
        "sam2": {"checkpoint": str(tiny_sam2_dir), "local_files_only": True, "device": "cpu"},
        "grounding": {"mode": "fast"},
        "segmentation": {"max_points": 2, "fallback": "best"},
        "presence": {"threshold": 0},
        "window": {"size": 3, "min_frames": 2, "keyframe_period_s": 0.1},
        "regrounding": {"stride": 2},
    }
    path = tmp_path_factory.mktemp("params") / "params.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
    return path


@pytest.fixture
def play(params_file, tmp_path):
    """Runs the command on a bag. Returns the exit code and the folder of the new bag."""

    def play_bag(bag: Path, *args: str, name: str = "out") -> tuple[int, Path]:
        out = tmp_path / name
        return main(["replay", str(bag), "--out", str(out), "--config", str(params_file), *args]), out

    return play_bag


def _states(bag: Path, query_id: str) -> list[QueryState]:
    return [QueryState(status.state) for status in played_messages(bag, "status") if status.query_id == query_id]


@pytest.mark.parametrize("mode", ["replace", "add"])
def test_two_replays_give_the_same_bytes(play, tmp_path, mode):
    bag = _write(tmp_path / "bag", _camera(*range(12)))
    queries = ["--query", "the red disc", "--query", "the other disc", "--query-at", "0.3"]
    queries += ["--set", f"queries.mode={mode}"]
    runs = []
    for name in ("first", "second"):
        code, out = play(bag, *queries, name=name)
        assert code == 0
        runs.append(played_bytes(out))
    assert runs[0] == runs[1]
    with BagReader(out) as reader:
        assert {message.topic for message in reader.messages()} == {
            "/decaf/masks",
            "/decaf/target_mask",
            "/decaf/tracklets",
            "/decaf/heatmaps",
            "/decaf/status",
            "/decaf/detections",
            "/decaf/label_info",
        }
    # Empty masks would be equal trivially.
    assert any(any(mask.data) for mask in played_messages(tmp_path / "first", "masks"))
    last = played_messages(tmp_path / "first", "tracklets")[-1]
    meant = {query_id for tracklet in last.tracklets for query_id in tracklet.query_ids}
    assert last.query_id == "q2" and meant == ({"q2"} if mode == "replace" else {"q1", "q2"})
    for query_id in ("q1", "q2"):
        assert [state.is_answer for state in _states(tmp_path / "first", query_id)].count(True) == 1


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_no_frame_is_dropped_and_each_gets_its_outputs(play, tmp_path, storage):
    bag = _write(tmp_path / "bag", _camera(*range(10)), storage)
    code, out = play(bag, "--query", "the red disc", "--storage", storage, "--overlay")
    assert code == 0
    for topic in ("masks", "target_mask", "tracklets", "overlay"):
        assert played_stamps(out, topic) == [START_NS + number * PERIOD_NS for number in range(10)]
        assert {message.header.frame_id for message in played_messages(out, topic)} == {"camera"}
    assert _states(out, "q1") == [QueryState.RECEIVED, QueryState.GROUNDING, QueryState.TRACKING]
    with BagReader(bag) as before, BagReader(out) as after:
        recorded = [message.stamp_ns for message in before.messages()]
        assert [message.stamp_ns for message in after.messages(["/decaf/masks"])] == recorded


def test_masks_and_confidence_on_request(play, tmp_path):
    options, sure = ("--query", "the red disc", "--confidence", "--set", "outputs.tracklet_masks=rle"), []
    _, out = play(_write(tmp_path / "bag", _camera(*range(8))), *options)
    assert played_stamps(out, "confidence") == played_stamps(out, "masks")
    for image, message in zip(played_messages(out, "confidence"), played_messages(out, "tracklets")):
        for one in message.tracklets:
            mask = decode_rle({"size": [one.mask.height, one.mask.width], "counts": one.mask.data.tobytes().decode()})
            assert mask.sum() == one.area and image.encoding == "mono8"
            sure += [np.mean(image.data.reshape(mask.shape)[mask] > 127)] if one.area else []
    assert min(sure) > 0.99


def test_the_new_bag_is_readable_without_this_package(play, tmp_path):
    _, out = play(_write(tmp_path / "bag", _camera(*range(4))), "--query", "the red disc")
    assert (out / "metadata.yaml").is_file()
    with AnyReader([out]) as reader:  # takes the definitions from the bag
        stored = reader.messages()
        read = {connection.topic: reader.deserialize(data, connection.msgtype) for connection, _, data in stored}
    assert read["/decaf/status"].query == "the red disc"
    assert read["/decaf/tracklets"].tracklets[0].query_id == "q1"


def test_recorded_queries_are_used_unless_queries_are_given(play, tmp_path):
    messages = [*_camera(*range(4)), ("/decaf/query", _query("the red disc")), *_camera(*range(4, 8))]
    messages += [("/decaf/query", _query("")), *_camera(*range(8, 10))]
    bag = _write(tmp_path / "bag", messages)
    _, out = play(bag)
    states = _states(out, "q1")[-2:] + _states(out, "q2")
    assert states == [QueryState.TRACKING, QueryState.ENDED, QueryState.CANCELLED]
    tracked = [message.query_id for message in played_messages(out, "tracklets")]
    assert tracked == [""] * 4 + ["q1"] * 4 + [""] * 2
    _, out = play(bag, "--query", "the other disc", name="other")
    assert {status.query for status in played_messages(out, "status")} == {"the other disc"}


def test_compressed_images_are_played(play, tmp_path):
    bag = _write(tmp_path / "bag", [("/camera/image/compressed", _jpeg(number)) for number in range(5)])
    code, out = play(bag, "--query", "the red disc")
    assert code == 0 and len(played_messages(out, "masks")) == 5


def test_undecodable_frames_are_counted_and_the_rest_is_played(play, tmp_path, capsys):
    truncated = ("/camera/image", _image(4, data=np.zeros(100, np.uint8)))
    bag = _write(tmp_path / "bag", [*_camera(*range(4)), truncated, *_camera(*range(5, 8))])
    code, out = play(bag, "--query", "the red disc")
    assert code == 0
    assert played_stamps(out, "masks") == [START_NS + number * PERIOD_NS for number in (0, 1, 2, 3, 5, 6, 7)]
    printed = capsys.readouterr()
    assert "frames: 7 used, 1 rejected" in printed.out
    assert printed.err.count("got 100") == 1


def test_unreadable_messages_are_rejected_and_the_rest_is_played(play, tmp_path, capsys):
    with BagWriter(tmp_path / "bag") as writer:
        for number in range(6):
            stamp = START_NS + number * PERIOD_NS
            if number == 4:
                writer.write("/decaf/query", "std_msgs/msg/String", stamp, b"\x00\x01\x00\x00\x05\x00")
                writer.write("/camera/image", "sensor_msgs/msg/Image", stamp, b"\x00\x01\x00\x00\x05\x00")
            else:
                writer.write_message("/camera/image", _image(number), stamp)
            if number == 0:
                writer.write_message("/decaf/query", _query("the red disc"), stamp)
    code, out = play(tmp_path / "bag")
    assert code == 0
    assert played_stamps(out, "masks") == [START_NS + number * PERIOD_NS for number in (0, 1, 2, 3, 5)]
    assert _states(out, "q1")[-1] == QueryState.TRACKING
    printed = capsys.readouterr()
    assert "frames: 5 used, 1 rejected" in printed.out
    assert printed.err.count("image rejected: ") == printed.err.count("query rejected: ") == 1


def test_a_failing_replay_answers_the_waiting_query(params_file, tmp_path):
    bag = _write(tmp_path / "bag", _camera(0))
    decaf = Decaf.from_config(load_config(params_file))
    queries = [TimedQuery("the red disc"), TimedQuery("too late", 99)]
    with BagReader(bag) as reader, BagWriter(tmp_path / "out") as writer:
        with pytest.raises(ValueError, match="got 'too late' at 99 s"):
            replay(decaf, reader, writer, queries)
    assert _states(tmp_path / "out", "q1") == [QueryState.RECEIVED, QueryState.CANCELLED]
    assert played_messages(tmp_path / "out", "status")[-1].text == "the bag could not be played to its end"


def test_a_bag_that_jumps_back_in_time_is_played_to_its_end(play, tmp_path, capsys):
    bag = _write(tmp_path / "bag", [*_camera(*range(6)), *_camera(*range(6))])
    code, out = play(bag, "--query", "the red disc")
    assert code == 0 and len(played_messages(out, "masks")) == 12
    assert "the stamp jumped back by 0.250 s" in capsys.readouterr().err
    answers = [state for state in _states(out, "q1") if state.is_answer]
    assert answers == [QueryState.TRACKING]


def test_a_bag_without_stamps_is_answered_the_same_each_time(play, tmp_path, capsys):
    messages = [("/camera/image", _image(number)) for number in range(10)]
    for _, message in messages:
        message.header.stamp.sec = message.header.stamp.nanosec = 0
    bag = _write(tmp_path / "bag", messages)
    stamps = []
    for name in ("first", "second"):
        code, out = play(bag, "--query", "the red disc", name=name)
        assert code == 0 and _states(out, "q1")[-1] == QueryState.TRACKING
        stamps.append(played_stamps(out, "masks"))
    # The recorded times.
    assert stamps[0] == stamps[1] == [START_NS + DELAY_NS + PERIOD_NS * number for number in range(1, 11)]
    assert capsys.readouterr().err.count("image stamps are not set (0 ns): times of arrival are used instead") == 2


def test_a_query_without_usable_images_fails_after_the_patience(play, tmp_path, capsys):
    damaged = [("/camera/image", _image(number, data=np.zeros(100, np.uint8))) for number in range(1, 40)]
    code, out = play(_write(tmp_path / "bag", [*_camera(0), *damaged]), "--query", "x", "--set", "window.patience_s=1")
    assert code == 1 and _states(out, "q1") == [QueryState.RECEIVED, QueryState.FAILED]
    assert "expected 2 key frames within 1 s (window.patience_s), got 1: 20 of 21 images" in capsys.readouterr().out


def test_a_query_waiting_at_the_end_is_answered(play, tmp_path, capsys):
    code, out = play(_write(tmp_path / "bag", _camera(0)), "--query", "the red disc")
    assert code == 0
    assert _states(out, "q1") == [QueryState.RECEIVED, QueryState.CANCELLED]
    assert "CANCELLED: the bag has ended" in capsys.readouterr().out


def test_the_summary_has_queries_answers_and_stage_times(play, tmp_path, capsys):
    play(_write(tmp_path / "bag", _camera(*range(4))), "--query", "the red disc")
    printed = capsys.readouterr().out
    assert "frames: 4 used, 0 rejected" in printed
    assert "query q1 'the red disc': TRACKING, presence 0." in printed
    assert "tracklets" in printed and " ms" in printed
    assert "4 masks" in printed


@pytest.mark.parametrize(
    "args, message",
    [
        (["--image-topic", "/nowhere"], "no image topic /nowhere"),
        (["--query", "too late", "--query-at", "99"], "got 'too late' at 99 s"),
        (["--query", "never", "--query-at", "nan", "--query", "now"], "got 'never' at nan s"),
    ],
)
def test_invalid_arguments_write_no_bag(play, tmp_path, capsys, args, message):
    code, out = play(_write(tmp_path / "bag", _camera(0, 1)), *args)
    assert code == 1 and not out.exists()
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_bag_and_an_existing_output_folder(play, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert play(tmp_path / "empty")[0] == 1
    (tmp_path / "out").mkdir()
    assert play(_write(tmp_path / "bag", _camera(0)))[0] == 1
    assert "exists already" in capsys.readouterr().err


def test_options(capsys):
    def parse(arguments):
        return _parser().parse_args(["replay", *arguments])

    options = parse(["bag", "--out", "o", "--query", "a", "--query", "b", "--query-at", "2", "--query", "c"])
    assert options.query == [("a", 0.0), ("b", 2.0), ("c", 0.0)]
    for argument, namespace in (("a/b/", "/a/b"), ("/a", "/a"), ("/", "")):
        assert parse(["bag", "--out", "o", "--namespace", argument]).namespace == namespace
    with pytest.raises(SystemExit):
        parse(["bag", "--out", "o", "--query-at", "2", "--query", "a"])
    assert "expected --query before --query-at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "not config/decaf.yaml" in " ".join(capsys.readouterr().out.split())


def _two_cameras(path: Path, *others: tuple[str, object]) -> Path:
    """A bag with two cameras, of which one has every third image only. others: messages after a third of them."""
    messages: list[tuple[str, object]] = []
    for number in range(15):
        messages.append(("/camera/wrist", _image(number)))
        if number % 3 == 0:
            messages.append(("/camera/head", _image(number, _pixels(14 - number).reshape(-1))))
        messages += others if number == 5 else ()
    return _write(path, messages)


CAMERAS = ["--camera", "wrist=/camera/wrist", "--camera", "head=/camera/head", "--set", "queries.mode=add"]


def test_two_replays_of_two_cameras_give_the_same_bytes_and_the_masks_of_each_alone(play, tmp_path):
    bag = _two_cameras(tmp_path / "bag")
    queries = ["--query", "the red disc", "--query", "the other disc", "--query-at", "0.3"]
    runs = []
    for name in ("first", "second"):
        code, out = play(bag, *CAMERAS, *queries, name=name)
        assert code == 0
        runs.append(played_bytes(out))
    assert runs[0] == runs[1]
    topics = ("masks", "target_mask", "tracklets", "heatmaps", "status", "detections", "label_info")
    with BagReader(out) as reader:
        recorded = {message.topic for message in reader.messages()}
    assert recorded == {f"/decaf/{name}/{topic}" for name in ("wrist", "head") for topic in topics}
    answered, ids = [], []
    for name in ("wrist", "head"):
        answered += [one.query_id for one in played_messages(out, f"{name}/status") if QueryState(one.state).is_answer]
        tracklets = [one for message in played_messages(out, f"{name}/tracklets") for one in message.tracklets]
        ids.append({one.id for one in tracklets})
        code, alone = play(bag, *queries, *CAMERAS[-2:], "--image-topic", f"/camera/{name}", name=f"{name}_alone")
        assert code == 0
        for topic in ("masks", "heatmaps"):
            both, one = (
                [bytes(each.data) for each in messages]
                for messages in (
                    played_messages(out, f"{name}/{topic}"),
                    played_messages(alone, topic),
                )
            )
            assert both == one and any(any(data) for data in one)
        assert played_stamps(out, f"{name}/masks") == played_stamps(alone, "masks")
    assert sorted(answered) == ["q1", "q2", "q3", "q4"] and ids[0] and ids[1] and not ids[0] & ids[1]


def test_recorded_queries_go_to_all_cameras_or_to_one(play, tmp_path, capsys):
    asked = [("/decaf/query", _query("the red disc")), ("/decaf/head/query", _query("the other disc"))]
    bag = _two_cameras(tmp_path / "bag", *asked)
    code, out = play(bag, *CAMERAS)
    assert code == 0
    texts = [{one.query_id: one.query for one in played_messages(out, f"{name}/status")} for name in ("wrist", "head")]
    assert texts == [{"q1": "the red disc"}, {"q2": "the red disc", "q3": "the other disc"}]
    printed = capsys.readouterr().out
    assert "wrist: frames: 15 used, 0 rejected" in printed and "head: frames: 5 used, 0 rejected" in printed
    assert "head: query q3 'the other disc': TRACKING" in printed and "15 wrist/masks" in printed


def test_cameras_of_the_configuration_have_their_topics_in_the_namespace(play, tmp_path, capsys):
    messages = [("/decaf/wrist/image", _image(number)) for number in range(4)]
    messages += [("/decaf/head/image/compressed", _jpeg(number)) for number in range(4)]
    with BagWriter(tmp_path / "bag") as writer:
        for place, (topic, message) in enumerate(messages):
            writer.write_message(topic, message, START_NS + place * PERIOD_NS)
    code, out = play(tmp_path / "bag", "--query", "it", "--set", "cameras=[wrist, head, rear]")
    assert code == 0 and [len(played_messages(out, f"{name}/masks")) for name in ("wrist", "head", "rear")] == [4, 4, 0]
    missing = "no images of camera rear on /decaf/rear/image or /decaf/rear/image/compressed"
    assert missing in capsys.readouterr().err
    code, out = play(tmp_path / "bag", "--image-topic", "/decaf/wrist/image", "--set", "cameras=wrist", name="one")
    assert code == 0 and len(played_messages(out, "masks")) == 4
    code, out = play(tmp_path / "bag", "--set", "cameras=rear", name="none")
    assert code == 1 and missing in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--camera", "wrist=/nowhere"], "no image topic /nowhere"),
        (["--camera", "masks"], "cameras: expected another name than image, query, masks"),
        (
            ["--camera", "a=/camera/wrist", "--camera", "b=/camera/wrist"],
            "cameras: expected a topic of its own for each",
        ),
        (["--camera", "a=/camera/wrist", "--image-topic", "/camera/head"], "either this or --image-topic, got both"),
        (["--camera", "a=/camera/wrist", "--camera", "a=/camera/head"], "cameras: expected each name once, got a, a"),
    ],
)
def test_bad_cameras_write_no_bag(play, tmp_path, capsys, args, message):
    code, out = play(_two_cameras(tmp_path / "bag"), *args)
    assert code == 1 and not out.exists() and message in capsys.readouterr().err
