"""What an evaluation leaves: tables for people, the JSON file, pictures."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.evaluation.ablation import FULL, VARIANTS
from decaf_ros.evaluation.calibration import Calibration
from decaf_ros.evaluation.datasets.clips import ABSENT
from decaf_ros.evaluation.pictures import best_and_worst, roc_picture
from decaf_ros.evaluation.run import Case, Pictured
from decaf_ros.evaluation.summary import Collected, presence_roc
from decaf_ros.io.results import write_png

_PARTS = ("report.md", "report.json", "cases.json", "contact_sheet.png", "roc.png")
_HEADS = {"j_and_f": "J&F", "j": "J", "f": "F", "pointing": "pointing", "category": "category"}


def check_folder(folder: Path, numbers: Path | None = None) -> None:
    """Makes `folder` where there is none. Raises FileExistsError where it holds anything but an earlier report (and the
    file `numbers`, which may lie in it), NotADirectoryError for a file, PermissionError where nothing can be
    written."""
    if folder.is_file():
        raise NotADirectoryError(f"{folder}: expected a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    known = {folder / name for name in _PARTS} | ({numbers.resolve()} if numbers else set())
    others = sorted(file.name for file in folder.iterdir() if not {file, file.resolve()} & known)
    if others:
        raise FileExistsError(f"{folder}: holds something besides a report ({others[0]}); name another folder")
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_report(folder: Path, found: Mapping[str, Any], collected: Collected, text: str) -> None:
    """Writes report.md, report.json, cases.json and the pictures, in place of an earlier report. text: of
    `report_text`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PARTS:
        (folder / name).unlink(missing_ok=True)
    pictures = []
    if collected.extremes:
        write_png(folder / "contact_sheet.png", _sheet(collected, [*found["by_type"], ABSENT]))
        pictures.append(
            "![The best and the worst case of each type](contact_sheet.png)\n\nThe best case of each type on the left, "
            "the worst on the right: key frames with the true outline and that of what was found, under them the fused "
            "attention."
        )
    curve = presence_roc(collected.cases)
    if curve:
        title = "Presence score: are targets there?"
        write_png(folder / "roc.png", roc_picture(curve, found["roc"]["threshold"], title))
        pictures.append("![ROC of the presence score](roc.png)")
    (folder / "report.md").write_text("\n\n".join(["# Evaluation", text, *pictures]) + "\n", encoding="utf-8")
    write_json(folder / "report.json", found)
    write_json(folder / "cases.json", [_entry(case) for case in collected.cases])


def write_json(path: Path, found: Any) -> None:
    """Raises ValueError for a number that JSON does not have, OSError where it cannot be written."""
    path.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def report_text(found: Mapping[str, Any]) -> str:
    """The tables of a summary, in Markdown that reads well as it stands."""
    counts = found["counts"]
    parts = [
        f"Clips: {counts['clips']}. Expressions with targets: {counts['present']}, without: {counts['absent']}. All "
        'numbers in percent. A wrong "not found" counts as no mask at all.',
        _by_type(found),
        _others(found),
    ]
    if found["ablation"]:
        parts.append(_ablation(found))
    return "\n\n".join(parts)


def calibration_text(found: Calibration, cases: int) -> str:
    """What to write down, and how good it is."""
    weights = "\n".join(f'    "{name}": {weight},' for name, weight in found.weights.items())
    rows = [
        ("area under the ROC, fitted", found.curve.area),
        ("the same with either half scored by the other half's fit", found.held_out),
        ("with the weights that stand there now", found.before),
        *((f"{name} alone", area) for name, area in found.parts.items()),
        *((f"fitted without {name}", area) for name, area in found.without.items()),
        ('"not found" at the threshold: precision', found.not_found.precision),
        ('"not found" at the threshold: recall', found.not_found.recall),
    ]
    return "\n\n".join(
        [
            f"Presence score, fitted on {cases} expressions. For `WEIGHTS` in decaf_ros/presence.py:",
            f"{weights}",
            f"presence.threshold: {found.threshold:.3f}",
            _table(("", "%"), [(name, _percent(value)) for name, value in rows]),
        ]
    )


def _by_type(found: Mapping[str, Any]) -> str:
    counts = found["counts"]
    rows = [("all", counts["present"], found["overall"])]
    rows += [(kind, counts["by_type"][kind], scores) for kind, scores in found["by_type"].items()]
    return _table(
        ("type", "cases", *_HEADS.values(), "category (video)", "category (frames)"),
        [
            (kind, str(count), *(_percent(scores[name]) for name in _HEADS), *_branches(found, kind))
            for kind, count, scores in rows
        ],
    )


def _branches(found: Mapping[str, Any], kind: str) -> tuple[str, str]:
    by_branch = found["category_by_branch"]
    scores = by_branch["overall"] if kind == "all" else by_branch["by_type"][kind]
    return _percent(scores["video"]), _percent(scores["frames"])


def _others(found: Mapping[str, Any]) -> str:
    online, segmenter, curve = found["online"], found["segmenter"], found["roc"]
    rows = [
        ("pointing: a random token", found["baseline"]["chance_pointing"]),
        ("pointing: the middle of the image", found["baseline"]["centre_pointing"]),
        ("pointing: the strongest token of the whole window", found["pointing_window"]),
        ("J&F if something is always answered, as in the paper", found["always_answered"]["j_and_f"]),
        ('absent targets: precision of "not found"', found["absent"]["precision"]),
        ('absent targets: recall of "not found"', found["absent"]["recall"]),
        ("absent targets: precision by the presence score alone", found["absent_by_score"]["precision"]),
        ("absent targets: recall by the presence score alone", found["absent_by_score"]["recall"]),
        (f"presence score: area under the ROC (threshold {curve['threshold']:.2f})", curve["area"]),
        *((f"presence score: area of {name} alone", area) for name, area in curve["parts"].items()),
        (f"online: J of the followed masks (clips: {online['clips']})", online["j"]),
        ("online: queries answered with targets", online["tracked"]),
        (f"SAM 2: IoU of one click (clicks: {segmenter['clicks']})", segmenter["one_click_iou"]),
        ("SAM 2: error of the predicted IoU", segmenter["predicted_iou_error"]),
        (f"SAM 2: IoU after 30 frames, from a click (objects: {segmenter['objects']})", segmenter["propagated_iou"]),
        ("SAM 2: the same from the true mask", segmenter["propagated_iou_from_mask"]),
        (f"SAM 2: of those hidden in between (objects: {segmenter['crossed']})", segmenter["crossed_iou"]),
    ]
    table = _table(("measure", "%"), [(name, _percent(value)) for name, value in rows])
    return (
        "A map points at a target where the cell of its strongest token and the target meet; the random token and the "
        f"middle of the image have the same tolerance.\n\n{table}\n\n{_played(online)}"
    )


def _played(online: Mapping[str, Any]) -> str:
    """How the clips went that were played as a robot sees them."""
    text = (
        f"Online, ids of targets changed {online['id_switches']} times, and an id passed to another object "
        f"{online['id_drifts']} times, in {online['frames']} frames of {online['clips']} clips; in {online['hidden']} "
        "of these a target is hidden while it is followed."
    )
    if not online["played"]:
        return text
    rows = [
        (
            one["clip"],
            one["text"],
            "yes" if one["tracked"] else "no",
            str(one["frames"]),
            _percent(one["j"]),
            str(one["switches"]),
            str(one["drifts"]),
        )
        for one in online["played"]
    ]
    heads = ("clip", "asked", "answered", "frames", "J", "ids changed", "ids passed on")
    return f"{text}\n\n{_table(heads, rows)}"


def _ablation(found: Mapping[str, Any]) -> str:
    full, attention = found["ablation"][FULL], found["attention_masks"]
    rows = []
    for name, scores in found["ablation"].items():
        variant = VARIANTS.get(name)
        text = variant.text if variant else "the whole method"
        text += f" (Tab. {variant.table})" if variant and variant.table else ""
        margins = (_margin(full[one], scores[one]) if variant else "" for one in ("j_and_f", "pointing"))
        rows.append((name, text, *(_percent(scores[one]) for one in _HEADS), _percent(attention[name]), *margins))
    heads = ("variant", "", *_HEADS.values(), "attention J&F", "full is better by: J&F", "pointing")
    return (
        f"Ablations over {found['counts']['ablation']} expressions with targets, something always being answered, as "
        f"in the paper.\n\n{_table(heads, rows)}"
    )


def _sheet(collected: Collected, kinds: Sequence[str]) -> np.ndarray:
    rows = []
    for kind in (kind for kind in kinds if kind in collected.extremes):
        best, worst = collected.extremes[kind]
        only = best.case is worst.case
        blank = np.full_like(worst.picture, 255), "(the only case)"
        rows.append([_captioned(best), blank if only else _captioned(worst)])
    return best_and_worst(rows)


def _captioned(pictured: Pictured) -> tuple[np.ndarray, str]:
    return pictured.picture, caption(pictured.case)


def caption(case: Case) -> str:
    """A case in one line."""
    parts = [f'{case.kind}: "{case.text}"', f"clip {case.clip}"]
    if case.published is not None:
        parts.append(f"J&F {_percent(case.published.j_and_f)}")
    if case.pointing is not None:
        parts.append(f"pointing {_percent(case.pointing.hit)}")
    parts.append(f"presence {case.presence.score:.2f}, {'found' if case.found else 'not found'}")
    if case.said:  # last: it may be long
        right = {True: " (right)", False: f" (wrong: {case.category})", None: ""}[case.category_right]
        parts.append(f'said "{case.said}"{right}')
    return ", ".join(parts)


def _entry(case: Case) -> dict[str, Any]:
    entry = dataclasses.asdict(case)
    for name in ("always", "published", "pointing"):
        value = getattr(case, name)
        entry[name] = value and value._asdict()
    entry["category_right"] = case.category_right
    entry["ablation"] = {
        name: {
            "masks": score.masks._asdict(),
            "attention": score.attention._asdict(),
            "pointing": score.pointing and score.pointing._asdict(),
            "said": score.said,
        }
        for name, score in case.ablation.items()
    }
    return entry


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _margin(full: float | None, other: float | None) -> str:
    return "-" if full is None or other is None else f"{100 * (full - other):+.1f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown with aligned columns: the first one to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in (heads, *rows)) for place in range(len(heads))]
    left = [place == 0 or all(_is_words(row[place]) for row in rows) for place in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        cells = (text.ljust(width) if to_left else text.rjust(width) for text, width, to_left in zip(row, widths, left))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (width + 2) if to_left else f"{'-' * (width + 1)}:" for width, to_left in zip(widths, left))
    return "\n".join([line(heads), f"|{rule}|", *map(line, rows)])


def _is_words(text: str) -> bool:
    return bool(text) and text.lstrip("+-")[:1].isalpha()
