"""The diagnostics message: values, level and text."""
# ruff: noqa: E402

from __future__ import annotations

import pytest

pytest.importorskip("diagnostic_msgs")
pytest.importorskip("decaf_ros.msg")

from diagnostic_msgs.msg import DiagnosticStatus

from decaf_ros.io.messages import stamp_ns
from decaf_ros.nodes.diagnostics import MOST_WAITING, NodeState, diagnostics_message
from decaf_ros.nodes.inbox import InboxCounts
from decaf_ros.online.statistics import Statistics
from decaf_ros.types import Notice, Query, QueryEvent, QueryState, StageEvent

pytestmark = pytest.mark.ros

NOW_NS = 1_700_000_000_500_000_000
QUERY = Query("q3", "the mug")


def _status(
    phase: str = "active", failure: str = "", received: int = 10, waiting: int = 1, **changes
) -> DiagnosticStatus:
    statistics = Statistics(**({"used": 6, "rejected": 1, "result_ns": NOW_NS - 250_000_000} | changes))
    counts = InboxCounts(received, dropped=2, waiting=waiting)
    message = diagnostics_message("/decaf/segmenter", NodeState(phase, failure), {"": (statistics, counts)}, NOW_NS)
    assert stamp_ns(message.header.stamp) == NOW_NS
    (status,) = message.status
    return status


def test_the_values_are_complete_and_add_up():
    event = QueryEvent(QUERY, QueryState.TRACKING, "tracking 1 target")
    status = _status(
        event=event, queries=3, targets=1, stage=StageEvent(QUERY, "points", 0.5), stage_ms=(("points", 12.34),)
    )
    values = {value.key: value.value for value in status.values}
    frames = {name: int(values[f"frames {name}"]) for name in ("received", "used", "dropped", "rejected", "waiting")}
    assert frames == {"received": 10, "used": 6, "dropped": 2, "rejected": 1, "waiting": 1}
    assert values["age of the last frame (s)"] == "0.250"
    assert (values["query id"], values["query"], values["query state"]) == ("q3", "the mug", "TRACKING")
    assert (values["query answer"], values["queries"], values["targets"]) == ("tracking 1 target", "3", "1")
    assert (values["last grounding: points (ms)"], values["last stage"]) == ("12.3", "points (50%)")
    assert int(values["memory (MiB)"]) > 10
    assert (status.name, status.hardware_id) == ("/decaf/segmenter: decaf", "/decaf/segmenter")


def test_a_long_query_is_cut():
    status = _status(event=QueryEvent(Query("q1", "long " * 100_000), QueryState.FAILED))
    (text,) = (value.value for value in status.values if value.key == "query")
    assert text.startswith("long long") and len(text) < 250


def _noticed(level: str) -> dict:
    statistics = Statistics()
    statistics.note(Notice(level, "something"))
    return {"problem": statistics.problem, "problem_at": statistics.problem_at}


@pytest.mark.parametrize(
    "changes, level, message",
    [
        ({}, DiagnosticStatus.OK, "waiting for a query"),
        ({"event": QueryEvent(QUERY, QueryState.GROUNDING)}, DiagnosticStatus.OK, "query q3: GROUNDING"),
        (
            {"event": QueryEvent(QUERY, QueryState.RECEIVED, "waiting for key frames: 1 of 4")},
            DiagnosticStatus.WARN,
            "query q3: RECEIVED: waiting for key frames: 1 of 4",
        ),
        ({"phase": "inactive"}, DiagnosticStatus.WARN, "inactive"),
        ({"phase": "unconfigured", "failure": "no model"}, DiagnosticStatus.ERROR, "no model"),
        ({"received": 0, "used": 0, "result_ns": 0}, DiagnosticStatus.WARN, "no image received yet"),
        (
            {"result_ns": NOW_NS - 3_000_000_000},
            DiagnosticStatus.WARN,
            "the last published frame is 3.0 s old",
        ),
        ({"waiting": MOST_WAITING}, DiagnosticStatus.OK, "waiting for a query"),
        (
            {"waiting": MOST_WAITING + 1},
            DiagnosticStatus.WARN,
            "1001 images wait in memory: the camera is faster than the node, and node.drop_frames is false",
        ),
        (_noticed("warn") | {"problem_at": 0.0}, DiagnosticStatus.OK, "waiting for a query"),
    ],
)
def test_level_and_message(changes, level, message):
    status = _status(**changes)
    assert (status.level, status.message) == (level, message)


@pytest.mark.parametrize("level, expected", [("warn", DiagnosticStatus.WARN), ("error", DiagnosticStatus.ERROR)])
def test_a_recent_notice_sets_the_level(level, expected):
    status = _status(**_noticed(level))
    assert (status.level, status.message) == (expected, "something")


def test_each_named_camera_has_a_status_beside_that_of_the_node():
    wrist = Statistics(used=8, result_ns=NOW_NS - 250_000_000, event=QueryEvent(QUERY, QueryState.TRACKING))
    streams = {"wrist": (wrist, InboxCounts(10, dropped=2)), "head": (Statistics(), InboxCounts())}
    message = diagnostics_message("/decaf/segmenter", NodeState("active"), streams, NOW_NS)
    expected = [
        ("/decaf/segmenter: decaf", DiagnosticStatus.OK, "active"),
        ("/decaf/segmenter: decaf wrist", DiagnosticStatus.OK, "query q3: TRACKING"),
        ("/decaf/segmenter: decaf head", DiagnosticStatus.WARN, "no image received yet"),
    ]
    assert [(one.name, one.level, one.message) for one in message.status] == expected
    node, camera, _ = ({value.key: value.value for value in one.values} for one in message.status)
    assert node["cameras"] == "wrist, head" and int(node["memory (MiB)"]) > 10 and "frames used" not in node
    assert (camera["frames used"], camera["frames received"]) == ("8", "10") and "memory (MiB)" not in camera
    message = diagnostics_message("/decaf/segmenter", NodeState("unconfigured", "no model"), streams, NOW_NS)
    assert {(one.level, one.message) for one in message.status} == {(DiagnosticStatus.ERROR, "no model")}


def test_times_are_moving_averages():
    statistics = Statistics()
    statistics.average("track_ms", 0.010)
    assert statistics.track_ms == pytest.approx(10.0)
    statistics.average("track_ms", 0.020)
    assert statistics.track_ms == pytest.approx(11.0)
