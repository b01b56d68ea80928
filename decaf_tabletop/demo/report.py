"""Checks of the node's promises on a recorded demo, and its one-page summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.demo.verdicts import Verdict

PER_FRAME = ("masks", "target_mask", "tracklets")


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
