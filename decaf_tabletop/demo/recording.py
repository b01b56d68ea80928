"""The node's output during a demo, read from the recorded bag."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.io.bags import BagReader
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.images import message_to_rgb
from decaf_ros.io.messages import stamp_ns as message_stamp_ns
from decaf_ros.types import QueryState
from decaf_tabletop.demo.clip import STORY
from decaf_tabletop.world.bag import COMPRESSED_TOPIC

_COUNTS = ("received", "used", "dropped", "rejected", "waiting")

Header = tuple[int, str]


class State(NamedTuple):
    """A change of a query's state.

    Attributes:
        clip_s: clip time of the newest frame.
        wall_s: seconds since the query was received.
        presence: presence score, -1 if there is none.
    """

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
    """The camera's images and the node's output. A header is (stamp in ns, frame_id); dicts keyed by int use the stamp.

    Attributes:
        published: headers of the played images.
        headers: number of messages per topic and header.
        states: state changes in order.
        counts: frame counts of the last diagnostics.
        frames_with_target: number of non-empty `target_mask` messages.
        frame_ms: mean times per frame of the last diagnostics.
        images: (H, W, 3) uint8, RGB, the whole clip.
        labels: (H, W) uint8 from `masks`.
        tracked: id of the tracked query, "" if none.
        overlays: (H, W, 3) uint8, RGB.
        heatmaps: (H, W) float32 in [0, 1], by query id and stamp; the first one if a key frame has several.
    """

    published: list[Header] = field(default_factory=list)
    headers: dict[str, Counter[Header]] = field(default_factory=dict)
    states: list[State] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    frames_with_target: int = 0
    frame_ms: dict[str, str] = field(default_factory=dict)
    images: dict[int, np.ndarray] = field(default_factory=dict)
    labels: dict[int, np.ndarray] = field(default_factory=dict)
    tracked: dict[int, str] = field(default_factory=dict)
    overlays: dict[int, np.ndarray] = field(default_factory=dict)
    heatmaps: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    @property
    def clip_s(self) -> float:
        """Length of the played part."""
        return (self.published[-1][0] - self.published[0][0]) / 1e9

    def clip_time_s(self, stamp_ns: int) -> float:
        """Seconds since the clip's first image."""
        return (stamp_ns - self.published[0][0]) / 1e9


def read(seconds: float, outputs: Path, namespace: str, video: Path) -> Recording:
    """Reads the clip's first `seconds` and the bag `outputs`, and writes the overlay images as a video."""
    recording = Recording()
    with BagReader(STORY) as bag:
        frames = list(bag.frames(COMPRESSED_TOPIC))
    start_ns = frames[0].stamp_ns
    recording.images = {frame.stamp_ns: frame.image for frame in frames}
    recording.published = [
        (frame.stamp_ns, frame.frame_id) for frame in frames if frame.stamp_ns - start_ns <= seconds * 1e9
    ]
    received_at: dict[str, int] = {}
    with BagReader(outputs) as bag, VideoWriter(video) as writer:
        for recorded in bag.messages():
            name = recorded.topic.removeprefix(f"{namespace}/")
            message = bag.deserialize(recorded)
            if name == "/diagnostics":
                _read_diagnostics(message, recording)
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
                writer.write(recording.overlays[stamp_ns], stamp_ns)
            elif name == "heatmaps" and stamp_ns in recording.images and recording.states:
                values = message.data.view(np.float32).reshape(message.height, message.width)
                recording.heatmaps.setdefault((recording.states[-1].query_id, stamp_ns), values)
            elif name == "tracklets":
                recording.tracked[stamp_ns] = message.query_id
            elif name == "masks":
                recording.labels[stamp_ns] = message.data.reshape(message.height, message.step)[:, : message.width]
            elif name == "target_mask":
                recording.frames_with_target += bool(message.data.any())
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


def _read_diagnostics(message: Any, recording: Recording) -> None:
    for status in message.status:
        values = {entry.key: entry.value for entry in status.values}
        if values.get("state") == "active":
            recording.counts = {name: int(values[f"frames {name}"]) for name in _COUNTS}
            recording.frame_ms = {key: value for key, value in values.items() if key.endswith("(ms a frame)")}
