"""The page of a result of `decaf segment`: film, heatmaps, targets, answers and the presence score in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.io.target_log import TargetLog
from decaf_ros.io.viz import target_color
from decaf_ros.pages import charts, html

_MODELS = ("mllm.checkpoint", "sam2.checkpoint")
_GOOD = "TRACKING"


def result_page(
    summary: Mapping[str, Any], log: TargetLog, film: Path, heatmaps: Sequence[tuple[np.ndarray, float]]
) -> str:
    """The whole page.

    Args:
        summary: the content of summary.json.
        log: the targets of all frames.
        film: the finished film.
        heatmaps: Images (H, W, 3) uint8 RGB of key frames with their heat, and their seconds since the first frame.
    """
    state = summary["state"] or "no answer"
    lead = html.colored(state, "good" if state == _GOOD else "bad")
    parts: list[object] = [
        html.paragraph(html.Markup(f"{lead}: {html.text(summary['answer'] or '-')}"), "lead"),
        html.film(film),
        html.heading("Targets"),
        *_targets(summary["targets"], log),
        html.heading("Presence score"),
        *_presence(summary),
    ]
    if heatmaps:
        parts += [
            html.heading("Attention"),
            "Where the multimodal LLM looks, on some of the key frames: yellow is the strongest.",
            html.grid(html.picture(image, f"{seconds:.2f} s") for image, seconds in heatmaps),
        ]
    parts += [html.heading("Answers"), _answers(summary)]
    if summary["stage_ms"]:
        parts += [html.heading("Time of the grounding"), charts.bar_chart(summary["stage_ms"], unit=" ms")]
    parts += [html.heading("Input and settings"), _facts(summary)]
    notes = [*summary.get("input_problems", ()), *summary["notices"]]
    if notes:
        parts.append(html.table((), [("note", note) for note in notes]))
    if summary.get("parameters"):
        parts.append(html.parameters(summary["parameters"]))
    return html.document(str(summary.get("query", film.parent.name)), parts)


def _targets(targets: Sequence[Mapping[str, Any]], log: TargetLog) -> list[object]:
    if not targets:
        return ["No target on any frame."]
    rows = [
        (
            html.Markup(f"{html.swatch(target_color(one['id']))}{one['id']}"),
            one["category"] or "-",
            f"{one['score']:.2f}",
            _seconds(one["first_seen_s"]),
            _seconds(one["last_seen_s"]),
            one["frames_visible"],
            f"{one['mean_area_px']:.0f}",
            ", ".join(f"{count} {state}" for state, count in one["states"].items()),
        )
        for one in targets
    ]
    headings = ("id", "category", "score", "first seen", "last seen", "frames", "mean area (px)", "states (frames)")
    curves = {f"target {number}": points for number, points in log.areas().items()}
    colors = ["rgb({},{},{})".format(*target_color(one["id"])) for one in targets]
    chart = charts.line_chart(curves, "seconds", "visible pixels", colors=colors)
    return [html.table(headings, rows), chart]


def _presence(summary: Mapping[str, Any]) -> list[object]:
    presence = summary["presence"]
    if presence is None:
        return ["Not computed: there was no grounding."]
    threshold = summary.get("parameters", {}).get("presence.threshold")
    bound = "" if threshold is None else f'; below {threshold:g} the answer is "not found" (presence.threshold)'
    return [f"Evidence that the target is there, from 0 to 1{bound}.", charts.bar_chart(presence, 1.0)]


def _answers(summary: Mapping[str, Any]) -> html.Markup:
    start_ns = summary["stamps_ns"][0]
    rows = [
        (_seconds((one["stamp_ns"] - start_ns) / 1e9 if one["stamp_ns"] else None), one["state"], one["text"])
        for one in summary["states"]
    ]
    return html.table(("clip time", "state", "text"), rows)


def _facts(summary: Mapping[str, Any]) -> html.Markup:
    first_ns, last_ns = summary["stamps_ns"][0], summary["stamps_ns"][-1]
    rows: list[tuple[object, object]] = [
        ("input", summary.get("input")),
        ("mode", summary.get("mode")),
        ("frames", f"{summary['frames']} in {(last_ns - first_ns) / 1e9:.2f} s"),
        ("frames with a target", summary["frames_with_target"]),
        ("frames left out", summary.get("frames_rejected")),
        ("category", summary["category"] or "-"),
        ("time", f"{summary['seconds']:.1f} s" if "seconds" in summary else None),
        ("decaf_ros", summary.get("version")),
        *((name, summary.get("parameters", {}).get(name)) for name in _MODELS),
    ]
    return html.table((), rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
