"""Writes tables: the paper's figures beside ours, as Markdown and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.baselines.registry import DECAF
from decaf_ros.evaluation.report import percent, table, write_json
from decaf_ros.evaluation.tables.catalogue import SCORES
from decaf_ros.evaluation.tables.plan import Line, RunKey
from decaf_ros.evaluation.tables.runs import Measured
from decaf_ros.io.files import write_text

_HEADINGS = {"j_and_f": "J&F", "j": "J", "f": "F"}


def table_text(lines: Sequence[Line], measured: Mapping[RunKey, Measured]) -> str:
    """The lines of one table as Markdown. In per cent; "-" for what was not measured or published."""
    first = lines[0].table
    compared = any(line.figures for line in lines)
    # They repeat for every score.
    beside = ("published", "difference") if compared else ()
    headings = [heading for name in first.scores for heading in (_HEADINGS[name], *beside)]
    rows = [(*_named(line), *_figures(line, measured, compared), *_remarks(line, measured)) for line in lines]
    data = table(("method", "model", "data", "masks", *headings, "samples", "remarks"), rows)
    return f"## {_title(first.name)}: {first.text}\n\n{data}"


def _title(name: str) -> str:
    return f"Table {name.removeprefix('table')}"


def _named(line: Line) -> tuple[str, ...]:
    masks = {"sam": "SAM 2", "attention": "attention"}[line.column.masks]
    return line.row.method, line.row.model, line.column.text, masks


def _figures(line: Line, measured: Mapping[RunKey, Measured], compared: bool) -> list[str]:
    texts = []
    for values in line_scores(line, measured).values():
        published, difference = values["published"], values["difference"]
        texts.append(percent(values["ours"]))
        if compared:
            texts.append("-" if published is None else f"{published:.1f}")
            texts.append("-" if difference is None else f"{difference:+.1f}")
    return texts


def _remarks(line: Line, measured: Mapping[RunKey, Measured]) -> tuple[str, str]:
    found = measured.get(line.ready) if line.ready else None
    notes = [line.note] if line.note else []
    if line.figures and line.column.assumed and not line.note.startswith("published"):
        notes.insert(0, line.column.assumed)
    if found is None:
        return "-", "; ".join([*(f"missing: {text}" for text in line.missing), *notes])
    if found.failed:
        key, error = next(iter(found.failed.items()))
        notes.append(f"{len(found.failed)} samples failed, so there is no figure; {key}: {error}")
    if count := found.malformed:
        notes.append(f"{count.malformed} of {count.asked} answers malformed")
    if found.submission:
        notes.append(f"scored by the server: {found.submission.name}")
    return str(len(found.of(line.only))), "; ".join(notes)


def line_scores(line: Line, measured: Mapping[RunKey, Measured]) -> dict[str, dict[str, float | None]]:
    """By score: `ours`, a fraction; `published`, in per cent; `difference` in points; None where there is none.

    There is no difference to a part of the samples.
    """
    found = measured.get(line.ready) if line.ready else None
    names = line.table.scores
    ours = dict.fromkeys(names) if found is None else found.scores(line.column, names, line.only)
    scores = {}
    for name in names:
        published, own = line.figures.get(name), ours[name]
        whole = own is not None and published is not None and not line.note
        difference = 100 * own - published if whole and own is not None and published is not None else None
        scores[name] = {"ours": own, "published": published, "difference": difference}
    return scores


def comparison(
    lines: Sequence[Line], measured: Mapping[RunKey, Measured]
) -> tuple[str, list[dict[str, str | int | float | None]]]:
    """All configurations of several tables on one data set in one table, with both kinds of masks: as Markdown, and as
    JSON values, fractions. None, or "-", for what was not measured."""
    kinds = {"attention": "attention", "sam": "SAM 2"}
    content: list[dict[str, str | int | float | None]] = []
    rows = []
    first_lines = {line.ready: line for line in reversed(lines) if line.ready}
    # DecAF first, then the order of the tables.
    for key, line in sorted(reversed(first_lines.items()), key=lambda item: item[1].row.baseline != DECAF):
        found = measured.get(key) if key else None
        columns = {kind: dataclasses.replace(line.column, masks=kind) for kind in kinds}
        scores = {
            f"{kind}_{name}": score
            for kind, column in columns.items()
            for name, score in (dict.fromkeys(SCORES) if found is None else found.scores(column, SCORES)).items()
        }
        count = None if found is None else len(found.cases)
        content.append({"method": line.row.method, "model": line.row.model, "samples": count, **scores})
        cells = [percent(score) for score in scores.values()]
        rows.append((line.row.method, line.row.model, *cells, "-" if count is None else str(count)))
    headings = [f"{text} {_HEADINGS[name]}" for text in kinds.values() for name in SCORES]
    data = table(("method", "model", *headings, "samples"), rows)
    return f"## All methods\n\n{data}", content


def table_content(
    lines: Sequence[Line], measured: Mapping[RunKey, Measured], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The same as JSON values. settings: further entries."""
    return {
        "table": lines[0].table.name,
        "text": lines[0].table.text,
        **settings,
        "lines": [_line_content(line, measured) for line in lines],
    }


def _line_content(line: Line, measured: Mapping[RunKey, Measured]) -> dict[str, Any]:
    found = measured.get(line.ready) if line.ready else None
    return {
        "method": line.row.method,
        "model": line.row.model,
        "dataset": line.column.dataset,
        "split": line.column.split,
        "subset": line.column.subset,
        "masks": line.column.masks,
        "scores": line_scores(line, measured),
        "run": found and found.name,
        "samples": found and len(found.of(line.only)),
        "failed": dict(found.failed) if found else {},
        "malformed": found and found.malformed and found.malformed._asdict(),
        "missing": list(line.missing),
        "note": line.note,
    }


def write_table(out: Path, name: str, text: str, content: Mapping[str, Any]) -> None:
    """Writes NAME.md and NAME.json. Raises OSError."""
    write_text(out / f"{name}.md", text + "\n")
    write_json(out / f"{name}.json", content)
