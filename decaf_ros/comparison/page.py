"""The page of a comparison: versions, answers, overlaps over time, and the worst frames side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from decaf_ros.comparison.differences import AnswerPair, Differences, FrameDifference
from decaf_ros.comparison.evaluations import CaseDifference, StoredReport, overall
from decaf_ros.comparison.results import Answer, StoredFrame, StoredResult
from decaf_ros.io.viz import target_color
from decaf_ros.pages import charts, html

_TITLE = "Comparison of two results"
_LISTED = 40
_SIDE = 480


class Made(Protocol):
    """A result or a report, with what it was made by."""

    @property
    def path(self) -> Path: ...

    @property
    def version(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...


class Verdict(Protocol):
    """A threshold: its option, whether it holds, and the numbers."""

    @property
    def text(self) -> str: ...

    @property
    def holds(self) -> bool: ...


def result_comparison(
    a: StoredResult,
    b: StoredResult,
    found: Differences,
    verdicts: Sequence[Verdict],
    pictures: Sequence[tuple[FrameDifference, np.ndarray]],
    note: str = "",
) -> str:
    """The page of two results.

    Args:
        a: one result.
        b: the other.
        found: their differences.
        verdicts: the thresholds.
        pictures: The worst frames, (H, W, 3) uint8 RGB, from `side_by_side`.
        note: what the pictures lack.
    """
    rows = [
        ("frames compared", len(found.frames)),
        ("frames in A only, in B only", f"{found.only_a}, {found.only_b}"),
        *_unpaired(found),
        ("mean IoU", f"{found.mean_iou:.3f}"),
        ("lowest IoU of a frame", f"{min(frame.worst for frame in found.frames):.3f}"),
        ("id changes", found.id_changes),
        ("changed answers", f"{found.answer_changes} of {len(found.answers)}"),
        ("largest change of a presence score", f"{found.presence_change:.3f}"),
        ("answers with a presence score in one result alone", found.lost_scores),
    ]
    parts = [*_verdicts(verdicts), html.table((), rows), *_made(a, b), html.heading("Answers"), _answers(found.answers)]
    if found.pairs:
        parts += [html.heading("Targets"), _pairs(found), *_over_time(found)]
    if pictures:
        parts += [
            html.heading("The worst frames"),
            f"A on the left, B on the right. Colours are ids. {note}",
            *(html.picture(image, _caption(frame)) for frame, image in pictures),
        ]
    return html.document(_TITLE, parts)


def _unpaired(found: Differences) -> list[tuple[str, str]]:
    if not (found.unpaired_a or found.unpaired_b):
        return []
    return [("frames left out of A, of B (masks or tracklets alone)", f"{found.unpaired_a}, {found.unpaired_b}")]


def side_by_side(image: np.ndarray | None, a: StoredFrame, b: StoredFrame) -> np.ndarray:
    """(H, 2W + 8, 3) uint8 RGB: the masks of both results on the image, or on black without one."""
    halves = []
    for frame in (a, b):
        height, width = frame.labels.shape
        drawn = np.zeros((height, width, 3), np.uint8) if image is None else cv2.resize(image, (width, height))
        for label in np.unique(frame.labels[frame.labels > 0]).tolist():
            mask, color = frame.labels == label, target_color(frame.ids.get(label, label))
            drawn[mask] = (0.5 * drawn[mask] + 0.5 * np.array(color)).astype(np.uint8)
            contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(drawn, contours, -1, color, 2)
        halves.append(cv2.resize(drawn, (_SIDE, max(1, round(height * _SIDE / width))), interpolation=cv2.INTER_AREA))
    gap = np.full((halves[0].shape[0], 8, 3), 255, np.uint8)
    return np.hstack([halves[0], gap, halves[1]])


def report_comparison(
    a: StoredReport, b: StoredReport, cases: Sequence[CaseDifference], verdicts: Sequence[Verdict]
) -> str:
    """The page of two reports of `decaf eval`."""
    changed = [case for case in cases if case.is_change]
    rows = [
        ("questions", len(cases)),
        ("J&F of A, of B", f"{_percent(overall(a))}, {_percent(overall(b))}"),
        ("changed answers", len(changed)),
    ]
    parts = [*_verdicts(verdicts), html.table((), rows), *_made(a, b)]
    kinds = dict.fromkeys(case.kind for case in cases)
    by_kind = []
    for kind in kinds:
        those = [case.j_and_f for case in cases if case.kind == kind and None not in case.j_and_f]
        if those:
            means = np.array(those, float).mean(axis=0)
            by_kind.append((kind, len(those), *(f"{100 * value:.1f}" for value in means), _signed(means[1] - means[0])))
    if by_kind:
        parts += [html.heading("J&F by type (%)"), html.table(("type", "cases", "A", "B", "B - A"), by_kind)]
    worse = sorted((case for case in cases if case.drop > 0), key=lambda case: -case.drop)
    parts += [html.heading("Changed answers"), _cases(changed), html.heading("Lower J&F in B"), _cases(worse)]
    return html.document("Comparison of two evaluations", parts)


def _verdicts(verdicts: Sequence[Verdict]) -> list[object]:
    if not verdicts:
        return [html.paragraph("No threshold was given.", "faint")]
    rows = [
        (html.colored("holds" if one.holds else "EXCEEDED", "good" if one.holds else "bad"), one.text)
        for one in verdicts
    ]
    return [html.table((), rows)]


def _made(a: Made, b: Made) -> list[object]:
    """Versions, models and configurations."""
    names = list(dict.fromkeys([*a.parameters, *b.parameters]))
    values = {name: [one.parameters.get(name, "-") for one in (a, b)] for name in names}
    differing = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    models = [name for name in names if name.endswith(".checkpoint")]
    rows = [("path", a.path, b.path), ("input", getattr(a, "input", None) or "-", getattr(b, "input", None) or "-")]
    rows += [("decaf_ros", a.version or "-", b.version or "-")]
    rows += [(name, *values[name]) for name in models]
    rows += [(name, *pair) for name, pair in differing.items() if name not in models]
    known = [bool(one.parameters) for one in (a, b)]
    if not all(known):
        text = "The configuration of one result, or of both, is not known."
    else:
        text = f"{len(differing)} of {len(names)} parameters differ."
    return [html.heading("Made by"), text, html.table(("", "A", "B"), rows)]


def _answers(pairs: Sequence[AnswerPair]) -> html.Markup:
    def cell(answer: Answer | None) -> str:
        if answer is None:
            return "no answer"
        presence = "" if answer.presence is None else f" (presence {answer.presence:.2f})"
        return f"{answer.state}: {answer.text}{presence}"

    rows = [
        (
            next(one.query for one in pair if one is not None),
            cell(pair.a),
            cell(pair.b),
            html.colored("differs", "bad") if pair.is_change else html.colored("same", "good"),
        )
        for pair in pairs
    ]
    return html.table(("question", "A", "B", ""), rows)


def _pairs(found: Differences) -> html.Markup:
    rows = []
    for pair in found.pairs:
        values = [frame.iou[pair] for frame in found.frames if pair in frame.iou]
        rows.append(
            (
                "none" if pair.a is None else f"id {pair.a}",
                "none" if pair.b is None else f"id {pair.b}",
                len(values),
                f"{np.mean(values):.3f}" if values else "-",
                f"{min(values):.3f}" if values else "-",
            )
        )
    return html.table(("A", "B", "frames with a mask", "mean IoU", "lowest IoU"), rows)


def _over_time(found: Differences) -> list[object]:
    curves = {
        f"A - B: {pair}": [(frame.seconds, frame.iou.get(pair)) for frame in found.frames] for pair in found.pairs
    }
    if not any(value is not None for points in curves.values() for _, value in points):
        return []
    return [charts.line_chart(curves, "seconds", "IoU", y_max=1.0)]


def _caption(frame: FrameDifference) -> str:
    ious = ", ".join(f"{pair}: {value:.3f}" for pair, value in frame.iou.items())
    return f"{frame.seconds:.2f} s, IoU of {ious or 'no target'}; id changes: {frame.id_changes}"


def _cases(cases: Sequence[CaseDifference]) -> object:
    if not cases:
        return "None."
    rows = [
        (
            case.clip,
            case.text,
            case.kind,
            *case.answers,
            *(_percent(value) for value in case.j_and_f),
            *(f"{value:.2f}" for value in case.presence),
        )
        for case in cases[:_LISTED]
    ]
    headings = ("clip", "question", "type", "answer A", "answer B", "J&F A", "J&F B", "presence A", "presence B")
    more = f"<p>{len(cases) - _LISTED} more.</p>" if len(cases) > _LISTED else ""
    return html.Markup(html.table(headings, rows) + more)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}"
