"""Compares two reports of `decaf eval` on the same clips and questions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from decaf_ros.comparison.differences import DifferentInputError
from decaf_ros.comparison.results import ResultError

_SAME_SETTINGS = ("dataset", "seed", "clips", "kinds", "expressions_a_clip", "ground_truth", "start_s", "duration_s")


class CaseDifference(NamedTuple):
    """One question about one clip. j_and_f: with and without, in [0, 1]; None without targets."""

    clip: str
    text: str
    kind: str
    answers: tuple[str, str]
    found: tuple[bool, bool]
    categories: tuple[str | None, str | None]
    j_and_f: tuple[float | None, float | None]
    presence: tuple[float, float]

    @property
    def is_change(self) -> bool:
        """Whether one found something and the other did not, or named something else."""
        return self.found[0] != self.found[1] or self.categories[0] != self.categories[1]

    @property
    def drop(self) -> float:
        """By how much J&F of B is lower; 0 if it was not measured."""
        a, b = self.j_and_f
        return 0.0 if a is None or b is None else a - b


@dataclass(frozen=True)
class StoredReport:
    """A report on the disk: report.json and the entries of cases.json."""

    path: Path
    numbers: Mapping[str, Any]
    cases: tuple[Mapping[str, Any], ...]

    @property
    def version(self) -> str:
        return str(self.numbers.get("version", ""))

    @property
    def parameters(self) -> Mapping[str, Any]:
        return dict(self.numbers["settings"].get("parameters", {}))


def is_report(path: Path) -> bool:
    """Whether `path` is a report of `decaf eval`: its folder, or report.json in it."""
    return path.name == "report.json" or (path / "report.json").is_file()


def read_report(path: Path) -> StoredReport:
    """Raises FileNotFoundError or ResultError."""
    folder = path.parent if path.name == "report.json" else path
    contents = []
    for name in ("report.json", "cases.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: expected {name} of decaf eval (without --long), got none")
        try:
            contents.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ResultError(f"{folder / name}: expected JSON, got {error}") from error
    if "settings" not in contents[0]:
        raise ResultError(f"{folder / 'report.json'}: expected a report of decaf eval, got {', '.join(contents[0])}")
    return StoredReport(folder, contents[0], tuple(contents[1]))


def compare_reports(a: StoredReport, b: StoredReport) -> list[CaseDifference]:
    """The questions in the order of A. Raises DifferentInputError if data set, clips or questions differ."""
    for name in _SAME_SETTINGS:
        values = [report.numbers["settings"].get(name) for report in (a, b)]
        if values[0] != values[1]:
            raise DifferentInputError(
                f"different inputs: {name} is {values[0]} in {a.path} and {values[1]} in {b.path}"
            )
    cases_a, cases_b = ({_key(case): case for case in report.cases} for report in (a, b))
    if missing := sorted(cases_a.keys() ^ cases_b.keys()):
        clip, _, text = missing[0]
        raise DifferentInputError(f"different inputs: only one report asks {text!r} about clip {clip}")
    return [_difference(case, cases_b[key]) for key, case in cases_a.items()]


def overall(report: StoredReport) -> float | None:
    """J&F over all questions with targets."""
    value = report.numbers["overall"]["j_and_f"]
    return None if value is None else float(value)


def _key(case: Mapping[str, Any]) -> tuple[str, str, str]:
    return case["clip"], case.get("name", ""), case["text"]


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> CaseDifference:
    return CaseDifference(
        a["clip"],
        a["text"],
        a["kind"],
        (a["answer"], b["answer"]),
        (a["found"], b["found"]),
        (a["decoded_category"], b["decoded_category"]),
        (_j_and_f(a), _j_and_f(b)),
        (a["presence"]["score"], b["presence"]["score"]),
    )


def _j_and_f(case: Mapping[str, Any]) -> float | None:
    score = case["published"]
    return None if score is None else float(score["j"] + score["f"]) / 2
