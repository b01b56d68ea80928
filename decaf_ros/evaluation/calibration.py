"""Fits what the presence score is made of, and its threshold, on clips that serve for nothing else.

The score stays what it is, a weighted mean of its parts: the fit is a logistic regression whose weights may not be
negative, since every part is evidence for the target. Dividing by the sum of the weights changes no order of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from decaf_ros.evaluation.metrics import Detection, Roc, detection, roc
from decaf_ros.evaluation.run import Case, is_absent
from decaf_ros.presence import WEIGHTS, weighted_score

# Keeps the weights finite where the classes can be told apart without error.
_RIDGE = 1e-3


@dataclass(frozen=True)
class Calibration:
    """weights: sum to 1. threshold: of the weighted score. curve: of the fit on its own cases; before: with the weights
    that stand in presence.py now; held_out: area where either half of the clips was scored by a fit on the other one.
    parts: area of each part by itself. without: of a fit that lacks it; None where the others tell nothing. not_found:
    at the threshold."""

    weights: Mapping[str, float]
    threshold: float
    curve: Roc
    before: float
    held_out: float | None
    parts: Mapping[str, float]
    without: Mapping[str, float | None]
    not_found: Detection


def calibrate(cases: Sequence[Case]) -> Calibration:
    """cases: with and without targets, found with the threshold 0, so that `found` says that something passed at all.

    Raises ValueError where one sort is missing, or no part tells them apart.
    """
    parts = np.array([[getattr(case.presence, name) for name in WEIGHTS] for case in cases]).reshape(len(cases), -1)
    there = np.array([not is_absent(case) for case in cases], bool)
    if there.all() or not there.any():
        raise ValueError(f"calibration: expected present and absent targets, got {there.sum()} of {len(there)} present")
    weights = _rounded(fit_weights(parts, there))
    scores = _scores(parts, weights)
    passed = np.array([case.found for case in cases], bool)
    threshold = best_threshold(scores, passed, there)
    clips = {clip: number for number, clip in enumerate(dict.fromkeys(case.clip for case in cases))}
    halves = np.array([clips[case.clip] % 2 for case in cases])
    return Calibration(
        dict(zip(WEIGHTS, weights.tolist())),
        threshold,
        roc(scores, there),
        roc(_scores(parts, np.array(list(WEIGHTS.values()))), there).area,
        _held_out(parts, there, halves),
        {name: roc(column, there).area for name, column in zip(WEIGHTS, parts.T)},
        {name: _without(parts, there, place) for place, name in enumerate(WEIGHTS)},
        detection((scores < threshold) | ~passed, ~there),
    )


def fit_weights(parts: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(P,) float64, >= 0, their sum 1: of a logistic regression in which both classes count alike.

    parts: (N, P) in [0, 1]. there: (N,) bool, both values. Raises ValueError where every weight comes out as 0.
    """
    share = np.where(there, 0.5 / there.sum(), 0.5 / (~there).sum())
    sign = np.where(there, 1.0, -1.0)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        margins = sign * (parts @ point[1:] + point[0])
        slope = -share * sign / (1 + np.exp(np.clip(margins, -500, 500)))
        value = float(share @ np.logaddexp(0, -margins)) + _RIDGE * float(point[1:] @ point[1:])
        return value, np.concatenate([[slope.sum()], parts.T @ slope + 2 * _RIDGE * point[1:]])

    bounds = [(None, None), *[(0.0, None)] * parts.shape[1]]
    found = minimize(loss, np.zeros(parts.shape[1] + 1), jac=True, bounds=bounds, method="L-BFGS-B").x[1:]
    if found.sum() <= 1e-9:
        raise ValueError("calibration: no part of the evidence is larger where the target is there")
    return found / found.sum()


def best_threshold(scores: np.ndarray, passed: np.ndarray, there: np.ndarray) -> float:
    """The threshold under which "not found" has the largest F-measure, in the middle between two scores.

    passed: (N,) bool; what did not pass is "not found" at any score.
    """
    values = np.unique(scores)
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])

    def f_measure(threshold: float) -> float:
        precision, recall = detection((scores < threshold) | ~passed, ~there)
        return 2 * precision * recall / (precision + recall) if precision and recall else 0.0

    return float(max(candidates, key=f_measure))


def _scores(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    named = dict(zip(WEIGHTS, weights.tolist()))
    return np.array([weighted_score(dict(zip(WEIGHTS, row.tolist())), named) for row in parts])


def _rounded(weights: np.ndarray) -> np.ndarray:
    """To what is written down, so that it is that which was measured."""
    return weights.round(2) if weights.round(2).any() else weights


def _without(parts: np.ndarray, there: np.ndarray, place: int) -> float | None:
    rest = np.delete(parts, place, axis=1)
    try:
        return roc(rest @ fit_weights(rest, there), there).area
    except ValueError:  # no other part tells anything
        return None


def _held_out(parts: np.ndarray, there: np.ndarray, halves: np.ndarray) -> float | None:
    """None where a half lacks one sort of case."""
    areas = []
    for half in (0, 1):
        test, train = halves == half, halves != half
        if any(group.all() or not group.any() for group in (there[train], there[test])):
            return None
        areas.append(roc(_scores(parts[test], fit_weights(parts[train], there[train])), there[test]).area)
    return float(np.mean(areas))
