"""The fit of the presence score: weights, threshold and the printed text."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.evaluation.calibration import best_threshold, calibrate, fit_weights
from decaf_ros.evaluation.metrics import roc
from decaf_ros.evaluation.report import calibration_text
from decaf_ros.evaluation.run import Case
from decaf_ros.presence import WEIGHTS, weighted_score
from decaf_ros.types import Presence


def cases(count=200, found=True, seed=0):
    """Consistency is strong evidence, contrast weak, the rest none; iou is larger for absent targets."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        present = number % 4 != 0
        parts = {
            "contrast": 0.5 + 0.1 * present + rng.normal(0, 0.15),
            "separation": rng.random(),
            "consistency": 0.3 + 0.4 * present + rng.normal(0, 0.12),
            "agreement": rng.random(),
            "iou": 0.6 - 0.2 * present + rng.normal(0, 0.1),
            "object_presence": 0.5,
        }
        parts = {name: float(np.clip(value, 0, 1)) for name, value in parts.items()}
        kind = "explicit" if present else "absent"
        presence = Presence(score=0.5, **parts)
        made.append(Case(f"clip{number // 4}", f"{number}", kind, "", "", "", (), found, "", presence, None, None, 0.0))
    return made


def test_weights_follow_the_evidence_and_none_is_negative():
    fitted = calibrate(cases())
    weights = fitted.weights
    assert list(weights) == list(WEIGHTS)
    assert all(weight >= 0 for weight in weights.values()) and sum(weights.values()) == pytest.approx(1, abs=0.02)
    assert weights["consistency"] > weights["contrast"] > weights["agreement"] >= 0
    assert weights["iou"] == 0
    assert fitted.curve.area > fitted.current_area + 0.1
    assert fitted.held_out_area == pytest.approx(fitted.curve.area, abs=0.05)
    assert fitted.part_areas["consistency"] > 0.9 and fitted.part_areas["iou"] < 0.2
    assert fitted.part_areas["contrast"] < fitted.areas_without["consistency"] + 0.1 < fitted.curve.area
    assert fitted.areas_without["iou"] == pytest.approx(fitted.curve.area, abs=0.01)
    assert fitted.not_found.precision > 0.8 and fitted.not_found.recall > 0.8


def test_the_printed_fit_is_the_measured_one():
    made = cases()
    fitted = calibrate(made)
    parts = [{name: getattr(case.presence, name) for name in WEIGHTS} for case in made]
    scores = np.array([weighted_score(part, fitted.weights) for part in parts])
    present = np.array([case.kind != "absent" for case in made])
    assert roc(scores, present).area == fitted.curve.area
    not_found = scores < fitted.threshold
    precision, recall = (~present)[not_found].mean(), not_found[~present].mean()
    assert fitted.not_found == (pytest.approx(precision), pytest.approx(recall))
    text = calibration_text(fitted, len(made))
    assert f'"consistency": {fitted.weights["consistency"]},' in text
    assert f"presence.threshold: {fitted.threshold:.3f}" in text


def test_weights_are_finite_for_separable_classes():
    parts = np.array([[0.9, 0.1], [0.8, 0.9], [0.2, 0.8], [0.1, 0.2]])
    weights = fit_weights(parts, np.array([True, True, False, False]))
    assert np.isfinite(weights).all() and weights[0] > 0.8


def test_both_classes_count_the_same():
    """Thirty times as many present cases hardly change the weights."""
    rng = np.random.default_rng(1)
    present = np.repeat([True, False], 200)
    parts = np.stack([0.5 + gain * present + rng.normal(0, 0.1, 400) for gain in (0.2, 0.1)], axis=1)
    unbalanced = np.concatenate([np.tile(parts[:200], (30, 1)), parts[200:]])
    weights = fit_weights(unbalanced, np.repeat([True, False], [6000, 200]))
    np.testing.assert_allclose(weights, fit_weights(parts, present), atol=0.02)


def test_threshold_lies_in_the_middle_of_the_gap():
    scores = np.array([0.1, 0.2, 0.6, 0.7])
    present = np.array([False, False, True, True])
    passed = np.ones(4, bool)
    assert best_threshold(scores, passed, present) == pytest.approx(0.4)
    # A case without a passing tracklet is "not found" at any score.
    assert best_threshold(np.array([0.1, 0.65, 0.6, 0.7]), np.array([True, False, True, True]), present) < 0.6


def test_a_single_class_or_useless_evidence_is_refused():
    with pytest.raises(ValueError, match="expected present and absent targets"):
        calibrate([case for case in cases() if case.kind == "absent"])
    with pytest.raises(ValueError, match="no part of the evidence"):
        fit_weights(np.array([[0.1], [0.2], [0.8], [0.9]]), np.array([True, True, False, False]))
