"""The state of the node and its cameras as a diagnostic_msgs/DiagnosticArray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from decaf_ros.io.messages import shortened
from decaf_ros.nodes.inbox import InboxCounts
from decaf_ros.nodes.memory import gpu_bytes, resident_bytes
from decaf_ros.nodes.message_factory import time_message
from decaf_ros.nodes.namesakes import namesakes_text
from decaf_ros.online.statistics import Statistics
from decaf_ros.types import QueryEvent, QueryState

# A notice is reported as a current problem for this long.
PROBLEM_S = 10.0
# Age of the last published frame at which an active node warns: no camera, or too slow.
SILENCE_S = 2.0
# Waiting images at which the node warns, half a minute at 30 Hz; reached only with `node.drop_frames: false`.
MOST_WAITING = 1000
_MIB = 2**20


class NodeState(NamedTuple):
    """The state of the node, over all cameras.

    Attributes:
        phase: unconfigured, inactive, active or finalized.
        failure: error of the last transition; empty if it succeeded.
        left_out: topics that are not published, and why.
        stuck: a unit of work that takes too long; empty without one.
        left_behind: worker threads of earlier configurations that hang.
        namesakes: other nodes of this name.
    """

    phase: str
    failure: str = ""
    left_out: str = ""
    stuck: str = ""
    left_behind: int = 0
    namesakes: int = 0


def diagnostics_message(
    name: str, state: NodeState, streams: Mapping[str, tuple[Statistics, InboxCounts]], now_ns: int
) -> DiagnosticArray:
    """Makes a DiagnosticArray: one status of the only camera, or one of the node and one of each named camera.

    Args:
        name: fully qualified name of the node.
        state: the state of the node.
        streams: what the handlers and the inbox counted, by the names of the cameras; "" for the only one.
        now_ns: time of the node's clock, for the age of frames.
    """
    own: list[tuple[str, str]] = [("state", state.phase)]
    own += [("topics left out", state.left_out)] if state.left_out else []
    own += [("worker threads left behind", str(state.left_behind))] if state.left_behind else []
    own += [("other nodes of this name", str(state.namesakes))] if state.namesakes else []
    array = DiagnosticArray()
    array.header.stamp = time_message(now_ns)
    if "" not in streams:
        level, message = _node_health(name, state) or (DiagnosticStatus.OK, state.phase)
        cameras = ("cameras", ", ".join(streams))
        array.status.append(_status(name, "decaf", level, message, [*own, cameras, *_memory()]))
    for camera, (statistics, counts) in streams.items():
        level, message = _node_health(name, state) or _health(statistics, counts, now_ns)
        values = [*own, *_values(statistics, counts, now_ns, [] if camera else _memory())]
        array.status.append(_status(name, f"decaf {camera}".rstrip(), level, message, values))
    return array


def _status(name: str, part: str, level: bytes, message: str, values: Sequence[tuple[str, str]]) -> DiagnosticStatus:
    status = DiagnosticStatus(level=level, name=f"{name}: {part}", message=message, hardware_id=name)
    status.values = [KeyValue(key=key, value=value) for key, value in values]
    return status


def _node_health(name: str, state: NodeState) -> tuple[bytes, str] | None:
    """The health of a node that does not work, or not alone; None for one that does."""
    if state.failure or state.stuck:
        return DiagnosticStatus.ERROR, state.failure or state.stuck
    if state.namesakes:
        return DiagnosticStatus.ERROR, namesakes_text(name, state.namesakes)
    return None if state.phase == "active" else (DiagnosticStatus.WARN, state.phase)


def _health(statistics: Statistics, counts: InboxCounts, now_ns: int) -> tuple[bytes, str]:
    problem = statistics.problem
    if problem is not None and time.monotonic() - statistics.problem_at < PROBLEM_S:
        return DiagnosticStatus.ERROR if problem.level == "error" else DiagnosticStatus.WARN, problem.text
    if not counts.received:
        return DiagnosticStatus.WARN, "no image received yet"
    if counts.waiting > MOST_WAITING:
        text = (
            f"{counts.waiting} images wait in memory: the camera is faster than the node, and node.drop_frames is false"
        )
        return DiagnosticStatus.WARN, text
    age_s = (now_ns - statistics.result_ns) / 1e9
    if statistics.result_ns and age_s > SILENCE_S:
        return DiagnosticStatus.WARN, f"the last published frame is {age_s:.1f} s old"
    events = statistics.events
    waiting = next((event for event in events if event.state == QueryState.RECEIVED and event.text), None)
    if waiting is not None:  # it waits for key frames, which may never come
        return DiagnosticStatus.WARN, f"{_state_text(waiting)}: {waiting.text}"
    return DiagnosticStatus.OK, ", ".join(map(_state_text, events)) or "waiting for a query"


def _state_text(event: QueryEvent) -> str:
    return f"query {event.query.id}: {event.state.name}"


def _values(
    statistics: Statistics, counts: InboxCounts, now_ns: int, memory: Sequence[tuple[str, str]]
) -> list[tuple[str, str]]:
    event, stage, problem = statistics.event, statistics.stage, statistics.problem
    waiting = counts.received - counts.dropped - statistics.used - statistics.rejected
    return [
        ("frames received", str(counts.received)),
        ("frames used", str(statistics.used)),
        ("frames dropped", str(counts.dropped)),
        ("frames rejected", str(statistics.rejected)),
        ("frames waiting", str(waiting)),
        ("age of the last frame (s)", f"{(now_ns - statistics.result_ns) / 1e9:.3f}" if statistics.result_ns else ""),
        ("queries", str(statistics.queries)),
        ("query id", event.query.id if event else ""),
        ("query", shortened(event.query.text) if event else ""),
        ("query state", event.state.name if event else ""),
        ("query answer", event.text if event else ""),
        *((f"query {one.query.id}", f"{one.state.name}: {shortened(one.query.text)}") for one in statistics.live),
        ("targets", str(statistics.targets)),
        *_space(statistics),
        ("window prepared for a question", f"{statistics.ready:.0%}"),
        ("last stage", f"{stage.stage} ({stage.progress:.0%})" if stage else ""),
        ("decoding (ms a frame)", f"{statistics.decode_ms:.2f}"),
        ("tracking (ms a frame)", f"{statistics.track_ms:.2f}"),
        ("publishing (ms a frame)", f"{statistics.publish_ms:.2f}"),
        *((f"last grounding: {name} (ms)", f"{ms:.1f}") for name, ms in statistics.stage_ms),
        *memory,
        ("last notice", f"{problem.level}: {problem.text}" if problem else ""),
    ]


def _space(statistics: Statistics) -> list[tuple[str, str]]:
    if statistics.located is None:
        return []
    return [("frames with 3D", str(statistics.located)), ("frames without 3D", str(statistics.unlocated))]


def _memory() -> list[tuple[str, str]]:
    """The memory of the process."""
    return [
        ("memory (MiB)", f"{resident_bytes() / _MIB:.0f}"),
        *((f"GPU memory {kind} (MiB)", f"{size / _MIB:.0f}") for kind, size in gpu_bytes()),
    ]
