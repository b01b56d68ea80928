"""The scores of the paper's tables: the published protocol, in which every question is answered, by subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decaf_ros.evaluation.metrics import POINT_COUNTS, mean
from decaf_ros.evaluation.run import Case

# Means over expressions, with their headings.
SCORES: Mapping[str, str] = {
    "j_and_f": "J&F",
    "j": "J",
    "f": "F",
    "robustness": "R",
    "attention_j_and_f": "attention J&F",
    "attention_j": "attention J",
    "attention_f": "attention F",
    **{f"pp_{count}": f"PP@{count}" for count in POINT_COUNTS},
}
ALL = "all"


def protocol(present: Sequence[Case]) -> dict[str, Any]:
    """Means over the expressions of each subset, and their means over the subsets. Fractions; None if not measured.

    present: cases with targets. A dataset without subsets has the single subset "all". ReVOS's overall score is the
    mean of referring and reasoning, whatever their numbers; Ref-DAVIS17's that of its four sets of descriptions.
    """
    names = dict.fromkeys(case.subset for case in present)
    subsets = {name or ALL: [case for case in present if case.subset == name] for name in names}
    by_subset = {name: _means(cases) for name, cases in subsets.items()}
    return {
        "overall": {score: mean(means[score] for means in by_subset.values()) for score in SCORES},
        "by_subset": by_subset,
        "counts": {name: len(cases) for name, cases in subsets.items()},
    }


def _means(cases: Sequence[Case]) -> dict[str, float | None]:
    return {
        "j_and_f": mean(case.always and case.always.j_and_f for case in cases),
        "j": mean(case.always and case.always.j for case in cases),
        "f": mean(case.always and case.always.f for case in cases),
        "robustness": mean(case.robustness for case in cases),
        "attention_j_and_f": mean(case.attention and case.attention.j_and_f for case in cases),
        "attention_j": mean(case.attention and case.attention.j for case in cases),
        "attention_f": mean(case.attention and case.attention.f for case in cases),
        **{f"pp_{count}": mean(case.points.get(count) for case in cases) for count in POINT_COUNTS},
    }
