from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.types import Frame, QueryState, Target, TargetState, TrackletScores, Window

SCORES = TrackletScores(0.9, 0.9, 1.0, 0.93)


def frame(stamp_ns, size_hw=(4, 6)):
    return Frame(np.zeros((*size_hw, 3), np.uint8), stamp_ns)


def test_frame_refuses_other_arrays():
    with pytest.raises(TypeError, match="expected a numpy array of uint8, got float64"):
        Frame(np.zeros((4, 6, 3)), 0)
    with pytest.raises(ValueError, match=r"expected shape \(any, any, 3\), got \(4, 6\)"):
        Frame(np.zeros((4, 6), np.uint8), 0)
    with pytest.raises(ValueError, match="non-empty"):
        Frame(np.zeros((0, 6, 3), np.uint8), 0)


def test_window_needs_one_size_and_increasing_stamps():
    assert Window((frame(1), frame(2))).images.shape == (2, 4, 6, 3)
    with pytest.raises(ValueError, match="strictly increasing"):
        Window((frame(2), frame(2)))
    with pytest.raises(ValueError, match="one size"):
        Window((frame(1), frame(2, (4, 8))))
    with pytest.raises(ValueError, match="at least one"):
        Window(())


def target(mask, label=1):
    return Target(1, label, ("q1",), "ball", TargetState.TRACKED, mask, SCORES, 0)


def test_target_geometry():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 4:8] = True
    found = target(mask)
    assert found.area_px == 12 and found.box_xywh == (4, 2, 4, 3) and found.centroid_xy == (5.5, 3.0)
    hidden = target(np.zeros((10, 20), bool))
    assert hidden.area_px == 0 and hidden.box_xywh == (0, 0, 0, 0)


def test_label_must_fit_the_label_image():
    with pytest.raises(ValueError, match=r"expected 1\.\.255, got 256"):
        target(np.zeros((2, 2), bool), 256)


def test_answers():
    answers = {state for state in QueryState if state.is_answer}
    assert answers == set(QueryState) - {QueryState.RECEIVED, QueryState.GROUNDING, QueryState.ENDED}
