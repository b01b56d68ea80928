"""The fit of the presence score: weights, threshold and the printed text."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import DecafConfig, PresenceConfig
from decaf_ros.evaluation.calibration import (
    Example,
    best_threshold,
    calibrate,
    calibration_text,
    fit_weights,
    parameter_text,
)
from decaf_ros.evaluation.metrics import roc
from decaf_ros.io.parameter_files import load_config
from decaf_ros.presence import PARTS, weighted_score
from decaf_ros.types import Presence

CURRENT = PresenceConfig()


def examples(count=200, passed=True, seed=0, asked=None):
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
        presence = Presence(score=0.5, **parts, asked=asked and asked(rng, present))
        made.append(Example(f"clip{number // 4}", present, passed, presence))
    return made


def test_weights_follow_the_evidence_and_none_is_negative():
    fitted = calibrate(examples(), CURRENT)
    weights = fitted.weights
    assert list(weights) == list(PARTS)
    assert all(weight >= 0 for weight in weights.values()) and sum(weights.values()) == pytest.approx(1, abs=0.02)
    assert weights["consistency"] > weights["contrast"] > weights["agreement"] >= 0
    assert weights["iou"] == weights["asked"] == 0 and not fitted.asked
    assert fitted.curve.area > fitted.current_area + 0.1
    assert fitted.held_out_area == pytest.approx(fitted.curve.area, abs=0.05)
    assert fitted.part_areas["consistency"] > 0.9 and fitted.part_areas["iou"] < 0.2
    assert fitted.part_areas["contrast"] < fitted.areas_without["consistency"] + 0.1 < fitted.curve.area
    assert fitted.areas_without["iou"] == pytest.approx(fitted.curve.area, abs=0.01)
    assert fitted.not_found.precision > 0.8 and fitted.not_found.recall > 0.8
    assert (fitted.examples, fitted.clips, fitted.folds) == ((150, 50), 50, 5)
    assert fitted.held_out_not_found.precision > 0.7 and fitted.held_out_not_found.recall > 0.7


def test_the_answer_to_the_question_is_evidence():
    clear = calibrate(examples(asked=lambda rng, present: 0.9 if present else 0.1), CURRENT)
    assert clear.asked and clear.weights["asked"] > 0.5 and clear.part_areas["asked"] == 1
    useless = calibrate(examples(asked=lambda rng, present: rng.random()), CURRENT)
    assert useless.asked and useless.weights["asked"] < 0.1


def test_no_clip_is_fitted_and_held_out_at_once():
    """A part that only tells clips apart: the fit takes it for evidence, the cross-validation does not."""
    rng = np.random.default_rng(0)
    made = []
    for clip in range(6):
        for number in range(10):
            present = bool(rng.random() < 0.5) if clip % 2 else number < 9
            parts = dict.fromkeys(PARTS[:-1], 0.5) | {"contrast": float(rng.random())}
            made.append(Example(f"clip{clip}", present, True, Presence(0.5, **parts)))
    fitted = calibrate(made, CURRENT)
    assert fitted.folds == 5 and fitted.held_out_area < 0.7


def test_the_printed_fit_is_the_measured_one():
    made = examples()
    fitted = calibrate(made, CURRENT)
    parts = [{name: getattr(one.presence, name) for name in PARTS} for one in made]
    scores = np.array([weighted_score(part, fitted.weights) for part in parts])
    present = np.array([one.present for one in made])
    assert roc(scores, present).area == fitted.curve.area
    not_found = scores < fitted.threshold
    precision, recall = (~present)[not_found].mean(), not_found[~present].mean()
    assert fitted.not_found == (pytest.approx(precision), pytest.approx(recall))
    assert parameter_text(fitted) in calibration_text(fitted)


def test_the_fit_is_a_parameter_file(tmp_path):
    for asked in (None, lambda rng, present: 0.5 + 0.3 * present):
        fitted = calibrate(examples(asked=asked), CURRENT)
        (tmp_path / "presence.yaml").write_text(parameter_text(fitted))
        config = load_config(tmp_path / "presence.yaml", DecafConfig())
        assert config.presence.weights == pytest.approx(dict(fitted.weights))
        assert config.presence.threshold == pytest.approx(fitted.threshold, abs=5e-4)
        assert config.presence.ask == fitted.asked == (asked is not None)


def test_too_few_examples_are_reported():
    few = calibration_text(calibrate(examples(count=40), CURRENT))
    assert "TOO FEW EXAMPLES (30 there, 10 not)" in few and "20 more of targets that are not there." in few
    assert "TOO FEW" not in calibration_text(calibrate(examples(count=200), CURRENT))
    one = calibrate([one for one in examples(count=400) if one.clip == "clip0"], CURRENT)
    assert one.folds == 0 and one.held_out_area is None and "One clip only" in calibration_text(one)


def test_the_roc_curve_is_printed():
    """Scores 0.9, 0.6, 0.3 are there; 0.7, 0.5 and eight times 0.1 are not."""
    given = [(0.9, True), (0.7, False), (0.6, True), (0.5, False), (0.3, True), *[(0.1, False)] * 8]
    made = []
    for number, (score, present) in enumerate(given):
        parts = dict.fromkeys(("contrast", "consistency", "agreement", "iou", "object_presence"), 0.5)
        made.append(Example(f"clip{number}", present, True, Presence(score=0.5, **parts, separation=score, asked=None)))
    lines = calibration_text(calibrate(made, CURRENT)).splitlines()
    found = [line.split() for line in lines if line.startswith("found of what is there")]
    assert [(words[8], words[-1]) for words in found] == [
        *((rate, "33.3") for rate in ("0.0", "1.0", "2.0", "5.0")),
        ("10.0", "66.7"),
        *((rate, "100.0") for rate in ("20.0", "50.0")),
    ]


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


def test_the_threshold_does_not_reject_everything_where_most_targets_are_absent():
    rng = np.random.default_rng(2)
    present = np.repeat([True, False], [30, 300])
    scores = np.clip(0.4 + 0.1 * present + rng.normal(0, 0.1, 330), 0, 1)
    threshold = best_threshold(scores, np.ones(330, bool), present)
    assert 0.35 < threshold < 0.55 and (scores[present] >= threshold).mean() > 0.4


def test_a_single_class_or_useless_evidence_is_refused():
    with pytest.raises(ValueError, match="expected present and absent targets"):
        calibrate([one for one in examples() if not one.present], CURRENT)
    with pytest.raises(ValueError, match="no part of the evidence"):
        fit_weights(np.array([[0.1], [0.2], [0.8], [0.9]]), np.array([True, True, False, False]))
