"""Checks of a recorded demo, and its one-page summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.demo.verdicts import Verdict

PER_FRAME = ("masks", "target_mask", "tracklets")


class Check(NamedTuple):
    """A condition that must hold. detail: the numbers behind the result."""

    text: str
    holds: bool
    detail: str


def checks(recording: Recording, asked: list[str], node_exit: int) -> list[Check]:
    """Checks the guarantees of the node's topics. asked: the queries in order, with empty ones."""
    counts, headers = recording.counts, recording.headers
    used, received = counts["used"], counts["received"]
    results = [
        Check(
            "frames: used + dropped + rejected = received, none waiting",
            used + counts["dropped"] + counts["rejected"] == received and counts["waiting"] == 0 and used > 0,
            f"{used} + {counts['dropped']} + {counts['rejected']} = {received}, {counts['waiting']} waiting",
        )
    ]
    frames = set(recording.published)
    masks = headers.get("masks", Counter())
    for name in PER_FRAME:
        topic = headers.get(name, Counter())
        repeated = sum(count > 1 for count in topic.values())
        unknown = len(set(topic) - frames)
        results.append(
            Check(
                f"`{name}`: exactly one for each used frame, with that frame's stamp and frame_id",
                len(topic) == used and repeated == 0 and unknown == 0 and set(topic) == set(masks),
                f"{sum(topic.values())} messages for {used} used frames, {repeated} repeated, {unknown} unknown",
            )
        )
    answers = Counter(state.query_id for state in recording.states if state.state.is_answer)
    results.append(
        Check(
            "every query got exactly one answer",
            len(answers) == len(asked) and set(answers.values()) == {1},
            f"{len(asked)} asked, answers: {', '.join(f'{name} {count}' for name, count in answers.items()) or 'none'}",
        )
    )
    results.append(Check("the node ended with exit code 0", node_exit == 0, f"exit code {node_exit}"))
    return results


def answers_check(verdicts: Sequence[Verdict], due: Sequence[str]) -> Check:
    """Checks that every question in `due` (see `Clip`) has a right answer."""
    answered = {one.text for one in verdicts}
    wrong = [f"{one.query_id} {one.text}" for one in verdicts if not one.right]
    wrong += [f"{text} (not answered)" for text in due if text not in answered]
    count = f"{sum(one.right for one in verdicts)} of {len(due)}"
    return Check("every answer is right", not wrong, ", ".join([count, *wrong]))


def summary(
    recording: Recording, results: list[Check], facts: dict[str, str], remark: str, verdicts: Sequence[Verdict] = ()
) -> str:
    """One page of Markdown. remark: the first paragraph. facts: a list below it, in order."""
    lines = ["# decaf_ros demo", "", remark, ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    if verdicts:
        lines += [
            "",
            "## Answers and ground truth",
            "",
            "J: region similarity (IoU) of the mask and the ground truth, mean over the tracked frames.",
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
        ("with a target in `target_mask`", recording.frames_with_target),
    ]
    lines += [f"| {name} | {count} |" for name, count in rows]
    if published > counts["received"]:
        lines += ["", f"{published - counts['received']} frames never reached the node's callback."]
    grounded = [state for state in recording.states if state.stage_ms]
    if grounded:
        stages = list(dict.fromkeys(stage for state in grounded for stage, _ in state.stage_ms))
        header = "".join(f" {state.query_id} |" for state in grounded)
        lines += ["", "## Stage times (ms)", "", f"| Stage |{header}", "|---|" + "---|" * len(grounded)]
        for stage in stages:
            cells = "".join(f" {dict(state.stage_ms).get(stage, 0):.0f} |" for state in grounded)
            lines.append(f"| {stage} |{cells}")
        total = "".join(f" {sum(ms for _, ms in state.stage_ms):.0f} |" for state in grounded)
        lines += [f"| **all** |{total}", ""]
    lines += ["Mean times per frame: " + ", ".join(f"{key} {value}" for key, value in recording.frame_ms.items())]
    lines += ["", "## Checks", ""]
    lines += [f"- {'ok' if check.holds else '**FAILED**'}: {check.text} ({check.detail})" for check in results]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Cleans a model's answer for one cell of a Markdown table."""
    return " ".join("".join(" " if char in "|`<>*\\" else char for char in text).split())


def log_checks(results: list[Check], log: Callable[[str], None]) -> bool:
    """Logs every check and returns whether all hold."""
    for check in results:
        log(f"  {'ok    ' if check.holds else 'FAILED'}  {check.text}: {check.detail}")
    return all(check.holds for check in results)
