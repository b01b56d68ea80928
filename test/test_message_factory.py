"""Conversion of ROS messages to frames and of outputs to ROS messages."""
# ruff: noqa: E402

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("decaf_ros.msg")

from sensor_msgs.msg import CompressedImage, Image

from decaf_ros.io.messages import frame_from_message, header, stamp_ns, topic_messages
from decaf_ros.msg import QueryStatus, Tracklet
from decaf_ros.nodes.message_factory import make_message, time_message
from decaf_ros.types import (
    Frame,
    FrameResult,
    Heatmap,
    Keypoint,
    Presence,
    Query,
    QueryEvent,
    QueryState,
    Target,
    TargetState,
    TrackletScores,
)

pytestmark = pytest.mark.ros

STAMP_NS = 1_700_000_123_456_789_012
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
FRAME = Frame(RGB, STAMP_NS, "camera_optical", 7)


def _messages(output) -> dict:
    return dict(topic_messages(make_message, output))


def _message(pixels: np.ndarray, encoding: str, padding: int = 0, **fields) -> Image:
    rows = np.pad(pixels.reshape(len(pixels), -1).view(np.uint8), ((0, 0), (0, padding)), constant_values=99)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1])
    message.header = header(make_message, STAMP_NS, "camera_optical")
    message.data = array.array("B", rows.tobytes())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def test_a_frame_keeps_pixels_stamp_and_frame_id():
    frame = frame_from_message(_message(RGB[:, :, ::-1].copy(), "bgr8", padding=5), index=3)
    assert np.array_equal(frame.image, RGB)
    assert (frame.stamp_ns, frame.frame_id, frame.index) == (STAMP_NS, "camera_optical", 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"data": array.array("B", bytes(71))}, "expected 72 bytes of data (4 rows of step 18), got 71"),
        ({"step": 17}, "expected a step of at least 18 bytes"),
        ({"step": 400}, "expected 1600 bytes"),
        ({"encoding": "rgb9"}, "got 'rgb9'"),
        ({"encoding": "32FC1"}, "got '32FC1'"),
        ({"height": 0}, "got 0 x 6"),
    ],
)
def test_an_inconsistent_image_raises_with_expected_and_received_values(fields, message):
    with pytest.raises(ValueError) as caught:
        frame_from_message(_message(RGB, **{"encoding": "rgb8"} | fields), 0)
    assert message in str(caught.value)


def test_a_compressed_image_is_decoded_and_a_truncated_one_raises():
    picture = cv2.resize(RGB, (64, 48))
    data = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
    message = CompressedImage(format="rgb8; png compressed bgr8", data=array.array("B", data))
    message.header = header(make_message, STAMP_NS, "c")
    assert np.array_equal(frame_from_message(message, 0).image, picture)
    message.data = array.array("B", data[: len(data) // 2])
    with pytest.raises(ValueError, match="expected a whole image"):
        frame_from_message(message, 0)


@pytest.mark.parametrize("nanoseconds", [0, 1, STAMP_NS, (2**31 - 1) * 10**9 + 999_999_999])
def test_stamps_are_exact_to_the_nanosecond(nanoseconds):
    assert stamp_ns(time_message(nanoseconds)) == nanoseconds


def _target(target_id: int, label: int, mask: np.ndarray, state: TargetState = TargetState.TRACKED) -> Target:
    scores = TrackletScores(0.5, 0.75, -2.5, -0.4166)
    return Target(target_id, label, ("q1",), "mug", state, mask, scores, STAMP_NS - 5)


def _result() -> FrameResult:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    hidden = np.zeros((4, 6), bool)
    targets = (_target(12, 2, mask), _target(300, 255, hidden, TargetState.OCCLUDED))
    return FrameResult(FRAME, np.where(mask, 2, 0).astype(np.uint8), (Query("q1", "the mug"),), targets)


def test_masks_hold_labels_and_the_target_mask_their_union():
    messages = _messages(_result())
    for message, value in ((messages["masks"], 2), (messages["target_mask"], 255)):
        assert (message.encoding, message.height, message.width, message.step) == ("mono8", 4, 6, 6)
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (1_700_000_123, 456_789_012)
        assert message.header.frame_id == "camera_optical"
        assert np.array_equal(np.frombuffer(message.data, np.uint8).reshape(4, 6), np.where(_result().labels, value, 0))


def test_tracklets_have_box_and_scores_of_each_target():
    message = _messages(_result())["tracklets"]
    assert stamp_ns(message.header.stamp) == STAMP_NS
    assert (message.header.frame_id, message.query_id, message.query) == ("camera_optical", "q1", "the mug")
    seen, hidden = message.tracklets
    assert (seen.id, seen.label, seen.state, seen.category) == (12, 2, Tracklet.STATE_TRACKED, "mug")
    assert (seen.box.x_offset, seen.box.y_offset, seen.box.width, seen.box.height) == (2, 1, 3, 2)
    assert (seen.area, seen.centroid_x, seen.centroid_y) == (6, 3.0, 1.5)
    assert (seen.attention, seen.iou, seen.consistency) == (0.5, 0.75, -2.5)
    assert stamp_ns(seen.source_stamp) == STAMP_NS - 5
    assert (hidden.id, hidden.label, hidden.state, hidden.area) == (300, 255, Tracklet.STATE_OCCLUDED, 0)


def test_without_targets_the_array_and_the_mask_are_empty():
    result = FrameResult(FRAME, np.zeros((4, 6), np.uint8))
    message = _messages(result)["tracklets"]
    assert (message.tracklets, message.query_id) == ([], "")
    assert not any(_messages(result)["masks"].data)


def test_a_heatmap_is_32fc1():
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    message = _messages(Heatmap(FRAME, Query("q1", "x"), values))["heatmaps"]
    assert (message.encoding, message.step) == ("32FC1", 24)
    assert np.array_equal(np.frombuffer(message.data, np.float32).reshape(4, 6), values)


def _event(**changes) -> QueryEvent:
    fields = {
        "query": Query("q4", "the mug"),
        "state": QueryState.TRACKING,
        "text": "tracking 1 target",
        "stamp_ns": STAMP_NS,
        "frame_id": "camera_optical",
        "category": "mug",
        "presence": Presence(0.5, 0.125, 0.1875, 0.25, 0.375, 0.625, 0.75, 0.875),
        "window_start_ns": STAMP_NS - 10**9,
        "window_end_ns": STAMP_NS - 1,
        "stage_ms": (("points", 1.5), ("tracklets", 20.0)),
        "target_ids": (3, 5),
        "keypoints": (Keypoint(STAMP_NS - 1, 10.5, 3.25, 0.5),),
    }
    return QueryEvent(**(fields | changes))


def test_a_status_has_all_fields_of_the_event():
    message = _messages(_event())["status"]
    assert (message.query_id, message.query, message.state) == ("q4", "the mug", QueryStatus.TRACKING)
    assert (message.text, message.category, message.presence) == ("tracking 1 target", "mug", 0.5)
    parts = ("contrast", "separation", "consistency", "agreement", "iou", "object", "asked")
    values = [getattr(message, f"presence_{part}") for part in parts]
    assert values == [0.125, 0.1875, 0.25, 0.375, 0.625, 0.75, 0.875]
    assert stamp_ns(message.window_start) == STAMP_NS - 10**9
    assert [(stage.stage, stage.milliseconds) for stage in message.stage_times] == [("points", 1.5), ("tracklets", 20)]
    assert list(message.tracklet_ids) == [3, 5]
    assert (message.keypoints[0].x, message.keypoints[0].y, message.keypoints[0].score) == (10.5, 3.25, 0.5)
    nothing = _messages(_event(presence=None))["status"]
    assert (nothing.presence, nothing.presence_asked) == (-1.0, -1.0)


@pytest.mark.parametrize("state, length", [(QueryState.RECEIVED, 5000), (QueryState.FAILED, 221)])
def test_only_a_failed_query_is_shortened(state, length):
    query = _messages(_event(query=Query("q1", "mug !" * 1000), state=state))["status"].query
    assert len(query) == length and query.startswith("mug !mug !")


@pytest.mark.parametrize("state", list(QueryState))
def test_states_equal_the_constants_of_the_message(state):
    assert getattr(QueryStatus, state.name) == state


@pytest.mark.parametrize("state", list(TargetState))
def test_target_states_equal_the_constants_of_the_message(state):
    assert getattr(Tracklet, f"STATE_{state.name}") == state
