"""Writes the report of an evaluation: tables, JSON files and pictures."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.evaluation.ablation import FULL, VARIANTS
from decaf_ros.evaluation.pictures import best_and_worst, roc_picture
from decaf_ros.evaluation.protocol import SCORES
from decaf_ros.evaluation.report_page import Shown, evaluation_page
from decaf_ros.evaluation.run import Case, CasePicture
from decaf_ros.evaluation.summary import Collected, presence_roc
from decaf_ros.io.files import write_text
from decaf_ros.io.results import write_png

REPORT_FILES = (
    "report.md",
    "report.html",
    "report.json",
    "cases.json",
    "contact_sheet.png",
    "roc.png",
    "watched.json",
    "over_time.png",
    "worst.png",
)
_HEADINGS = {"j_and_f": "J&F", "j": "J", "f": "F", "pointing": "pointing", "category": "category"}


def check_folder(folder: Path, json_file: Path | None = None) -> None:
    """Makes `folder` if it does not exist, and checks that a report can be written to it.

    Raises FileExistsError if it holds anything but an earlier report and `json_file`, NotADirectoryError if it is a
    file, PermissionError if it cannot be written to.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder}: expected a folder, got a file")
    folder.mkdir(parents=True, exist_ok=True)
    known = {folder / name for name in REPORT_FILES} | ({json_file.resolve()} if json_file else set())
    unknown = sorted(file.name for file in folder.iterdir() if not {file, file.resolve()} & known)
    if unknown:
        raise FileExistsError(f"{folder}: holds something besides a report ({unknown[0]}); name another folder")
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_report(folder: Path, summary: Mapping[str, Any], collected: Collected, text: str) -> None:
    """Writes report.html, report.md, report.json, cases.json and the pictures; replaces an earlier report.

    text: from `report_text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_report(folder)
    # First: an error of a page or a picture must not cost the numbers.
    write_json(folder / "report.json", summary)
    write_json(folder / "cases.json", [case_entry(case) for case in collected.cases])
    pictures = []
    if collected.extremes:
        write_png(
            folder / "contact_sheet.png", _contact_sheet(collected, [*summary["by_type"], *summary["absent_by_type"]])
        )
        pictures.append(
            "![The best and the worst case of each type](contact_sheet.png)\n\nThe best case of each type is on the "
            "left, the worst on the right. Above: key frames with the outlines of the ground truth and of the result. "
            "Below: the fused attention map."
        )
    curve = presence_roc(collected.cases)
    if curve:
        title = "ROC of the presence score"
        write_png(folder / "roc.png", roc_picture(curve, summary["roc"]["threshold"], title))
        pictures.append("![ROC of the presence score](roc.png)")
    write_text(folder / "report.md", "\n\n".join(["# Evaluation", text, *pictures]) + "\n")
    kinds = [*summary["by_type"], *summary["absent_by_type"]]
    page = evaluation_page(summary, text, list(_extremes(collected, kinds)))
    write_text(folder / "report.html", page)


def remove_report(folder: Path) -> None:
    """Removes the files of an earlier report, which may be of another kind."""
    for name in REPORT_FILES:
        (folder / name).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Raises ValueError for NaN or infinity, OSError if the file cannot be written."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def report_text(summary: Mapping[str, Any]) -> str:
    """The tables of a summary, as Markdown that is readable in a terminal too."""
    counts = summary["counts"]
    parts = [
        f"Clips: {counts['clips']}. Expressions with targets: {counts['present']}, without: {counts['absent']}. All "
        'numbers are percentages. A wrong "not found" scores 0.',
        _by_type(summary),
        _protocol(summary["protocol"]),
        _further_measures(summary),
    ]
    if counts["answers"]:
        parts.insert(1, f"{counts['malformed']} of {counts['answers']} answers were malformed, and gave no point.")
    if summary["ablation"]:
        parts.append(_ablation(summary))
    return "\n\n".join(parts)


def _by_type(summary: Mapping[str, Any]) -> str:
    counts = summary["counts"]
    rows = [("all", counts["present"], summary["overall"])]
    rows += [(kind, counts["by_type"][kind], scores) for kind, scores in summary["by_type"].items()]
    return table(
        ("type", "cases", *_HEADINGS.values(), "category (video)", "category (frames)"),
        [
            (kind, str(count), *(percent(scores[name]) for name in _HEADINGS), *_branch_categories(summary, kind))
            for kind, count, scores in rows
        ],
    )


def _protocol(scores: Mapping[str, Any]) -> str:
    """The scores of the paper's tables: a row for each subset, and one for their mean."""
    overall, by_subset = scores["overall"], scores["by_subset"]
    measured = [name for name in SCORES if overall[name] is not None]
    rows = [(name, str(scores["counts"][name]), means) for name, means in by_subset.items()]
    if len(by_subset) > 1:
        rows.append(("mean of the subsets", str(sum(scores["counts"].values())), overall))
    return (
        'The published protocol: "not found" is never an answer. "attention": masks from the attention map alone, on '
        "the key frames. PP@K: the share of the K strongest tokens that are on a target or near it.\n\n"
        + table(
            ("subset", "cases", *(SCORES[name] for name in measured)),
            [(name, cases, *(percent(means[name]) for name in measured)) for name, cases, means in rows],
        )
    )


def _branch_categories(summary: Mapping[str, Any], kind: str) -> tuple[str, str]:
    by_branch = summary["category_by_branch"]
    scores = by_branch["overall"] if kind == "all" else by_branch["by_type"][kind]
    return percent(scores["video"]), percent(scores["frames"])


def _further_measures(summary: Mapping[str, Any]) -> str:
    online, segmenter, curve = summary["online"], summary["segmenter"], summary["roc"]
    rows = [
        ("pointing accuracy: a random token", summary["baseline"]["chance_pointing"]),
        ("pointing accuracy: the image centre", summary["baseline"]["centre_pointing"]),
        ("pointing accuracy: the strongest token of the window", summary["pointing_window"]),
        ('J&F without "not found", as in the paper', summary["always_answered"]["j_and_f"]),
        ('"not found": precision', summary["absent"]["precision"]),
        ('"not found": recall', summary["absent"]["recall"]),
        *(
            (f'"not found", type {kind} and all with targets: {measure}', value)
            for kind, scores in summary["absent_by_type"].items()
            for measure, value in scores.items()
            if len(summary["absent_by_type"]) > 1
        ),
        ('"not found" by presence score only: precision', summary["absent_by_score"]["precision"]),
        ('"not found" by presence score only: recall', summary["absent_by_score"]["recall"]),
        (f"presence score: area under the ROC curve (threshold {curve['threshold']:.2f})", curve["area"]),
        *((f"presence score: area of {name} only", area) for name, area in curve["parts"].items()),
        (f"online: J of the published masks (clips: {online['clips']})", online["j"]),
        ("online: queries answered with targets", online["tracked"]),
        (f"SAM 2: IoU of one click (clicks: {segmenter['clicks']})", segmenter["one_click_iou"]),
        ("SAM 2: error of the predicted IoU", segmenter["predicted_iou_error"]),
        (f"SAM 2: IoU after 30 frames, from a click (objects: {segmenter['objects']})", segmenter["propagated_iou"]),
        ("SAM 2: IoU after 30 frames, from the true mask", segmenter["propagated_iou_from_mask"]),
        (
            f"SAM 2: IoU after 30 frames, from a click, after an occlusion (objects: {segmenter['crossed']})",
            segmenter["crossed_iou"],
        ),
    ]
    measures = table(("measure", "%"), [(name, percent(value)) for name, value in rows])
    return (
        "Pointing accuracy: share of key frames whose strongest token hits, that is, whose cell overlaps a target. The "
        f"random token and the image centre have the same tolerance.\n\n{measures}\n\n{_online_scores(online)}"
    )


def _online_scores(online: Mapping[str, Any]) -> str:
    """Id switches, and a table of the clips that were played as a live stream."""
    text = (
        f"Online: {online['id_switches']} id switches of targets and {online['id_drifts']} moves of an id to another "
        f"object, in {online['frames']} frames of {online['clips']} clips. In {online['hidden']} clips a target is "
        "occluded while it is tracked."
    )
    if not online["played"]:
        return text
    rows = [
        (
            clip["clip"],
            clip["text"],
            "yes" if clip["tracked"] else "no",
            str(clip["frames"]),
            percent(clip["j"]),
            str(clip["switches"]),
            str(clip["drifts"]),
        )
        for clip in online["played"]
    ]
    headings = ("clip", "query", "answered", "frames", "J", "id switches", "id moves")
    return f"{text}\n\n{table(headings, rows)}"


def _ablation(summary: Mapping[str, Any]) -> str:
    full, attention = summary["ablation"][FULL], summary["attention_masks"]
    rows = []
    for name, scores in summary["ablation"].items():
        variant = VARIANTS.get(name)
        text = variant.text if variant else "full method"
        text += f" (Tab. {variant.table})" if variant and variant.table else ""
        margins = (_margin(full[key], scores[key]) if variant else "" for key in ("j_and_f", "pointing"))
        rows.append((name, text, *(percent(scores[key]) for key in _HEADINGS), percent(attention[name]), *margins))
    headings = ("variant", "", *_HEADINGS.values(), "attention J&F", "full minus variant: J&F", "pointing")
    return (
        f'Ablations over {summary["counts"]["ablation"]} expressions with targets, without "not found", as in the '
        f"paper.\n\n{table(headings, rows)}"
    )


def _extremes(collected: Collected, kinds: Sequence[str]) -> Iterator[tuple[str, Shown, Shown | None]]:
    """The best case of each type and the worst; None if there is only one."""
    for kind in (kind for kind in kinds if kind in collected.extremes):
        best, worst = collected.extremes[kind]
        yield kind, _captioned(best), None if best.case is worst.case else _captioned(worst)


def _contact_sheet(collected: Collected, kinds: Sequence[str]) -> np.ndarray:
    rows = []
    for _, best, worst in _extremes(collected, kinds):
        rows.append([best, worst or (np.full_like(best[0], 255), "(the only case)")])
    return best_and_worst(rows)


def _captioned(entry: CasePicture) -> tuple[np.ndarray, str]:
    return entry.picture, caption(entry.case)


def caption(case: Case) -> str:
    """Describes a case in one line."""
    parts = [f'{case.kind}: "{case.text}"', f"clip {case.clip}"]
    if case.published is not None:
        parts.append(f"J&F {percent(case.published.j_and_f)}")
    if case.pointing is not None:
        parts.append(f"pointing {percent(case.pointing.hit)}")
    parts.append(f"presence {case.presence.score:.2f}, {'found' if case.found else 'not found'}")
    if case.decoded_category:  # last: it may be long
        verdict = {True: " (correct)", False: f" (expected {case.category})", None: ""}[case.category_right]
        parts.append(f'category "{case.decoded_category}"{verdict}')
    return ", ".join(parts)


def case_entry(case: Case) -> dict[str, Any]:
    entry = dataclasses.asdict(case)
    for name in ("always", "published", "pointing", "attention", "malformed"):
        value = getattr(case, name)
        entry[name] = value and value._asdict()
    entry["category_right"] = case.category_right
    entry["ablation"] = {
        name: {
            "masks": score.masks._asdict(),
            "attention": score.attention and score.attention._asdict(),
            "pointing": score.pointing and score.pointing._asdict(),
            "decoded_category": score.decoded_category,
        }
        for name, score in case.ablation.items()
    }
    return entry


def percent(value: float | None) -> str:
    """With one decimal; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def _margin(full: float | None, variant: float | None) -> str:
    return "-" if full is None or variant is None else f"{100 * (full - variant):+.1f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table: words to the left, numbers to the right. In a cell "|" is escaped, as in GitHub's
    tables, and line breaks become spaces. `report_page.from_markdown` reads it."""
    columns = range(len(headings))
    rows = [[" ".join(text.splitlines()).replace("|", r"\|") for text in row] for row in rows]
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in columns]
    left = [column == 0 or all(_is_words(row[column]) for row in rows) for column in columns]

    def line(row: Sequence[str]) -> str:
        cells = (text.ljust(width) if to_left else text.rjust(width) for text, width, to_left in zip(row, widths, left))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (width + 2) if to_left else f"{'-' * (width + 1)}:" for width, to_left in zip(widths, left))
    return "\n".join([line(headings), f"|{rule}|", *map(line, rows)])


def _is_words(text: str) -> bool:
    return bool(text) and text.lstrip("+-")[:1].isalpha()
