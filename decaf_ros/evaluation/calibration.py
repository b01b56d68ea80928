"""Fits the weights and the threshold of the presence score to queries whose targets are known to be there or not.

The score remains a weighted mean of its parts. The fit is a logistic regression with non-negative weights, because
every part is evidence for the target. Dividing by the sum of the weights does not change the order of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from decaf_ros.config import PresenceConfig
from decaf_ros.evaluation.metrics import PrecisionRecall, Roc, precision_recall, roc
from decaf_ros.presence import PARTS, weighted_score
from decaf_ros.types import Presence

# Examples of each class below which the fit is little more than a guess.
ENOUGH = 30
# Most groups of clips for the cross-validation.
FOLDS = 5
# Points of the ROC curve that are printed: shares of the absent targets that may be taken for present ones.
_FALSE_RATES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
# Keeps the weights finite if the classes are separable.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Example:
    """One query about one clip.

    Attributes:
        clip: name of the clip.
        present: whether the target is there.
        passed: whether a tracklet would be selected at presence.threshold 0.
        presence: evidence that the target is there.
    """

    clip: str
    present: bool
    passed: bool
    presence: Presence


@dataclass(frozen=True)
class Calibration:
    """A fit of the presence score. An area is the area under a ROC curve.

    Attributes:
        examples: examples with and without a target: (present, absent).
        clips: number of clips.
        weights: sum to 1 up to rounding; 0 for parts without evidence, and for parts that no example has.
        asked: whether the examples have the model's answer to the question (presence.ask).
        threshold: best threshold of the weighted score.
        curve: ROC curve of the fit on its own examples.
        current_area: area with the weights of the configuration.
        folds: number of groups of clips in the cross-validation; 0 without one.
        held_out_area: mean area over the groups, each scored by a fit to the others; None if no group has both classes.
        held_out_not_found: precision and recall of "not found", each group decided by a fit to the others.
        part_areas: area of each part by itself.
        areas_without: area of a fit without the part; None if no other part is evidence.
        not_found: precision and recall of "not found" at the threshold, on the fit's own examples.
    """

    examples: tuple[int, int]
    clips: int
    weights: Mapping[str, float]
    asked: bool
    threshold: float
    curve: Roc
    current_area: float
    folds: int
    held_out_area: float | None
    held_out_not_found: PrecisionRecall
    part_areas: Mapping[str, float]
    areas_without: Mapping[str, float | None]
    not_found: PrecisionRecall


def calibrate(examples: Sequence[Example], current: PresenceConfig) -> Calibration:
    """Fits the score to examples with and without targets. current: the configuration to compare with.

    Raises ValueError if one class is missing, or no part separates them.
    """
    parts = _part_matrix(examples)
    present = np.array([example.present for example in examples], bool)
    if present.all() or not present.any():
        raise ValueError(
            f"calibration: expected present and absent targets, got {present.sum()} of {len(present)} present"
        )
    passed = np.array([example.passed for example in examples], bool)
    weights, threshold = _fit(parts, passed, present)
    scores = _scores(parts, weights)
    clips = {clip: number for number, clip in enumerate(dict.fromkeys(example.clip for example in examples))}
    folds = min(FOLDS, len(clips)) if len(clips) > 1 else 0
    groups = np.array([clips[example.clip] % max(folds, 1) for example in examples])
    held_out_area, held_out = _cross_validate(parts, passed, present, groups, folds)
    return Calibration(
        (int(present.sum()), int((~present).sum())),
        len(clips),
        dict(zip(PARTS, weights.tolist())),
        bool(np.isfinite(parts[:, PARTS.index("asked")]).any()),
        threshold,
        _curve(scores, present),
        _curve(_scores(parts, np.array([current.weights[name] for name in PARTS])), present).area,
        folds,
        held_out_area,
        held_out,
        {name: _curve(np.nan_to_num(column), present).area for name, column in zip(PARTS, parts.T)},
        {name: _area_without(parts, present, index) for index, name in enumerate(PARTS)},
        precision_recall((scores < threshold) | ~passed, ~present),
    )


def parameter_text(fitted: Calibration) -> str:
    """The fit as a ROS parameter file."""
    present, absent = fitted.examples
    area, (precision, recall) = fitted.held_out_area, fitted.held_out_not_found
    return "\n".join(
        [
            f"# Presence score, fitted to {present} queries whose target is there and {absent} whose target is not,",
            f'# in {fitted.clips} clips. "Not found" in {fitted.folds}-fold cross-validation by clip: precision '
            f"{_percent(precision)} %,",
            f"# recall {_percent(recall)} %; area under the ROC curve {_percent(area)} %.",
            "/**:",
            "  ros__parameters:",
            "    presence:",
            f"      ask: {str(fitted.asked).lower()}",
            f"      threshold: {fitted.threshold:.3f}",
            *(f"      weight_{name}: {float(weight)}" for name, weight in fitted.weights.items()),
            "",
        ]
    )


def calibration_text(fitted: Calibration) -> str:
    """The fit and its quality, for the terminal."""
    present, absent = fitted.examples
    rows = [
        (f'"not found", {fitted.folds} groups of clips held out: precision', fitted.held_out_not_found.precision),
        (f'"not found", {fitted.folds} groups of clips held out: recall', fitted.held_out_not_found.recall),
        ("ROC area, held out", fitted.held_out_area),
        ('"not found" on the fitted examples: precision', fitted.not_found.precision),
        ('"not found" on the fitted examples: recall', fitted.not_found.recall),
        ("ROC area, fitted", fitted.curve.area),
        ("ROC area, weights of the configuration", fitted.current_area),
        *((f"ROC area, {name} only", area) for name, area in fitted.part_areas.items()),
        *((f"ROC area, fitted without {name}", area) for name, area in fitted.areas_without.items()),
    ]
    rows += [
        (f"found of what is there, with at most {_percent(allowed)} % of the rest", _recall(fitted.curve, allowed))
        for allowed in _FALSE_RATES
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}  {_percent(value):>5}" for name, value in rows]
    text = [parameter_text(fitted), f"{'':{width}}      %", *lines]
    if not fitted.folds:
        text += ["", "One clip only: nothing can be held out, so these figures say little about other clips."]
    missing = [
        f"{ENOUGH - count} more of targets that are {kind}"
        for kind, count in (("there", present), ("not there", absent))
        if count < ENOUGH
    ]
    if missing:
        text += [
            "",
            f"TOO FEW EXAMPLES ({present} there, {absent} not): the weights, the threshold and the figures may be",
        ]
        text += [f"far off. At least {ENOUGH} of each are needed: {' and '.join(missing)}."]
    return "\n".join(text)


def fit_weights(parts: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weights of a logistic regression in which both classes count the same: (P,) float64, non-negative, sum 1.

    parts: (N, P) in [0, 1]. present: (N,) bool, both classes. Raises ValueError if all weights are 0.
    """
    case_weights = np.where(present, 0.5 / present.sum(), 0.5 / (~present).sum())
    sign = np.where(present, 1.0, -1.0)

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        bias, weights = coefficients[0], coefficients[1:]
        margins = sign * (parts @ weights + bias)
        slope = -case_weights * sign / (1 + np.exp(np.clip(margins, -500, 500)))
        value = float(case_weights @ np.logaddexp(0, -margins)) + _RIDGE * float(weights @ weights)
        return value, np.concatenate([[slope.sum()], parts.T @ slope + 2 * _RIDGE * weights])

    bounds = [(None, None), *[(0.0, None)] * parts.shape[1]]
    fit = minimize(loss, np.zeros(parts.shape[1] + 1), jac=True, bounds=bounds, method="L-BFGS-B")
    weights: np.ndarray = fit.x[1:]
    if weights.sum() <= 1e-9:
        raise ValueError("calibration: no part of the evidence is larger for present targets than for absent ones")
    return np.asarray(weights / weights.sum())


def best_threshold(scores: np.ndarray, passed: np.ndarray, present: np.ndarray) -> float:
    """The threshold with the largest F-measure of "not found", halfway between two scores. Both classes count the same.

    passed: (N,) bool. A case that did not pass is "not found" at any threshold.
    """
    values = np.unique(scores)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])

    def f_measure(threshold: float) -> float:
        rejected = (scores < threshold) | ~passed
        recall, false_rate = float(np.mean(rejected[~present])), float(np.mean(rejected[present]))
        return 2 * recall / (1 + recall + false_rate)

    return float(max(candidates, key=f_measure))


def _part_matrix(examples: Sequence[Example]) -> np.ndarray:
    """(N, P) float64 in [0, 1]; NaN where a part is unknown."""
    values = [[getattr(one.presence, name) for name in PARTS] for one in examples]
    rows = [[np.nan if value is None else value for value in row] for row in values]
    return np.array(rows, float).reshape(len(examples), len(PARTS))


def _fit(parts: np.ndarray, passed: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights, rounded as they are written, and the threshold that belongs to them."""
    weights = fit_weights(np.nan_to_num(parts), present)
    weights = weights.round(2) if weights.round(2).any() else weights
    return weights, best_threshold(_scores(parts, weights), passed, present)


def _cross_validate(
    parts: np.ndarray, passed: np.ndarray, present: np.ndarray, groups: np.ndarray, folds: int
) -> tuple[float | None, PrecisionRecall]:
    """Mean ROC area over the groups, and precision and recall of "not found"; None without a measurement."""
    areas, rejected, absent = [], [], []
    for group in range(folds):
        test, train = groups == group, groups != group
        if present[train].all() or not present[train].any():
            continue
        try:
            weights, threshold = _fit(parts[train], passed[train], present[train])
        except ValueError:  # no part is evidence
            continue
        scores = _scores(parts[test], weights)
        rejected += ((scores < threshold) | ~passed[test]).tolist()
        absent += (~present[test]).tolist()
        curve = roc(scores, present[test])
        areas += [curve.area] if curve else []
    return (float(np.mean(areas)) if areas else None), precision_recall(rejected, absent)


def _scores(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    weights_by_name = dict(zip(PARTS, weights.tolist()))
    rows = [[None if np.isnan(value) else value for value in row] for row in parts.tolist()]
    return np.array([weighted_score(dict(zip(PARTS, row)), weights_by_name) for row in rows])


def _curve(scores: np.ndarray, present: np.ndarray) -> Roc:
    curve = roc(scores, present)
    assert curve is not None, "both classes are there"
    return curve


def _recall(curve: Roc, false_rate: float) -> float:
    """The largest true positive rate of a ROC curve at this false positive rate or a smaller one."""
    return float(curve.true_positive_rate[curve.false_positive_rate <= false_rate].max())


def _area_without(parts: np.ndarray, present: np.ndarray, index: int) -> float | None:
    rest = np.nan_to_num(np.delete(parts, index, axis=1))
    try:
        return _curve(rest @ fit_weights(rest, present), present).area
    except ValueError:  # no other part is evidence
        return None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
