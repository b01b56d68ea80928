"""Metrics against hand-computed values and their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from decaf_ros.evaluation.metrics import (
    boundary_f,
    id_switches,
    mask_score,
    mean,
    names_category,
    point_precision,
    pointing,
    precision_recall,
    region_similarity,
    robustness,
    roc,
)

EMPTY = np.zeros((60, 80), bool)  # diagonal 100 px: tolerance 0.8 px, rounded up to 1


def box(top, left, height=20, width=20, shape=EMPTY.shape):
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_region_similarity():
    assert region_similarity(box(10, 10), box(10, 10)) == 1
    assert region_similarity(box(10, 10), box(10, 20)) == pytest.approx(1 / 3)
    assert region_similarity(EMPTY, EMPTY) == 1
    assert region_similarity(box(10, 10), EMPTY) == region_similarity(EMPTY, box(10, 10)) == 0


def test_boundary_f_of_a_shifted_mask():
    """All pixels match within the tolerance. Two pixels off, only the sides along the shift match."""
    assert boundary_f(box(10, 10), box(10, 10)) == 1
    assert boundary_f(box(10, 10), box(10, 11)) == 1
    # 80 boundary pixels each. The two sides across the shift are 2 px off; the other two match except for one end.
    shifted = boundary_f(box(10, 10), box(10, 12))
    assert 0.45 < shifted < 0.6
    assert boundary_f(box(10, 10), box(10, 40)) == 0


def test_boundary_tolerance_grows_with_the_image():
    """The tolerance is 8 px for a diagonal of 1000 px: a shift of 6 px matches, in a small image hardly."""
    large = (600, 800)
    assert boundary_f(box(100, 100, 200, 200, large), box(100, 106, 200, 200, large)) == 1
    assert boundary_f(box(10, 10), box(10, 16)) < 0.5


def test_boundary_f_is_the_harmonic_mean():
    """Precision 1/2 and recall 1, and the reverse."""
    twice = box(5, 5) | box(35, 5)
    assert boundary_f(twice, box(5, 5)) == pytest.approx(2 / 3)
    assert boundary_f(box(5, 5), twice) == pytest.approx(2 / 3)


def pixels(mask):
    return set(map(tuple, np.argwhere(mask).tolist()))


def edge_pixels(mask):
    """A pixel belongs to the boundary if it differs from its right, lower or lower right neighbour in the image."""
    inside = pixels(mask)
    height, width = mask.shape
    edge = set()
    for row in range(height):
        for column in range(width):
            for other in ((row, column + 1), (row + 1, column), (row + 1, column + 1)):
                in_image = other[0] < height and other[1] < width
                if in_image and ((row, column) in inside) != (other in inside):
                    edge.add((row, column))
    return np.array(sorted(edge)).reshape(-1, 2)


def matched_share(edge, other, tolerance):
    return (cKDTree(other).query(edge)[0] <= tolerance).mean()


def test_j_and_f_equal_a_second_implementation():
    """200 random pairs of random sizes against sets of pixels and the distances between boundary pixels."""
    rng = np.random.default_rng(0)
    scores = []
    for number in range(200):
        grid, cell = rng.integers(2, 9, 2), rng.integers(4, 21, 2)
        truth = np.kron(rng.random(grid) < rng.uniform(0, 0.8), np.ones(cell)) > 0
        predicted = np.roll(truth, rng.integers(-6, 7, 2), (0, 1)) ^ (rng.random(truth.shape) < 0.002)
        if number % 10 == 0:
            predicted[:] = False
        if number % 20 == 0:
            truth[:] = False
        union = pixels(predicted) | pixels(truth)
        j = len(pixels(predicted) & pixels(truth)) / len(union) if union else 1.0
        edges = edge_pixels(predicted), edge_pixels(truth)
        if not len(edges[0]) or not len(edges[1]):
            f = float(len(edges[0]) == len(edges[1]))
        else:
            tolerance = np.ceil(0.008 * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
            precision, recall = matched_share(*edges, tolerance), matched_share(*edges[::-1], tolerance)
            f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert region_similarity(predicted, truth) == pytest.approx(j, abs=1e-9)
        assert boundary_f(predicted, truth) == pytest.approx(f, abs=1e-6)
        scores.append((j, f))
    assert np.mean([0.05 < f < 0.95 for _, f in scores]) > 0.4, "pairs that are neither equal nor apart"
    assert sum(score == (1, 1) for score in scores) >= 10, "empty against empty"


def test_robustness_counts_the_pixels_outside_the_target():
    truth = np.stack([box(10, 10), box(10, 10), EMPTY, EMPTY, EMPTY])
    foreground = np.stack([box(10, 10, 20, 40), box(10, 10, 20, 40), box(10, 10), EMPTY, EMPTY])
    predicted = np.stack([box(10, 10, 20, 30), box(30, 30, 30, 50), EMPTY, EMPTY, box(0, 0, 1, 1)])
    # 200 wrong of 800; more wrong pixels than foreground; none; none without foreground; one without foreground.
    assert robustness(predicted, truth, foreground) == pytest.approx((0.75 + 0 + 1 + 1 + 0) / 5)
    assert robustness(predicted[:1], truth[:1], foreground[:1]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="robustness: expected masks of one shape"):
        robustness(predicted, truth, foreground[:2])


def test_point_precision_counts_the_strongest_tokens():
    """Token (2, 4) has its centre at pixel (25, 45): with 14 px a box that ends at row 11 is reached, one at 10 not."""
    strongest = maps((0, 2, 4, 1.0), (0, 5, 0, 0.9), frames=1)
    assert point_precision(strongest, box(0, 40, 12, 10)[None])[1] == 1
    assert point_precision(strongest, box(0, 40, 11, 10)[None])[1] == 0
    # One less to the lower right: 45 + 13 is reached, 45 + 14 not.
    assert point_precision(strongest, box(20, 58, 10, 5)[None])[1] == 1
    assert point_precision(strongest, box(20, 59, 10, 5)[None])[1] == 0
    # The last column is never reached, as published: token (2, 7) has its centre at x = 75.
    assert point_precision(maps((0, 2, 7, 1.0), frames=1), box(20, 79, 10, 1)[None])[1] == 0
    found = point_precision(strongest, box(20, 40)[None])
    assert list(found) == [1, 5, 10], "48 tokens"
    assert found[1] == 1


def test_point_precision_is_over_the_whole_clip():
    truth = np.stack([box(0, 0, 5, 5), EMPTY])
    values = maps(*((1, row, column, 0.5) for row in range(6) for column in range(8)), (0, 0, 0, 1.0), (0, 0, 1, 0.9))
    found = point_precision(values, truth)
    assert list(found) == [1, 5, 10, 50] and (found[1], found[5], found[10], found[50]) == (1, 0.4, 0.2, 0.04)
    with pytest.raises(ValueError, match="expected truth for 2 key frames, got 1"):
        point_precision(values, truth[:1])


def test_boundary_f_of_empty_masks():
    assert boundary_f(EMPTY, EMPTY) == 1
    assert boundary_f(box(10, 10), EMPTY) == boundary_f(EMPTY, box(10, 10)) == 0


def test_mask_score_is_the_mean_over_frames():
    truth = np.stack([box(10, 10), EMPTY, box(10, 10), EMPTY])
    predicted = np.stack([box(10, 10), EMPTY, EMPTY, box(10, 10)])
    assert mask_score(predicted, truth) == (0.5, 0.5)
    assert mask_score(predicted, truth).j_and_f == 0.5
    with pytest.raises(ValueError, match="masks of one shape"):
        mask_score(predicted[:2], truth)


def maps(*strongest, frames=2):
    """Maps of 6 x 8 tokens on 60 x 80 pixels. strongest: (frame, row, column, value)."""
    values = np.zeros((frames, 6, 8), np.float32)
    for t, row, column, value in strongest:
        values[t, row, column] = value
    return values


def test_pointing_counts_frames_in_which_the_target_is_visible():
    truth = np.stack([box(20, 20), EMPTY])  # tokens (2..3, 2..3)
    found = pointing(maps((0, 2, 3, 0.5), (1, 0, 0, 1.0)), truth)
    assert (found.hit, found.window) == (1.0, 0.0)  # the strongest token of the window is on the other frame
    assert found.chance == pytest.approx(4 / 48)
    assert pointing(maps((0, 2, 4, 0.5)), truth).hit == 0
    assert pointing(maps((0, 2, 4, 0.5)), np.stack([EMPTY, EMPTY])) is None


def test_pointing_is_the_mean_over_frames():
    truth = np.stack([box(20, 20), box(0, 0)])
    found = pointing(maps((0, 2, 2, 0.5), (1, 5, 5, 1.0)), truth)
    assert (found.hit, found.window) == (0.5, 0.0)
    assert pointing(maps((0, 2, 2, 1.0), (1, 5, 5, 0.5)), truth).window == 1


def test_pointing_tolerates_half_a_token():
    """The cell of token (2, 4) spans x from 40 to 50: a target that ends at 41 overlaps it, one at 40 does not."""
    strongest = maps((0, 2, 4, 1.0), frames=1)
    assert pointing(strongest, box(20, 21)[None]).hit == 1
    assert pointing(strongest, box(20, 20)[None]).hit == 0


def test_a_constant_map_misses():
    found = pointing(maps(frames=1), box(0, 0)[None])
    assert (found.hit, found.window) == (0, 0) and found.chance > 0


def test_the_image_centre_has_the_tolerance_of_a_token():
    """The centre is (40, 30); a token there spans x from 35 to 45 and y from 25 to 35."""
    assert pointing(maps(frames=1), box(20, 44)[None]).centre == 1
    assert pointing(maps(frames=1), box(20, 45)[None]).centre == 0
    assert pointing(maps(frames=2), np.stack([box(20, 44), box(0, 0)])).centre == 0.5


def test_a_random_token_hits_with_the_chance_rate():
    rng = np.random.default_rng(0)
    truth = box(7, 33, 13, 21)[None]
    hits = [pointing(rng.random((1, 6, 8), np.float32), truth).hit for _ in range(2000)]
    assert np.mean(hits) == pytest.approx(pointing(maps(frames=1), truth).chance, abs=0.03)


def test_precision_recall():
    assert precision_recall([True, True, True, False], [True, False, True, True]) == (2 / 3, 2 / 3)
    assert precision_recall([False, False], [True, False]) == (None, 0.0)
    assert precision_recall([True, False], [False, False]) == (0.0, None)


def test_id_switches():
    here, there = box(0, 0), box(30, 50)
    both = {0: here, 1: there}
    assert id_switches([(both, {1: here, 2: there})] * 3) == 0
    assert id_switches([(both, {1: here, 2: there}), (both, {2: here, 1: there})]) == 2
    assert id_switches([({0: here}, {1: here}), ({0: here}, {3: here}), ({0: here}, {1: here})]) == 2


def test_an_id_that_moves_to_another_object_counts_with_exchanged_mappings():
    here, there = box(0, 0), box(30, 50)
    objects = {0: here, 1: there}
    drifting = [(objects, {1: here}), (objects, {1: there}), (objects, {1: there})]
    assert id_switches(drifting) == 0, "no object had another id"
    assert id_switches((published, objects) for objects, published in drifting) == 1


def test_frames_without_a_match_are_skipped():
    here = box(0, 0)
    lost = ({0: here}, {1: EMPTY})
    assert id_switches([({0: here}, {1: here}), lost, ({0: EMPTY}, {}), ({0: here}, {1: here})]) == 0
    assert id_switches([({0: here}, {1: here}), lost, ({0: here}, {2: here})]) == 1


def test_a_small_overlap_is_no_match():
    """IoU 1/3 is below 1/2, so id 1 remains the last id."""
    here = box(10, 10)
    assert id_switches([({0: here}, {1: here}), ({0: here}, {2: box(10, 20)}), ({0: here}, {1: here})]) == 0


def test_roc():
    perfect = roc([0.9, 0.8, 0.2], [True, True, False])
    assert perfect.area == 1 and perfect.thresholds[0] == np.inf
    assert roc([0.2, 0.3, 0.9], [True, True, False]).area == 0
    mixed = roc([0.9, 0.7, 0.5, 0.3], [True, False, True, False])
    assert mixed.area == 0.75  # three of four pairs are in order
    np.testing.assert_array_equal(mixed.true_positive_rate, [0, 0.5, 0.5, 1, 1])
    np.testing.assert_array_equal(mixed.false_positive_rate, [0, 0, 0.5, 0.5, 1])
    assert roc([0.5, 0.5, 0.5], [True, False, False]).area == 0.5
    assert roc([0.5], [True]) is None and roc([0.5], [False]) is None and roc([], []) is None


def test_mean():
    assert mean([1, None, 0.5]) == 0.75 and mean([True, False]) == 0.5
    assert mean([None]) is None and mean([]) is None


def test_names_category():
    assert names_category("Ball.", "ball") is True and names_category("balls", "ball") is False
    assert names_category("", "ball") is names_category(".", "ball") is False
    assert names_category(None, "ball") is None and names_category("ball", "") is None
