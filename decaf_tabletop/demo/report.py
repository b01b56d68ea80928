"""What the demo's output bag says, the node's promises checked, and a summary of one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.io.bags import BagReader
from decaf_ros.io.images import message_to_rgb
from decaf_ros.io.video import VideoWriter
from decaf_ros.io.viz import heat_overlay
from decaf_ros.types import QueryState
from decaf_tabletop.demo.clips import Clip
from decaf_tabletop.demo.verdicts import Verdict

PER_FRAME = ("masks", "target_mask", "tracklets")
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
            header = _header(message)
            stamp_ns = header[0]
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


def _header(message: Any) -> Header:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec, message.header.frame_id


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


class Check(NamedTuple):
    """Something that must hold. found: what was counted."""

    text: str
    holds: bool
    found: str


def checks(recording: Recording, asked: list[str], node_exit: int) -> list[Check]:
    """Every promise that the node makes about these messages. asked: the queries in order, empty ones too."""
    counts, headers = recording.counts, recording.headers
    used, received = counts["used"], counts["received"]
    found = [
        Check(
            "frames: used + dropped + rejected = received, none waiting",
            used + counts["dropped"] + counts["rejected"] == received and counts["waiting"] == 0 and used > 0,
            f"{used} + {counts['dropped']} + {counts['rejected']} = {received}, {counts['waiting']} waiting",
        )
    ]
    frames = set(recording.published)
    masks = headers.get("masks", Counter())
    for name in PER_FRAME:
        seen = headers.get(name, Counter())
        twice = sum(count > 1 for count in seen.values())
        strange = len(set(seen) - frames)
        found.append(
            Check(
                f"`{name}`: exactly one for each used frame, with that frame's stamp and frame_id",
                len(seen) == used and twice == 0 and strange == 0 and set(seen) == set(masks),
                f"{sum(seen.values())} messages for {used} used frames, {twice} headers twice, {strange} of no frame",
            )
        )
    answers = Counter(state.query_id for state in recording.states if state.state.is_answer)
    found.append(
        Check(
            "every query got exactly one answer",
            len(answers) == len(asked) and set(answers.values()) == {1},
            f"{len(asked)} asked, answers: {', '.join(f'{name} {count}' for name, count in answers.items()) or 'none'}",
        )
    )
    found.append(Check("the node ended with exit code 0", node_exit == 0, f"exit code {node_exit}"))
    return found


def answers_check(verdicts: Sequence[Verdict], due: Sequence[str]) -> Check:
    """Whether every question that was due has its answer, and that is right. due: as in `Clip`."""
    answered = {one.text for one in verdicts}
    wrong = [f"{one.query_id} {one.text}" for one in verdicts if not one.right]
    wrong += [f"{text} (not answered)" for text in due if text not in answered]
    count = f"{sum(one.right for one in verdicts)} of {len(due)}"
    return Check("every answer is right", not wrong, ", ".join([count, *wrong]))


def summary(
    recording: Recording, found: list[Check], facts: dict[str, str], remark: str, verdicts: Sequence[Verdict] = ()
) -> str:
    """Markdown, one page. facts: what was run, in order. remark: what to know about it first."""
    lines = ["# decaf_ros demo", "", remark, ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    if verdicts:
        lines += [
            "",
            "## Answers and the truth",
            "",
            "J: region similarity (IoU) of what was masked and what was meant, mean over the frames on which the query",
            "was tracked.",
            "",
            "| Query | Meant | Answer | Category | Presence | Masked | J | Frames | |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {one.query_id}: {_cell(one.text)} ({one.kind}) | {one.meant or 'nothing'} | {one.state.name} "
            f"| {_cell(one.category)} | {'' if one.presence < 0 else f'{one.presence:.2f}'} "
            f"| {one.masked or 'nothing'} | {'' if one.j is None else f'{one.j:.2f}'} | {one.frames} "
            f"| {'right' if one.right else '**WRONG**'} |"
            for one in verdicts
        ]
    lines += ["", "## States", "", "| Query | Clip time | After asking | State | Text |", "|---|---|---|---|---|"]
    for state in recording.states:
        clip = f"{state.clip_s:.2f} s" if 0 <= state.clip_s <= recording.clip_s else ""
        text = _cell(state.text) + (f" (presence {state.presence:.2f})" if state.presence >= 0 else "")
        lines.append(
            f"| {state.query_id}: {_cell(state.query) or '(empty)'} | {clip} | {state.wall_s:.2f} s "
            f"| {state.state.name} | {text} |"
        )
    lines += ["", "## Frames", "", "| | Frames |", "|---|---|"]
    published, counts = len(recording.published), recording.counts
    rows = [
        ("published by the camera", published),
        ("received by the node", counts["received"]),
        ("used", counts["used"]),
        ("dropped for a newer one", counts["dropped"]),
        ("rejected", counts["rejected"]),
        *((f"`{name}` in the bag", sum(recording.headers.get(name, Counter()).values())) for name in PER_FRAME),
        ("with a target in `target_mask`", recording.masked),
    ]
    lines += [f"| {name} | {count} |" for name, count in rows]
    if published > counts["received"]:
        lines += [
            "",
            f"{published - counts['received']} frames never reached the node's callback: best-effort, depth 1. "
            "A newer image replaced them in the middleware.",
        ]
    grounded = [state for state in recording.states if state.stage_ms]
    if grounded:
        stages = list(dict.fromkeys(stage for state in grounded for stage, _ in state.stage_ms))
        heads = "".join(f" {state.query_id} |" for state in grounded)
        lines += ["", "## Stage times (ms)", "", f"| Stage |{heads}", "|---|" + "---|" * len(grounded)]
        for stage in stages:
            cells = "".join(f" {dict(state.stage_ms).get(stage, 0):.0f} |" for state in grounded)
            lines.append(f"| {stage} |{cells}")
        total = "".join(f" {sum(ms for _, ms in state.stage_ms):.0f} |" for state in grounded)
        lines += [f"| **all** |{total}", ""]
    lines += ["A frame (recent mean): " + ", ".join(f"{key} {value}" for key, value in recording.frame_ms.items())]
    lines += ["", "## Checks", ""]
    lines += [f"- {'ok' if check.holds else '**FAILED**'}: {check.text} ({check.found})" for check in found]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """On one line of a Markdown table; what a random model says may hold anything."""
    return " ".join("".join(" " if char in "|`<>*\\" else char for char in text).split())


def say_checks(found: list[Check], say: Callable[[str], None]) -> bool:
    """Prints every check; whether all hold."""
    for check in found:
        say(f"  {'ok    ' if check.holds else 'FAILED'}  {check.text}: {check.found}")
    return all(check.holds for check in found)
