"""Scores of SAM 2 by itself, with known masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluation_scenes import frame
from sam2_scenes import signed

from decaf_ros.evaluation import sam2 as module
from decaf_ros.evaluation.datasets.clips import EvaluationClip, masks_from_labels
from decaf_ros.evaluation.sam2 import innermost_point, score_segmenter
from decaf_ros.segmentation.sam2 import PointMasks

FRAMES = 33


def box(left, width=20, size_hw=(96, 128)):
    mask = np.zeros(size_hw, bool)
    mask[30:50, left : left + width] = True
    return mask


def labels():
    """(F, H, W) uint8: 1 stays, 2 is occluded on frames 10 to 14, 3 appears on frame 20."""
    labels = np.zeros((FRAMES, 96, 128), np.uint8)
    labels[:, box(5)] = 1
    for index in range(FRAMES):
        if not 10 <= index < 15:
            labels[index][box(50)] = 2
    labels[20:, box(100)] = 3
    return labels


class KnownSam2:
    """Answers a click with the object under it, `grown` columns too wide, and a predicted IoU of 0.9."""

    device = torch.device("cpu")

    def __init__(self, truth, grown=0):
        self.truth, self.grown = truth, grown

    def embed(self, frame):
        return frame.index

    def masks_at_points(self, index, xy):
        assert xy.dtype == np.float32
        masks = []
        for x, y in xy:
            label = self.truth[index, int(y * 96), int(x * 128)]
            assert label, "the click missed the object"
            mask = self.truth[index] == label
            masks.append(mask | np.roll(mask, self.grown, axis=1))
        masks = torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, 96, 128), dtype=torch.bool)
        return PointMasks(signed(masks), torch.full((len(masks),), 0.9), torch.zeros(len(masks)), (96, 128))


@pytest.fixture
def clip():
    return EvaluationClip("known", tuple(frame(index) for index in range(FRAMES)), masks_from_labels(labels(), 3), ())


def test_scores(clip, monkeypatch):
    """Propagation keeps the first object; the second moves by 5 columns, unless it started from the true mask."""
    call = {}

    def propagate(sam2, frames, source, masks):
        call.update(frames=len(frames), source=source, masks=masks.numpy())
        tracks = np.repeat(masks.numpy()[:, None], len(frames), axis=1)
        tracks[1, 10:] = box(55)
        return signed(torch.from_numpy(tracks))

    monkeypatch.setattr(module, "propagate", propagate)
    score = score_segmenter(KnownSam2(labels(), grown=5), clip)
    assert (call["frames"], call["source"]) == (31, 0)
    np.testing.assert_array_equal(call["masks"][2:], [box(5), box(50)])
    # Frames 0, 8, 16, 24 and 32; 20 of 25 columns are correct.
    assert len(score.clicks) == 2 + 2 + 2 + 3 + 3
    assert all(click == pytest.approx((0.8, 0.9)) for click in score.clicks)
    stays, occluded = score.propagated
    assert (stays.iou, stays.mean, stays.from_mask, stays.occluded) == (0.8, pytest.approx(0.8), 1.0, False)
    assert occluded.occluded and occluded.from_mask == 1.0
    assert occluded.iou == pytest.approx(15 / 25)  # shifted by 5 columns
    assert 0.6 < occluded.mean < 0.8


def test_a_clip_without_an_object_at_both_ends(clip):
    empty = np.zeros_like(labels())
    score = score_segmenter(KnownSam2(empty), EvaluationClip("empty", clip.frames, masks_from_labels(empty, 3), ()))
    assert score.clicks == () and score.propagated == ()


def test_the_innermost_point_lies_inside_any_shape():
    """The centroid of a ring is not on the ring; the image border counts as an edge of the mask."""
    rows, columns = np.mgrid[:40, :40]
    ring = abs(np.hypot(rows - 20, columns - 20) - 14) < 3
    x, y = innermost_point(ring)
    assert ring[int(y * 40), int(x * 40)]
    corner = np.zeros((40, 40), bool)
    corner[:9, :9] = True
    assert innermost_point(corner) == (4.5 / 40, 4.5 / 40)
