"""Everything that the node published during a demo, read from the recorded bag."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.io.bags import BagReader
from decaf_ros.io.images import message_to_rgb
from decaf_ros.io.messages import stamp_ns as message_stamp_ns
from decaf_ros.io.video import VideoWriter
from decaf_ros.io.viz import heat_overlay
from decaf_ros.types import QueryState
from decaf_tabletop.demo.clips import Clip

_COUNTS = ("received", "used", "dropped", "rejected", "waiting")

Header = tuple[int, str]


class State(NamedTuple):
    """A change of a query's state. clip_s: time of the newest frame. wall_s: since the query was received. presence: -1
    where there is none."""

    query_id: str
    query: str
    state: QueryState
    text: str
    clip_s: float
    wall_s: float
    presence: float
    stage_ms: tuple[tuple[str, float], ...]
    category: str = ""


@dataclass
class Recording:
    """What the node published. Headers are (stamp in ns, frame_id). counts: of frames, by the last diagnostics. By
    stamp: labels, (H, W) uint8 from `masks`; tracked, the id of the query whose targets they are, or ""; overlays,
    (H, W, 3) uint8, RGB. heatmaps: drawn over their frames, by query and stamp; of several the first."""

    published: list[Header] = field(default_factory=list)
    headers: dict[str, Counter[Header]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    masked: int = 0
    frame_ms: dict[str, str] = field(default_factory=dict)
    labels: dict[int, np.ndarray] = field(default_factory=dict)
    tracked: dict[int, str] = field(default_factory=dict)
    overlays: dict[int, np.ndarray] = field(default_factory=dict)
    heatmaps: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @property
    def clip_s(self) -> float:
        return (self.published[-1][0] - self.published[0][0]) / 1e9


def read(clip: Clip, outputs: Path, namespace: str, video: Path) -> Recording:
    """Reads both bags, and writes the overlay video as it goes."""
    recording = Recording()
    with BagReader(clip.bag) as bag:
        images = {frame.stamp_ns: frame for frame in bag.frames(clip.topic)}
    start_ns = next(iter(images))
    played = [frame for frame in images.values() if frame.stamp_ns - start_ns <= clip.seconds * 1e9]
    recording.published = [(frame.stamp_ns, frame.frame_id) for frame in played]
    received_at: dict[str, int] = {}
    with BagReader(outputs) as bag, VideoWriter(video) as film:
        for recorded in bag.messages():
            name = recorded.topic.removeprefix(f"{namespace}/")
            message = bag.deserialize(recorded)
            if name == "/diagnostics":
                _take_diagnostics(message, recording)
                continue
            stamp_ns = message_stamp_ns(message.header.stamp)
            header = stamp_ns, message.header.frame_id
            recording.headers.setdefault(name, Counter())[header] += 1
            if name == "status":
                received_at.setdefault(message.query_id, recorded.stamp_ns)
                wall_s = (recorded.stamp_ns - received_at[message.query_id]) / 1e9
                recording.states.append(_state(message, (stamp_ns - start_ns) / 1e9, wall_s))
            elif name == "overlay":
                recording.overlays[stamp_ns] = message_to_rgb(message)
                film.write(recording.overlays[stamp_ns], stamp_ns)
            elif name == "heatmaps" and stamp_ns in images and recording.states:
                values = message.data.view(np.float32).reshape(message.height, message.width)
                asked = recording.states[-1]
                drawn = heat_overlay(images[stamp_ns].image, values, asked.query)
                recording.heatmaps.setdefault((asked.query_id, stamp_ns), drawn)
            elif name == "tracklets":
                recording.tracked[stamp_ns] = message.query_id
            elif name == "masks":
                recording.labels[stamp_ns] = message.data.reshape(message.height, message.step)[:, : message.width]
            elif name == "target_mask":
                recording.masked += bool(message.data.any())
    return recording


def _state(message: Any, clip_s: float, wall_s: float) -> State:
    return State(
        message.query_id,
        message.query,
        QueryState(message.state),
        message.text,
        clip_s,
        wall_s,
        message.presence,
        tuple((stage.stage, stage.milliseconds) for stage in message.stage_times),
        message.category,
    )


def _take_diagnostics(message: Any, recording: Recording) -> None:
    for status in message.status:
        values = {entry.key: entry.value for entry in status.values}
        if values.get("state") == "active":
            recording.counts = {name: int(values[f"frames {name}"]) for name in _COUNTS}
            recording.frame_ms = {key: value for key, value in values.items() if key.endswith("(ms a frame)")}
