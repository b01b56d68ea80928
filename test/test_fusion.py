from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.grounding.fusion import coarse_masks, contrast, fuse, min_max, smooth
from decaf_ros.types import BranchMaps


def maps(*values):
    return np.array(values, dtype=np.float32)


def test_smoothing_is_gaussian_with_zero_padding():
    single = np.zeros((1, 5, 5), np.float32)
    single[0, 2, 2] = 1
    weight = np.exp(-0.5)
    line = np.array([weight, 1, weight]) / (1 + 2 * weight)
    np.testing.assert_allclose(smooth(single, 3)[0, 1:4, 1:4], np.outer(line, line), atol=1e-6)
    corner = np.zeros((1, 3, 3), np.float32)
    corner[0, 0, 0] = 1
    assert smooth(corner, 3).sum() < 0.99


def test_background_is_subtracted_and_negatives_are_clamped():
    target, background = np.zeros((2, 1, 4, 4), np.float32)
    target[0, 1, 1], background[0, 3, 3] = 0.5, 0.5
    result = contrast(BranchMaps(target, background), 3, per_frame=False)
    assert result.max() == 1 and result[0, 1, 1] == 1 and result[0, 3, 3] == 0


def test_min_max_global_and_per_frame():
    values = maps([[0, 1]], [[0, 4]])
    np.testing.assert_allclose(min_max(values), maps([[0, 0.25]], [[0, 1]]))
    np.testing.assert_allclose(min_max(values, per_frame=True), maps([[0, 1]], [[0, 1]]))


def test_constant_map_becomes_zero():
    assert min_max(np.full((2, 3, 3), 0.7, np.float32)).max() == 0
    mixed = min_max(maps([[3, 3]], [[0, 1]]), per_frame=True)
    np.testing.assert_allclose(mixed, maps([[0, 0]], [[0, 1]]))


def test_video_pairs_repeat_in_time_and_padding_is_cut_off():
    video = maps([[0, 0], [0, 0]], [[1, 1], [1, 1]])
    frames = np.zeros((3, 4, 4), np.float32)
    fused = fuse(video, frames, 3)
    assert fused.shape == (3, 4, 4)
    assert fused[:2].max() == 0 and fused[2].min() == 1


def test_one_branch_is_used_alone():
    video = maps([[0, 0.5]])
    np.testing.assert_allclose(fuse(video, None, 2), maps([[0, 1]], [[0, 1]]))
    np.testing.assert_allclose(fuse(None, video, 1), maps([[0, 1]]))
    with pytest.raises(ValueError, match="at least one branch"):
        fuse(None, None, 1)


def test_frame_count_must_fit():
    with pytest.raises(ValueError, match="expected 3 frame maps, got 2"):
        fuse(maps([[1]]), np.zeros((2, 2, 2), np.float32), 3)


def test_otsu_finds_the_bright_square():
    fused = np.zeros((2, 8, 8), np.float32)
    fused[:, 2:5, 2:5] = 1
    masks = coarse_masks(fused, (80, 80))
    assert masks.shape == (2, 80, 80) and masks.dtype == bool
    assert masks[0, 25:45, 25:45].all() and not masks[0, 60:].any()
