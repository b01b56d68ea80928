"""Fits the weights and the threshold of the presence score on clips that are used for nothing else.

The score remains a weighted mean of its parts. The fit is a logistic regression with non-negative weights, because
every part is evidence for the target. Dividing by the sum of the weights does not change the order of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from decaf_ros.evaluation.metrics import PrecisionRecall, Roc, precision_recall, roc
from decaf_ros.evaluation.run import Case, is_absent
from decaf_ros.presence import WEIGHTS, weighted_score

# Keeps the weights finite if the classes are separable.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Calibration:
    """A fit of the presence score. An area is the area under a ROC curve.

    Attributes:
        weights: sum to 1 up to rounding.
        threshold: best threshold of the weighted score.
        curve: ROC curve of the fit on its own cases.
        current_area: area with `presence.WEIGHTS`.
        held_out_area: mean area over two halves of the clips, each scored by a fit on the other half; None if a half
            has only one class.
        part_areas: area of each part by itself.
        areas_without: area of a fit without the part; None if no other part is evidence.
        not_found: precision and recall of "not found" at the threshold.
    """

    weights: Mapping[str, float]
    threshold: float
    curve: Roc
    current_area: float
    held_out_area: float | None
    part_areas: Mapping[str, float]
    areas_without: Mapping[str, float | None]
    not_found: PrecisionRecall


def calibrate(cases: Sequence[Case]) -> Calibration:
    """Fits the score to cases with and without targets.

    The cases must come from a run with presence.threshold 0, so that `found` is false only if no tracklet passed.
    Raises ValueError if one class is missing, or no part separates them.
    """
    parts = np.array([[getattr(case.presence, name) for name in WEIGHTS] for case in cases]).reshape(len(cases), -1)
    present = np.array([not is_absent(case) for case in cases], bool)
    if present.all() or not present.any():
        raise ValueError(
            f"calibration: expected present and absent targets, got {present.sum()} of {len(present)} present"
        )
    weights = _rounded(fit_weights(parts, present))
    scores = _scores(parts, weights)
    passed = np.array([case.found for case in cases], bool)
    threshold = best_threshold(scores, passed, present)
    clips = {clip: number for number, clip in enumerate(dict.fromkeys(case.clip for case in cases))}
    halves = np.array([clips[case.clip] % 2 for case in cases])
    return Calibration(
        dict(zip(WEIGHTS, weights.tolist())),
        threshold,
        _curve(scores, present),
        _curve(_scores(parts, np.array(list(WEIGHTS.values()))), present).area,
        _held_out_area(parts, present, halves),
        {name: _curve(column, present).area for name, column in zip(WEIGHTS, parts.T)},
        {name: _area_without(parts, present, index) for index, name in enumerate(WEIGHTS)},
        precision_recall((scores < threshold) | ~passed, ~present),
    )


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
    """The threshold with the largest F-measure of "not found", halfway between two scores.

    passed: (N,) bool. A case that did not pass is "not found" at any threshold.
    """
    values = np.unique(scores)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])

    def f_measure(threshold: float) -> float:
        precision, recall = precision_recall((scores < threshold) | ~passed, ~present)
        return 2 * precision * recall / (precision + recall) if precision and recall else 0.0

    return float(max(candidates, key=f_measure))


def _scores(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    weights_by_name = dict(zip(WEIGHTS, weights.tolist()))
    return np.array([weighted_score(dict(zip(WEIGHTS, row.tolist())), weights_by_name) for row in parts])


def _curve(scores: np.ndarray, present: np.ndarray) -> Roc:
    curve = roc(scores, present)
    assert curve is not None, "both classes are there"
    return curve


def _rounded(weights: np.ndarray) -> np.ndarray:
    """The weights as they are printed, so that the printed fit is the measured one."""
    return weights.round(2) if weights.round(2).any() else weights


def _area_without(parts: np.ndarray, present: np.ndarray, index: int) -> float | None:
    rest = np.delete(parts, index, axis=1)
    try:
        return _curve(rest @ fit_weights(rest, present), present).area
    except ValueError:  # no other part is evidence
        return None


def _held_out_area(parts: np.ndarray, present: np.ndarray, halves: np.ndarray) -> float | None:
    areas = []
    for half in (0, 1):
        test, train = halves == half, halves != half
        if any(group.all() or not group.any() for group in (present[train], present[test])):
            return None
        areas.append(_curve(_scores(parts[test], fit_weights(parts[train], present[train])), present[test]).area)
    return float(np.mean(areas))
