"""The command `decaf compare`: where two results of one input differ, with an exit status for release gates."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from decaf_ros.cli.clips import ClipSource
from decaf_ros.comparison.evaluations import CaseDifference, compare_reports, is_report, overall, read_report
from decaf_ros.io.files import write_text

if TYPE_CHECKING:
    from decaf_ros.comparison.differences import Differences

# A threshold does not hold. 1 is for errors, 2 for bad usage.
EXCEEDED = 3
_WORST = 8
_FILES = ("index.html", "comparison.json")
_OF_RESULTS = ("min_iou", "min_frame_iou", "max_id_changes", "max_presence_change", "max_missing_frames")


class Threshold(NamedTuple):
    """A threshold: whether it holds, and the numbers."""

    text: str
    holds: bool


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `compare` to the commands of `decaf`."""
    parser = commands.add_parser(
        "compare",
        help="compare two results of one input",
        description="Compares two results of one input: masks frame by frame, ids, answers, versions, models and "
        "configurations. A and B are folders of decaf segment, bags with the node's outputs (as of decaf replay) "
        f"or reports of decaf eval. Exit status: 0, {EXCEEDED} if a threshold does not hold, 1 for an error.",
    )
    parser.set_defaults(configure=lambda args: None, run=run)
    add = parser.add_argument
    add("a", type=Path, metavar="A", help="the result to compare with, such as that of the last release")
    add("b", type=Path, metavar="B", help="the new result")
    add("--out", type=Path, default=Path("decaf_compare"), help="folder of the page (%(default)s)")
    add(
        "--input", type=Path, help="video, folder or bag with the images, to show them (default: as recorded in A or B)"
    )
    add("--topic", default="", help="image topic in --input")
    add("--namespace", default="", help="of the outputs in a bag with several, such as /decaf/wrist")
    add("--some-frames", action="store_true", help="compare the frames that both have, as those of a live node differ")
    add("--min-iou", type=float, metavar="X", help="mean IoU of the masks of both results")
    add("--min-frame-iou", type=float, metavar="X", help="IoU of every target on every frame")
    add(
        "--max-missing-frames",
        type=float,
        metavar="X",
        help="share of all frames, from 0 to 1, that one result has alone (with --some-frames)",
    )
    add("--max-id-changes", type=int, metavar="N", help="targets that change their id in one of the results alone")
    add("--max-answer-changes", type=int, metavar="N", help="answers with another state or category")
    add("--max-presence-change", type=float, metavar="X", help="change of any score; a missing one exceeds it")
    add("--max-drop", type=float, metavar="P", help="of reports: percentage points by which J&F of B may be lower")


def run(args: argparse.Namespace, config: None) -> int:
    """Returns the exit status. Raises OSError or ValueError."""
    for name in ("min_iou", "min_frame_iou", "max_presence_change", "max_missing_frames"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected a number from 0 to 1, got {value:g}")
    for path in (args.a, args.b):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    _check_out(args.out)
    reports = [is_report(path) for path in (args.a, args.b)]
    if any(reports) and not all(reports):
        report, other = (args.a, args.b) if reports[0] else (args.b, args.a)
        raise ValueError(f"expected two results of one kind, got a report of decaf eval ({report}) and {other}")
    return _reports(args) if all(reports) else _results(args)


def _reports(args: argparse.Namespace) -> int:
    from decaf_ros.comparison.page import report_comparison

    _refuse(args, _OF_RESULTS, "not for reports of decaf eval, which hold no masks")
    a, b = read_report(args.a), read_report(args.b)
    cases = compare_reports(a, b)
    changed = sum(case.is_change for case in cases)
    scores = overall(a), overall(b)
    verdicts = _limit("--max-answer-changes", args.max_answer_changes, changed)
    if args.max_drop is not None:
        if scores[0] is None or scores[1] is None:
            raise ValueError("--max-drop: expected reports with masks, got one without J&F")
        verdicts += _limit("--max-drop", args.max_drop, round(100 * (scores[0] - scores[1]), 6))
    numbers = {
        "kind": "evaluations",
        "questions": len(cases),
        "j_and_f": scores,
        "answer_changes": changed,
        "changed": [_entry(case) for case in cases if case.is_change],
    }
    print(f"questions: {len(cases)}, changed answers: {changed}")
    print(f"J&F: A {_percent(scores[0])}, B {_percent(scores[1])}")
    return _finish(args, numbers, verdicts, report_comparison(a, b, cases, verdicts))


def _results(args: argparse.Namespace) -> int:
    # Imports torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.comparison.differences import compare
    from decaf_ros.comparison.page import result_comparison, side_by_side
    from decaf_ros.comparison.results import read_result

    _refuse(args, ("max_drop",), "only for reports of decaf eval")
    a, b = read_result(args.a, args.namespace), read_result(args.b, args.namespace)
    found = compare(a, b, args.some_frames)
    lowest = min(frame.worst for frame in found.frames)
    verdicts = [
        *_limit("--max-missing-frames", args.max_missing_frames, found.missing),
        *_floor("--min-iou", args.min_iou, found.mean_iou),
        *_floor("--min-frame-iou", args.min_frame_iou, lowest),
        *_limit("--max-id-changes", args.max_id_changes, found.id_changes),
        *_limit("--max-answer-changes", args.max_answer_changes, found.answer_changes),
        *_presence_limit(args.max_presence_change, found),
    ]
    worst = found.worst_frames(_WORST)
    stamps = {frame.stamp_ns for frame in worst}
    images, note = _images(args, a.input, b.input, stamps) if worst else ({}, "")
    shown_a, shown_b = ({one.stamp_ns: one for one in result.frames([]) if one.stamp_ns in stamps} for result in (a, b))
    pictures = [
        (frame, side_by_side(images.get(frame.stamp_ns), shown_a[frame.stamp_ns], shown_b[frame.stamp_ns]))
        for frame in worst
    ]
    numbers = {
        "kind": "results",
        "frames": len(found.frames),
        "only_a": found.only_a,
        "only_b": found.only_b,
        "unpaired_a": found.unpaired_a,
        "unpaired_b": found.unpaired_b,
        "missing": found.missing,
        "mean_iou": found.mean_iou,
        "lowest_iou": lowest,
        "id_changes": found.id_changes,
        "answer_changes": found.answer_changes,
        "presence_change": found.presence_change,
        "lost_scores": found.lost_scores,
        "targets": [pair._asdict() for pair in found.pairs],
        "worst": [
            {"stamp_ns": one.stamp_ns, "seconds": one.seconds, "iou": one.worst, "id_changes": one.id_changes}
            for one in worst
        ],
    }
    print(f"frames: {len(found.frames)} compared, {found.only_a} in A only, {found.only_b} in B only")
    if found.unpaired_a or found.unpaired_b:
        print(f"left out, with masks or tracklets alone: {found.unpaired_a} of A, {found.unpaired_b} of B")
    print(f"masks: mean IoU {found.mean_iou:.3f}, lowest {lowest:.3f}")
    print(f"id changes: {found.id_changes}; targets (A - B): {', '.join(map(str, found.pairs)) or 'none'}")
    print(f"changed answers: {found.answer_changes} of {len(found.answers)}")
    return _finish(args, numbers, verdicts, result_comparison(a, b, found, verdicts, pictures, note))


def _images(args: argparse.Namespace, a: str, b: str, stamps: set[int]) -> tuple[dict[int, np.ndarray], str]:
    """The images with these stamps, and what the pictures lack. Raises as ClipSource if --input cannot be read; a
    recorded input only serves the pictures, so there an error is a note."""
    recorded = next((Path(name) for name in (a, b) if name and Path(name).exists()), None)
    path = args.input or recorded
    if path is None:
        return {}, "The images of the input are not known: --input names it."
    if not path.exists():
        raise FileNotFoundError(f"--input: {path}: no such file or folder")
    images: dict[int, np.ndarray] = {}
    try:
        for frame in ClipSource(path, args.topic).read():
            if frame.stamp_ns in stamps:
                images[frame.stamp_ns] = frame.image
    except (OSError, ValueError) as error:
        if args.input:
            raise
        return images, f"The images are not shown: {error}. --input and --topic name them."
    lacking = len(stamps) - len(images)
    return images, f"{lacking} of these frames are not in {path}." if lacking else ""


def _floor(option: str, bound: float | None, value: float) -> list[Threshold]:
    return [] if bound is None else [Threshold(f"{option} {bound:g}: {value:.4g}", value >= bound)]


def _limit(option: str, bound: float | None, value: float) -> list[Threshold]:
    return [] if bound is None else [Threshold(f"{option} {bound:g}: {value:.4g}", value <= bound)]


def _presence_limit(bound: float | None, found: Differences) -> list[Threshold]:
    """A score in one result alone is a change of unknown size."""
    limits = _limit("--max-presence-change", bound, round(found.presence_change, 6))
    if not (limits and found.lost_scores):
        return limits
    return [Threshold(f"{limits[0].text}, and {found.lost_scores} with a score in one result alone", False)]


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {why}")


def _check_out(folder: Path) -> None:
    """Raises FileExistsError for a folder with anything but an earlier comparison, NotADirectoryError for a file."""
    if folder.exists() and (other := sorted({file.name for file in folder.iterdir()} - set(_FILES))):
        raise FileExistsError(f"{folder}: holds something besides a comparison ({other[0]}); name another folder")


def _finish(args: argparse.Namespace, numbers: dict[str, Any], verdicts: Sequence[Threshold], page: str) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    numbers["thresholds"] = [one._asdict() for one in verdicts]
    write_text(args.out / "comparison.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    write_text(args.out / "index.html", page)
    for one in verdicts:
        print(f"{'holds' if one.holds else 'EXCEEDED'}: {one.text}")
    print(f"page: {args.out / 'index.html'}")
    return 0 if all(one.holds for one in verdicts) else EXCEEDED


def _entry(case: CaseDifference) -> dict[str, Any]:
    return case._asdict() | {"drop": case.drop}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
