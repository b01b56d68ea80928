"""From cases to numbers: what the JSON file of an evaluation holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.evaluation.ablation import FULL, VARIANTS
from decaf_ros.evaluation.metrics import MaskScore, Roc, detection, mean, roc, says
from decaf_ros.evaluation.online import OnlineScore
from decaf_ros.evaluation.run import Case, ClipScores, Pictured, is_absent
from decaf_ros.evaluation.sam2 import SegmenterScore
from decaf_ros.presence import WEIGHTS

MEASURES = ("j_and_f", "j", "f", "pointing", "category")


class Extremes(NamedTuple):
    """The best and the worst case of one type, the same one where there is only one."""

    best: Pictured
    worst: Pictured


@dataclass
class Collected:
    """Takes in clips as they come. Of the pictures only the best and the worst of each type are kept."""

    cases: list[Case] = field(default_factory=list)
    online: list[OnlineScore] = field(default_factory=list)
    segmenter: list[SegmenterScore] = field(default_factory=list)
    extremes: dict[str, Extremes] = field(default_factory=dict)

    def take(self, scores: ClipScores) -> None:
        """Adds what came of one clip."""
        self.cases += [pictured.case for pictured in scores.cases]
        self.online += [scores.online] if scores.online else []
        self.segmenter += [scores.segmenter] if scores.segmenter else []
        for pictured in scores.cases:
            kind = pictured.case.kind
            best, worst = self.extremes.get(kind, (pictured, pictured))
            best = pictured if _merit(pictured.case) > _merit(best.case) else best
            worst = pictured if _merit(pictured.case) < _merit(worst.case) else worst
            self.extremes[kind] = Extremes(best, worst)


def _merit(case: Case) -> tuple[float, float]:
    """The larger the better: masks, then pointing; for an absent target how clearly it was said to be absent."""
    if is_absent(case) or case.published is None:
        return (float(case.found == (not is_absent(case))), -case.presence.score)
    return case.published.j_and_f, case.pointing.hit if case.pointing else 0.0


def summary(collected: Collected, kinds: Collection[str], threshold: float) -> dict[str, Any]:
    """The scores in the form of the JSON file: fractions in [0, 1], None where nothing was measured.

    kinds: the types that are listed. threshold: of the presence score.
    """
    cases = collected.cases
    present = [case for case in cases if not is_absent(case)]
    listed = [kind for kind in kinds if kind != "absent"]
    of_kind = {kind: [case for case in present if case.kind == kind] for kind in listed}
    missing = [is_absent(case) for case in cases]
    absent = detection([not case.found for case in cases], missing)
    by_score = detection([case.presence.score < threshold for case in cases], missing)
    pointings = [case.pointing for case in present if case.pointing]
    return {
        "overall": measures(present, _published),
        "by_type": {kind: measures(found, _published) for kind, found in of_kind.items()},
        "absent": absent._asdict(),
        "absent_by_score": by_score._asdict(),
        "ablation": _ablation(present),
        "baseline": {
            "chance_pointing": mean(one.chance for one in pointings),
            "centre_pointing": mean(one.centre for one in pointings),
        },
        "always_answered": measures(present, lambda case: case.always),
        "pointing_window": mean(one.window for one in pointings),
        "category_by_branch": {
            "overall": _by_branch(present),
            "by_type": {kind: _by_branch(found) for kind, found in of_kind.items()},
        },
        "attention_masks": _attention(present),
        "roc": _roc(cases, threshold),
        "online": _online(collected.online),
        "segmenter": _segmenter(collected.segmenter),
        "counts": {
            "clips": len({case.clip for case in cases}),
            "by_type": {kind: len(found) for kind, found in of_kind.items()},
            "present": len(present),
            "absent": len(cases) - len(present),
            "not_found": dict(Counter(case.kind for case in cases if not case.found)),
            "ablation": sum(bool(case.ablation) for case in present),
        },
    }


def measures(cases: Iterable[Case], score: Callable[[Case], MaskScore | None]) -> dict[str, float | None]:
    """Means over cases. score: which masks' score of a case counts."""
    cases = list(cases)
    return _measures(
        [score(case) for case in cases],
        [case.pointing and case.pointing.hit for case in cases],
        [case.category_right for case in cases],
    )


def presence_roc(cases: Sequence[Case]) -> Roc | None:
    """Of the presence score as it stands: "yes" is a target that is there."""
    return roc([case.presence.score for case in cases], [not is_absent(case) for case in cases])


def _published(case: Case) -> MaskScore | None:
    return case.published


def _measures(
    masks: Sequence[MaskScore | None], pointing: Sequence[float | None], category: Sequence[bool | None]
) -> dict[str, float | None]:
    there = [one for one in masks if one is not None]
    values = (
        mean(one.j_and_f for one in there),
        mean(one.j for one in there),
        mean(one.f for one in there),
        mean(pointing),
        mean(category),
    )
    return dict(zip(MEASURES, values))


def _ablation(present: Sequence[Case]) -> dict[str, dict[str, float | None]]:
    """Every variant over the cases that were put to all of them."""
    ablated = [case for case in present if case.ablation]
    found = {}
    for name in (FULL, *VARIANTS) if ablated else ():
        scores = [case.ablation[name] for case in ablated]
        found[name] = _measures(
            [one.masks for one in scores],
            [one.pointing and one.pointing.hit for one in scores],
            [says(one.said, case.category) for one, case in zip(scores, ablated)],
        )
    return found


def _attention(present: Sequence[Case]) -> dict[str, float | None]:
    """J&F of the masks of attention alone, on the key frames."""
    ablated = [case for case in present if case.ablation]
    names = (FULL, *VARIANTS) if ablated else ()
    return {name: mean(case.ablation[name].attention.j_and_f for case in ablated) for name in names}


def _by_branch(cases: Sequence[Case]) -> dict[str, float | None]:
    """Category accuracy of the answers before the choice."""
    return {
        "video": mean(says(case.video_said, case.category) for case in cases),
        "frames": mean(says(answer, case.category) for case in cases for answer in case.frames_said),
    }


def _roc(cases: Sequence[Case], threshold: float) -> dict[str, Any]:
    """parts: the area under the curve of each part by itself."""
    curve = presence_roc(cases)
    there = [not is_absent(case) for case in cases]
    parts = {name: roc([getattr(case.presence, name) for case in cases], there) for name in WEIGHTS}
    return {
        "area": curve and curve.area,
        "threshold": threshold,
        "false_found": curve and curve.false_yes.tolist(),
        "true_found": curve and curve.true_yes.tolist(),
        # JSON knows no infinity: nothing scores over 1.
        "thresholds": curve and np.minimum(curve.thresholds, 1.0 + 1e-9).tolist(),
        "parts": {name: part and part.area for name, part in parts.items()},
    }


def _online(scores: Sequence[OnlineScore]) -> dict[str, Any]:
    return {
        "clips": len(scores),
        "hidden": sum(one.hidden for one in scores),
        "frames": sum(one.frames for one in scores),
        "id_switches": sum(one.switches for one in scores),
        "id_drifts": sum(one.drifts for one in scores),
        "tracked": mean(one.tracked for one in scores),
        "j": mean(one.j for one in scores),
        "played": [asdict(one) for one in scores],
    }


def _segmenter(scores: Sequence[SegmenterScore]) -> dict[str, Any]:
    clicks = [click for one in scores for click in one.clicks]
    propagated = [one for score in scores for one in score.propagated]
    crossed = [one for one in propagated if one.crossed]
    return {
        "clips": len(scores),
        "clicks": len(clicks),
        "one_click_iou": mean(iou for iou, _ in clicks),
        "predicted_iou_error": mean(abs(iou - predicted) for iou, predicted in clicks),
        "objects": len(propagated),
        "propagated_iou": mean(one.iou for one in propagated),
        "propagated_iou_all_frames": mean(one.mean for one in propagated),
        "propagated_iou_from_mask": mean(one.from_mask for one in propagated),
        "crossed": len(crossed),
        "crossed_iou": mean(one.iou for one in crossed),
    }
