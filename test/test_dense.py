from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2_scenes import disc, moving_scene

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.dense import dense_masks
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.sam2 import load_sam2
from decaf_ros.types import Tracklet, TrackletScores, Window

FRAMES = moving_scene(7)
WINDOW = Window(tuple(FRAMES[1::2]))  # key frames are the frames 1, 3, 5


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=3))


def tracklet(source: int, mask: np.ndarray) -> Tracklet:
    masks = np.zeros((len(WINDOW), *mask.shape), dtype=bool)
    masks[source] = mask
    return Tracklet(masks, source, (0.5, 0.5), TrackletScores(1.0, 1.0, 1.0, 1.0), 1.0, 1.0)


def test_groups_of_two_source_frames_are_united(sam2):
    left, right, low = (disc(WINDOW.size_hw, x, y, 0.18) for x, y in ((0.25, 0.5), (0.75, 0.4), (0.5, 0.8)))
    found = dense_masks(sam2, WINDOW, [tracklet(2, left), tracklet(0, right), tracklet(2, low)], FRAMES)
    assert found.shape == (7, *WINDOW.size_hw) and found.dtype == np.bool_
    late, early = torch.from_numpy(np.stack([left, low])), torch.from_numpy(right[None])
    expected = propagate(sam2, FRAMES, 5, late).any(0) | propagate(sam2, FRAMES, 1, early).any(0)
    assert np.array_equal(found, expected.numpy())
    for mask in (left, right, low):
        assert (found & mask).any(axis=(1, 2)).all(), "not on every frame"


def test_each_frame_is_embedded_at_most_twice(sam2):
    encoded = []
    forward_image = sam2.model.forward_image
    sam2.model.forward_image = lambda batch: encoded.append(1) or forward_image(batch)
    clip = moving_scene(7)
    right = disc(WINDOW.size_hw, 0.75, 0.4, 0.18)
    dense_masks(sam2, WINDOW, [tracklet(0, right), tracklet(1, right), tracklet(2, right)], clip)
    del sam2.model.forward_image
    assert len(encoded) <= 2 * len(clip)


def test_nothing_selected_is_empty_masks(sam2):
    found = dense_masks(sam2, WINDOW, [], FRAMES)
    assert found.shape == (7, *WINDOW.size_hw) and not found.any()


def test_missing_key_frames_and_other_sizes_are_named(sam2):
    mask = disc(WINDOW.size_hw, 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match=f"stamp {FRAMES[3].stamp_ns} ns"):
        dense_masks(sam2, WINDOW, [tracklet(1, mask)], FRAMES[:3])
    with pytest.raises(ValueError, match=r"size \(120, 200\), got \[\(60, 80\)\]"):
        dense_masks(sam2, WINDOW, [], moving_scene(2, (60, 80)))
