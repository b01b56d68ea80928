"""Aggregates scores into the content of the evaluation's JSON file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.evaluation.ablation import FULL, VARIANTS
from decaf_ros.evaluation.datasets.clips import is_absent_kind
from decaf_ros.evaluation.metrics import MaskScore, Roc, mean, names_category, precision_recall, roc
from decaf_ros.evaluation.online import OnlineScore
from decaf_ros.evaluation.protocol import protocol
from decaf_ros.evaluation.run import Case, CasePicture, ClipScores, is_absent
from decaf_ros.evaluation.sam2 import SegmenterScore
from decaf_ros.presence import PARTS

MEASURES = ("j_and_f", "j", "f", "pointing", "category")


class Extremes(NamedTuple):
    """The best and the worst case of one type; the same case if there is only one."""

    best: CasePicture
    worst: CasePicture


@dataclass
class Collected:
    """Collects the scores of clips. Keeps only the pictures of the best and the worst case of each type."""

    cases: list[Case] = field(default_factory=list)
    online: list[OnlineScore] = field(default_factory=list)
    segmenter: list[SegmenterScore] = field(default_factory=list)
    extremes: dict[str, Extremes] = field(default_factory=dict)

    def add(self, scores: ClipScores) -> None:
        """Adds the scores of one clip."""
        self.cases += [entry.case for entry in scores.cases]
        self.online += [scores.online] if scores.online else []
        self.segmenter += [scores.segmenter] if scores.segmenter else []
        for entry in scores.cases:
            kind = entry.case.kind
            best, worst = self.extremes.get(kind, (entry, entry))
            best = entry if _merit(entry.case) > _merit(best.case) else best
            worst = entry if _merit(entry.case) < _merit(worst.case) else worst
            self.extremes[kind] = Extremes(best, worst)


def _merit(case: Case) -> tuple[float, float]:
    """Larger is better: J&F, then pointing; for absent targets a correct answer, then a low presence score."""
    if is_absent(case) or case.published is None:
        return (float(case.found == (not is_absent(case))), -case.presence.score)
    return case.published.j_and_f, case.pointing.hit if case.pointing else 0.0


def summary(collected: Collected, kinds: Collection[str], threshold: float) -> dict[str, Any]:
    """The content of the JSON file: fractions in [0, 1], None if nothing was measured.

    kinds: the types to list. threshold: presence.threshold.
    """
    cases = collected.cases
    present = [case for case in cases if not is_absent(case)]
    listed = [kind for kind in kinds if not is_absent_kind(kind)]
    by_type = {kind: [case for case in present if case.kind == kind] for kind in listed}
    absent = [is_absent(case) for case in cases]
    not_found = precision_recall([not case.found for case in cases], absent)
    by_score = precision_recall([case.presence.score < threshold for case in cases], absent)
    pointings = [case.pointing for case in present if case.pointing]
    return {
        "overall": measures(present, _published),
        "by_type": {kind: measures(of_type, _published) for kind, of_type in by_type.items()},
        "absent": not_found._asdict(),
        "absent_by_score": by_score._asdict(),
        "absent_by_type": _absent_by_type(cases, [kind for kind in kinds if is_absent_kind(kind)]),
        "ablation": _ablation(present),
        "baseline": {
            "chance_pointing": mean(pointing.chance for pointing in pointings),
            "centre_pointing": mean(pointing.centre for pointing in pointings),
        },
        "protocol": protocol(present),
        "always_answered": measures(present, lambda case: case.always),
        "pointing_window": mean(pointing.window for pointing in pointings),
        "category_by_branch": {
            "overall": _by_branch(present),
            "by_type": {kind: _by_branch(of_type) for kind, of_type in by_type.items()},
        },
        "attention_masks": _attention_masks(present),
        "roc": _roc(cases, threshold),
        "presence_curve": _presence_curve(cases),
        "case_seconds": percentiles([case.seconds for case in cases]),
        "online": _online(collected.online),
        "segmenter": _segmenter(collected.segmenter),
        "counts": {
            "clips": len({case.clip for case in cases}),
            "by_type": {kind: len(of_type) for kind, of_type in by_type.items()},
            "present": len(present),
            "absent": len(cases) - len(present),
            "not_found": dict(Counter(case.kind for case in cases if not case.found)),
            "ablation": sum(bool(case.ablation) for case in present),
            "answers": sum(case.malformed.asked for case in cases if case.malformed),
            "malformed": sum(case.malformed.malformed for case in cases if case.malformed),
        },
    }


def measures(cases: Iterable[Case], score: Callable[[Case], MaskScore | None]) -> dict[str, float | None]:
    """Means over cases. score: selects the mask score of a case."""
    cases = list(cases)
    return _measures(
        [score(case) for case in cases],
        [case.pointing and case.pointing.hit for case in cases],
        [case.category_right for case in cases],
    )


def _absent_by_type(cases: Sequence[Case], kinds: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Precision and recall of "not found" for each type without targets, against all cases with targets."""
    scores = {}
    for kind in kinds:
        compared = [case for case in cases if case.kind == kind or not is_absent(case)]
        found = precision_recall([not case.found for case in compared], [is_absent(case) for case in compared])
        scores[kind] = found._asdict()
    return scores


def presence_roc(cases: Sequence[Case]) -> Roc | None:
    """ROC curve of the presence score; present targets are the positives."""
    return roc([case.presence.score for case in cases], [not is_absent(case) for case in cases])


def _published(case: Case) -> MaskScore | None:
    return case.published


def _measures(
    masks: Sequence[MaskScore | None], pointing: Sequence[float | None], category: Sequence[bool | None]
) -> dict[str, float | None]:
    scored = [score for score in masks if score is not None]
    values = (
        mean(score.j_and_f for score in scored),
        mean(score.j for score in scored),
        mean(score.f for score in scored),
        mean(pointing),
        mean(category),
    )
    return dict(zip(MEASURES, values))


def _ablation(present: Sequence[Case]) -> dict[str, dict[str, float | None]]:
    """Measures of every variant, over the cases with an ablation."""
    ablated = [case for case in present if case.ablation]
    by_variant = {}
    for name in (FULL, *VARIANTS) if ablated else ():
        scores = [case.ablation[name] for case in ablated]
        by_variant[name] = _measures(
            [score.masks for score in scores],
            [score.pointing and score.pointing.hit for score in scores],
            [names_category(score.decoded_category, case.category) for score, case in zip(scores, ablated)],
        )
    return by_variant


def _attention_masks(present: Sequence[Case]) -> dict[str, float | None]:
    """J&F of masks from the attention map only, on the key frames."""
    ablated = [case for case in present if case.ablation]
    names = (FULL, *VARIANTS) if ablated else ()
    return {name: mean(_j_and_f(case.ablation[name].attention) for case in ablated) for name in names}


def _j_and_f(score: MaskScore | None) -> float | None:
    return score and score.j_and_f


def _by_branch(cases: Sequence[Case]) -> dict[str, float | None]:
    """Category accuracy of each branch, before the choice."""
    return {
        "video": mean(names_category(case.video_category, case.category) for case in cases),
        "frames": mean(names_category(answer, case.category) for case in cases for answer in case.frame_categories),
    }


def _roc(cases: Sequence[Case], threshold: float) -> dict[str, Any]:
    curve = presence_roc(cases)
    present = [not is_absent(case) for case in cases]
    values = {name: [getattr(case.presence, name) for case in cases] for name in PARTS}
    # presence.ask may be off.
    parts = {name: roc(column, present) for name, column in values.items() if None not in column}
    return {
        "area": curve and curve.area,
        "threshold": threshold,
        "false_found": curve and curve.false_positive_rate.tolist(),
        "true_found": curve and curve.true_positive_rate.tolist(),
        # JSON has no infinity; scores are at most 1.
        "thresholds": curve and np.minimum(curve.thresholds, 1.0 + 1e-9).tolist(),
        "parts": {name: part and part.area for name, part in parts.items()},
    }


def _presence_curve(cases: Sequence[Case]) -> dict[str, list[Any]] | None:
    """Precision and recall of "found" by the presence score alone, by rising threshold; None without both kinds."""
    present = np.array([not is_absent(case) for case in cases])
    if not len(present) or present.all() or not present.any():
        return None
    scores = np.array([case.presence.score for case in cases])
    thresholds = np.unique(np.clip([0.0, *scores], 0.0, 1.0))
    found = scores >= thresholds[:, None]
    right = (found & present).sum(axis=1)
    return {
        "thresholds": thresholds.tolist(),
        "precision": (right / np.maximum(found.sum(axis=1), 1)).tolist(),
        "recall": (right / present.sum()).tolist(),
    }


def percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """The median and upper percentiles by name; empty without values."""
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 95, 99)} if len(values) else {}


def _online(scores: Sequence[OnlineScore]) -> dict[str, Any]:
    return {
        "clips": len(scores),
        "hidden": sum(score.hidden for score in scores),
        "frames": sum(score.frames for score in scores),
        "id_switches": sum(score.switches for score in scores),
        "id_drifts": sum(score.drifts for score in scores),
        "tracked": mean(score.tracked for score in scores),
        "j": mean(score.j for score in scores),
        "played": [asdict(score) for score in scores],
    }


def _segmenter(scores: Sequence[SegmenterScore]) -> dict[str, Any]:
    clicks = [click for score in scores for click in score.clicks]
    propagated = [item for score in scores for item in score.propagated]
    occluded = [item for item in propagated if item.occluded]
    return {
        "clips": len(scores),
        "clicks": len(clicks),
        "one_click_iou": mean(iou for iou, _ in clicks),
        "predicted_iou_error": mean(abs(iou - predicted) for iou, predicted in clicks),
        "objects": len(propagated),
        "propagated_iou": mean(item.iou for item in propagated),
        "propagated_iou_all_frames": mean(item.mean for item in propagated),
        "propagated_iou_from_mask": mean(item.from_mask for item in propagated),
        "crossed": len(occluded),
        "crossed_iou": mean(item.iou for item in occluded),
    }
