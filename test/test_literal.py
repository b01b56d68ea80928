"""The literal implementation of the paper (`benchmarks/literal.py`) against the package, on the tiny checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2_scenes import moving_scene

from benchmarks.literal import (
    literal_fusion,
    literal_grounding,
    literal_points,
    literal_propagation,
    literal_scores,
    literal_tracklets,
)
from decaf_ros.config import DecafConfig, MllmConfig, Sam2Config, SegmentationConfig, replace
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, contrast, fuse
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.points import attention_points
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import BranchMaps, Window

OPTIONS = SegmentationConfig(point_threshold=0.7)


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32"))


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    """Without hole filling, which the published single-image predictor does not have."""
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"), fill_holes_px=0)


@pytest.fixture(scope="module")
def window():
    return Window(tuple(moving_scene(5)))


@pytest.fixture(scope="module")
def planted(window):
    """(5, 12, 20): two moving peaks."""
    rows, columns = np.mgrid[:12, :20]
    peaks = np.zeros((len(window), 12, 20), np.float32)
    for number, peak in enumerate(peaks):
        for row, column, height in ((3 + number / 2, 5 + number, 1.0), (8, 14 - number, 0.9)):
            near = height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 4)
            np.maximum(peak, near.astype(np.float32), out=peak)
    return peaks


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_grounding(mllm, window, mode):
    config = replace(DecafConfig(), {"grounding.mode": mode, "mllm.max_new_tokens": 4})
    mllm.config = config.mllm
    ours = finish(Grounder(mllm).ground(window, "the red ball", config, StageClock(STAGES)))
    theirs = literal_grounding(mllm, window, "the red ball", config)
    assert (ours.category, ours.answers) == (theirs.category, theirs.answers)
    assert bool(ours.answers) == (mode == "paper")
    for branch in ("video", "frames"):
        for name in ("object", "background"):
            found, expected = (getattr(getattr(one.maps, branch), name) for one in (ours, theirs))
            assert found.shape == expected.shape and np.abs(found - expected).max() <= 1e-6
    # If a random model's prompts hardly differ, scaling to [0, 1] amplifies rounding.
    np.testing.assert_allclose(ours.maps.fused, theirs.maps.fused, atol=1e-3)


@pytest.mark.parametrize("frames", [6, 5])
def test_fusion(frames):
    """With 5 frames, the last one forms a pair with itself."""
    rng = np.random.default_rng(0)
    video = BranchMaps(*rng.random((2, 3, 6, 8), np.float32))
    fine = BranchMaps(*rng.random((2, frames, 12, 16), np.float32))
    fine.background[2] = 1
    ours = fuse(contrast(video, VIDEO_KERNEL, per_frame=False), contrast(fine, FRAME_KERNEL, per_frame=True), frames)
    np.testing.assert_allclose(ours, literal_fusion(video, fine), atol=1e-6)


def test_tracklets_and_scores(sam2, window, planted):
    points = literal_points(planted, OPTIONS.point_threshold)
    ours = attention_points(planted, OPTIONS)
    assert len(points) > 20
    for name in ("frame", "xy", "value"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(points, name))
    found = finish(propose_tracklets(sam2, window, ours, OPTIONS))
    expected = literal_tracklets(sam2, window, points, OPTIONS)
    assert len(found) == len(expected) >= 2
    for one, other in zip(found, expected):
        assert (one.source, one.point_xy, one.attention) == (other.source, other.point_xy, other.attention)
        assert one.iou == pytest.approx(other.iou, abs=1e-5)
        assert (np.stack(one.masks) == other.masks.numpy()).mean() > 0.999
    scored = {(one.source, one.point_xy): one.scores.combined for one in score_tracklets(found, planted, OPTIONS)}
    for proposal, score in zip(found, literal_scores(found, planted)):
        assert scored[proposal.source, proposal.point_xy] == pytest.approx(score, abs=1e-5)


def test_objects_one_by_one(sam2, window):
    height, width = window.size_hw
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    masks[0, 30:60, 40:80], masks[1, 70:100, 120:150] = True, True
    together = propagate(sam2, window.frames, 2, masks)
    for ours, alone in zip(together, literal_propagation(sam2, window, 2, masks)):
        assert (masks_of_size(ours, window.size_hw) == alone).float().mean() > 0.999
