"""The reports of `decaf eval` as one HTML file each: tables, plots, and the best and worst cases as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from decaf_ros.pages import charts, html

# A picture of a case and its caption.
Shown = tuple[np.ndarray, str]


def evaluation_page(summary: Mapping[str, Any], text: str, extremes: Sequence[tuple[str, Shown, Shown | None]]) -> str:
    """The page of an evaluation.

    Args:
        summary: the content of report.json.
        text: The tables, from `report_text`.
        extremes: For each type the best case and the worst; None if there is only one.
    """
    counts = summary["counts"]
    lead = f"{_dataset(summary)}{counts['present']} questions with targets, {counts['absent']} without"
    parts: list[object] = [html.paragraph(lead, "lead"), *_accuracy(summary), *_presence(summary)]
    if summary["case_seconds"]:
        parts += [
            html.heading("Time"),
            "Seconds a question takes, with the scoring of its masks, by percentile.",
            charts.bar_chart(summary["case_seconds"], unit=" s"),
        ]
    parts += [html.heading("Tables"), *from_markdown(text)]
    if extremes:
        parts += [
            html.heading("The best and the worst case of each type"),
            "Key frames with the outlines of the ground truth and of the result, and the fused attention map.",
        ]
        for kind, best, worst in extremes:
            parts.append(html.Markup(f"<h3>{html.text(kind)}</h3>"))
            parts.append(html.picture(best[0], f"Best: {best[1]}"))
            if worst is not None:
                parts.append(html.picture(worst[0], f"Worst: {worst[1]}"))
    return html.document("Evaluation", [*parts, *_settings(summary)])


def long_page(
    summary: Mapping[str, Any],
    text: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    shown: Mapping[str, Sequence[Shown]],
) -> str:
    """The page of an evaluation on long clips.

    Args:
        summary: the content of report.json.
        text: The tables, from `long_report_text`.
        curves: Points (seconds since the answer, share in [0, 1]) by name.
        shown: Clips by heading.
    """
    lead = f"{_dataset(summary)}{summary['questions']} questions, each asked early in a long clip"
    parts: list[object] = [
        html.paragraph(lead, "lead"),
        html.heading("Time since the answer"),
        charts.line_chart(curves, "seconds since the answer", "share", y_max=1.0),
        html.heading("Processor time of a frame"),
        "Milliseconds by percentile.",
        charts.bar_chart(summary["frame_cpu_ms"], unit=" ms"),
        html.heading("Tables"),
        *from_markdown(text),
    ]
    for title, pictures in shown.items():
        parts += [html.heading(title), *(html.picture(image, caption) for image, caption in pictures)]
    return html.document("Evaluation on long clips", [*parts, *_settings(summary)])


def from_markdown(text: str) -> Iterator[html.Markup]:
    """The paragraphs and tables of a report's Markdown."""
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if not lines[0].startswith("|"):
            yield html.paragraph(block)
            continue
        # Between cells there is a space before "|", within one a backslash.
        rows = [[cell.strip().replace(r"\|", "|") for cell in line.strip("|").split(" | ")] for line in lines]
        yield html.table(rows[0], rows[2:])


def _accuracy(summary: Mapping[str, Any]) -> list[object]:
    bars = {"all": summary["overall"]["j_and_f"]}
    bars |= {kind: scores["j_and_f"] for kind, scores in summary["by_type"].items()}
    if all(value is None for value in bars.values()):
        return []
    percent = {name: None if value is None else 100 * value for name, value in bars.items()}
    return [html.heading("J&F by type"), charts.bar_chart(percent, 100.0, " %")]


def _presence(summary: Mapping[str, Any]) -> list[object]:
    curve = summary["presence_curve"]
    if curve is None:
        return []
    thresholds, threshold = curve["thresholds"], summary["roc"]["threshold"]
    # A value holds from the score before up to its own.
    series = {
        name: [(x, y) for low, x, y in zip([0.0, *thresholds], thresholds, curve[name]) for x in (low, x)]
        for name in ("precision", "recall")
    }
    at = int(np.searchsorted(thresholds, threshold))
    marks = [charts.Mark(threshold, curve[name][at], "") for name in series] if at < len(thresholds) else []
    area = summary["roc"]["area"]
    return [
        html.heading("Presence score"),
        f"Found means a score at or over the threshold; dots: presence.threshold {threshold:g}. "
        f"Area under the ROC curve: {area:.3f}.",
        charts.line_chart(series, "threshold", "share", y_max=1.0, x_max=1.0, marks=marks),
    ]


def _dataset(summary: Mapping[str, Any]) -> str:
    return f"{summary['settings']['dataset']}: " if "settings" in summary else ""


def _settings(summary: Mapping[str, Any]) -> list[object]:
    if "settings" not in summary:
        return []
    settings = dict(summary["settings"])
    parameters = settings.pop("parameters")
    rows = [("decaf_ros", summary.get("version")), *((name, _value(value)) for name, value in settings.items())]
    rows += [(name, value) for name, value in parameters.items() if name.endswith(".checkpoint")]
    return [html.heading("Settings"), html.table((), rows), html.parameters(parameters)]


def _value(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else value
