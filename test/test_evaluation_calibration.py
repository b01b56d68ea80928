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
    """Consistency tells most, contrast a little, the rest nothing; iou is larger where nothing is there."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        there = number % 4 != 0
        parts = {
            "contrast": 0.5 + 0.1 * there + rng.normal(0, 0.15),
            "separation": rng.random(),
            "consistency": 0.3 + 0.4 * there + rng.normal(0, 0.12),
            "agreement": rng.random(),
            "iou": 0.6 - 0.2 * there + rng.normal(0, 0.1),
            "object_presence": 0.5,
        }
        parts = {name: float(np.clip(value, 0, 1)) for name, value in parts.items()}
        kind = "explicit" if there else "absent"
        presence = Presence(score=0.5, **parts)
        made.append(Case(f"clip{number // 4}", f"{number}", kind, "", "", "", (), found, "", presence, None, None, 0.0))
    return made


def test_weights_go_to_what_tells_and_none_is_negative():
    fitted = calibrate(cases())
    weights = fitted.weights
    assert list(weights) == list(WEIGHTS)
    assert all(weight >= 0 for weight in weights.values()) and sum(weights.values()) == pytest.approx(1, abs=0.02)
    assert weights["consistency"] > weights["contrast"] > weights["agreement"] >= 0
    assert weights["iou"] == 0
    assert fitted.curve.area > fitted.before + 0.1
    assert fitted.held_out == pytest.approx(fitted.curve.area, abs=0.05)
    assert fitted.parts["consistency"] > 0.9 and fitted.parts["iou"] < 0.2
    assert fitted.parts["contrast"] < fitted.without["consistency"] + 0.1 < fitted.curve.area
    assert fitted.without["iou"] == pytest.approx(fitted.curve.area, abs=0.01)
    assert fitted.not_found.precision > 0.8 and fitted.not_found.recall > 0.8


def test_what_is_printed_is_what_was_measured():
    made = cases()
    fitted = calibrate(made)
    parts = [{name: getattr(case.presence, name) for name in WEIGHTS} for case in made]
    scores = np.array([weighted_score(part, fitted.weights) for part in parts])
    there = np.array([case.kind != "absent" for case in made])
    assert roc(scores, there).area == fitted.curve.area
    said = scores < fitted.threshold
    assert fitted.not_found == (pytest.approx((~there)[said].mean()), pytest.approx(said[~there].mean()))
    text = calibration_text(fitted, len(made))
    assert f'"consistency": {fitted.weights["consistency"]},' in text
    assert f"presence.threshold: {fitted.threshold:.3f}" in text


def test_fit_without_an_error_stays_finite():
    parts = np.array([[0.9, 0.1], [0.8, 0.9], [0.2, 0.8], [0.1, 0.2]])
    weights = fit_weights(parts, np.array([True, True, False, False]))
    assert np.isfinite(weights).all() and weights[0] > 0.8


def test_classes_count_alike():
    """The rarer one is not drowned: thirty times as many present cases change the weights but little."""
    rng = np.random.default_rng(1)
    there = np.repeat([True, False], 200)
    parts = np.stack([0.5 + 0.2 * there + rng.normal(0, 0.1, 400), 0.5 + 0.1 * there + rng.normal(0, 0.1, 400)], axis=1)
    few = np.concatenate([np.tile(parts[:200], (30, 1)), parts[200:]])
    many = fit_weights(few, np.repeat([True, False], [6000, 200]))
    np.testing.assert_allclose(many, fit_weights(parts, there), atol=0.02)


def test_threshold_lies_in_the_middle_of_the_gap():
    scores = np.array([0.1, 0.2, 0.6, 0.7])
    there = np.array([False, False, True, True])
    passed = np.ones(4, bool)
    assert best_threshold(scores, passed, there) == pytest.approx(0.4)
    # What nothing passes for is not found at any score.
    assert best_threshold(np.array([0.1, 0.65, 0.6, 0.7]), np.array([True, False, True, True]), there) < 0.6


def test_one_sort_alone_cannot_be_calibrated():
    with pytest.raises(ValueError, match="expected present and absent targets"):
        calibrate([case for case in cases() if case.kind == "absent"])
    with pytest.raises(ValueError, match="no part of the evidence"):
        fit_weights(np.array([[0.1], [0.2], [0.8], [0.9]]), np.array([True, True, False, False]))
