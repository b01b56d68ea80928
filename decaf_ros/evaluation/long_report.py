"""Writes the report of `decaf eval --long`: tables, JSON files, a figure over time and the worst clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.long import FOUND_AGAIN_S, UNSEEN_S, VISIBLE_PX, Watched
from decaf_ros.evaluation.long_pictures import over_time_picture
from decaf_ros.evaluation.long_summary import curves
from decaf_ros.evaluation.report import percent, remove_report, table, write_json
from decaf_ros.evaluation.report_page import long_page
from decaf_ros.io.files import write_text
from decaf_ros.io.results import write_png
from decaf_ros.io.viz import contact_sheet

# Clips shown as pictures.
_WORST = 4


def long_report_text(summary: Mapping[str, Any]) -> str:
    """The tables of a summary, as Markdown that is readable in a terminal too."""
    stretches = {**summary["by_time"], "all": summary["overall"]}
    rows = [
        ("J (%)", *(percent(one["j"]) for one in stretches.values())),
        ("time on a wrong object (%)", *(percent(one["wrong_object"]) for one in stretches.values())),
        ("time TRACKED with a wrong mask (%)", *(percent(one["false_tracked"]) for one in stretches.values())),
        ("id switches a minute", *(_number(one["id_switches_a_minute"]) for one in stretches.values())),
        ("targets that come back", *(str(one["returns"]["count"]) for one in stretches.values())),
        (
            f"found again within {FOUND_AGAIN_S:g} s (%)",
            *(percent(one["returns"]["found_in_time"]) for one in stretches.values()),
        ),
        ("found again at all (%)", *(percent(one["returns"]["found_again"]) for one in stretches.values())),
        ("median delay (s)", *(_number(one["returns"]["median_delay_s"]) for one in stretches.values())),
        ("groundings a minute", *(_number(one["groundings_a_minute"]) for one in stretches.values())),
        ("CPU seconds a minute", *(_number(one["cpu_seconds_a_minute"]) for one in stretches.values())),
    ]
    clips = [
        (
            one["clip"],
            one["text"],
            f"{one['asked_s']:.1f}",
            "yes" if one["answered"] else "no",
            percent(one["j"]),
            percent(one["wrong_object"]),
            percent(one["false_tracked"]),
            f"{one['returns']['count']}",
        )
        for one in summary["watched"]
    ]
    headings = ("clip", "query", "asked (s)", "answered", "J", "wrong object", "TRACKED, but wrong", "returns")
    return "\n\n".join(
        [
            f"Questions: {summary['questions']}, answered with targets: {summary['answered']}. Each was asked early in "
            "a clip; the columns are stretches of time since its answer. J counts frames with at least "
            f"{VISIBLE_PX} visible pixels of the targets. A target comes back after {UNSEEN_S:g} s or more without a "
            "visible pixel.",
            "Seconds from a question to the first mask, on this machine: "
            + (", ".join(f"{name} {value:.2f}" for name, value in summary["first_mask_s"].items()) or "no mask"),
            table(("measure", *stretches), rows),
            table(headings, clips),
        ]
    )


def write_long_report(folder: Path, summary: Mapping[str, Any], watched: Sequence[Watched], text: str) -> None:
    """Writes report.html, report.md, report.json, watched.json and the pictures; replaces an earlier report.

    text: from `long_report_text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_report(folder)
    # First: an error of a page or a picture must not cost the numbers.
    write_json(folder / "report.json", summary)
    write_json(folder / "watched.json", [_frames(one) for one in watched])
    write_png(folder / "over_time.png", over_time_picture(curves(watched), f"Mean of {len(watched)} questions"))
    ordered = sorted(watched, key=lambda one: one.mean_j)
    worst = ordered[:_WORST]
    captions = [_caption(one) for one in worst]
    width = max(one.picture.shape[1] for one in worst)
    write_png(folder / "worst.png", contact_sheet([one.picture for one in worst], 1, captions, width))
    pictures = (
        "![Scores by time since the answer](over_time.png)",
        "![The worst clips](worst.png)\n\nThe worst clips, with the outlines of the ground truth and of the result.",
    )
    write_text(folder / "report.md", "\n\n".join(["# Evaluation on long clips", text, *pictures]) + "\n")
    best = ordered[_WORST:][::-1][:_WORST]  # none twice
    shown = {"The worst clips": worst, "The best clips": best} if best else {"All clips": worst}
    pictures_by_title = {title: [(one.picture, _caption(one)) for one in those] for title, those in shown.items()}
    page = long_page(summary, text, curves(watched), pictures_by_title)
    write_text(folder / "report.html", page)


def _caption(one: Watched) -> str:
    return f'clip {one.clip}, "{one.text}", asked at {one.asked_s:.1f} s: J {percent(one.mean_j)}'


def _frames(one: Watched) -> dict[str, Any]:
    """The scores of every frame."""
    return {
        "clip": one.clip,
        "text": one.text,
        "seconds": one.seconds.round(3).tolist(),
        "j": [None if value != value else round(value, 4) for value in one.j.tolist()],
        "wrong_object": one.wrong.astype(int).tolist(),
        "false_tracked": one.false_tracked.astype(int).tolist(),
        "id_switches": one.switches.tolist(),
        "groundings": one.groundings.tolist(),
        "returns": [back._asdict() for back in one.returns],
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
