from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2_scenes import disc, moving_scene

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Tracklet, TrackletScores, Window

FRAMES = moving_scene(7)
WINDOW = Window(tuple(FRAMES[1::2]))  # key frames 1, 3, 5


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", embedding_cache=3))


def tracklet(source: int, mask: np.ndarray) -> Tracklet:
    masks = np.zeros((len(WINDOW), *mask.shape), dtype=bool)
    masks[source] = mask
    return Tracklet(masks, source, (0.5, 0.5), TrackletScores(1.0, 1.0, 1.0, 1.0), 1.0, 1.0)


def test_each_tracklet_of_two_source_frames_has_its_label(sam2):
    left, right, low = (disc(WINDOW.size_hw, x, y, 0.18) for x, y in ((0.4, 0.5), (0.6, 0.45), (0.5, 0.6)))
    found = finish(dense_labels(sam2, WINDOW, [tracklet(2, left), tracklet(0, right), tracklet(2, low)], FRAMES))
    assert found.shape == (7, *WINDOW.size_hw) and found.dtype == np.uint8
    late = propagate(sam2, FRAMES, 5, torch.from_numpy(np.stack([left, low])))
    early = propagate(sam2, FRAMES, 1, torch.from_numpy(right[None]))
    first, second, third = (masks_of_size(logits, WINDOW.size_hw).numpy() for logits in (late[0], early[0], late[1]))
    # Overlapping masks: the order decides.
    assert (first & third).any() and (second & third).any()
    expected = np.where(first, 1, np.where(second, 2, np.where(third, 3, 0)))
    assert np.array_equal(found, expected)


def test_more_targets_than_labels_are_refused(sam2):
    mask = disc(WINDOW.size_hw, 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match="at most 255, got 256; raise segmentation.tracklet_threshold"):
        finish(dense_labels(sam2, WINDOW, [tracklet(0, mask)] * 256, FRAMES))


def test_each_frame_is_embedded_once(sam2):
    encoded = []
    forward_image = sam2.model.forward_image
    sam2.model.forward_image = lambda batch: encoded.append(1) or forward_image(batch)
    clip = moving_scene(7)
    right = disc(WINDOW.size_hw, 0.75, 0.4, 0.18)
    finish(dense_labels(sam2, WINDOW, [tracklet(0, right), tracklet(1, right), tracklet(2, right)], clip))
    del sam2.model.forward_image
    assert len(encoded) == len(clip)


def test_nothing_selected_is_empty_masks(sam2):
    found = finish(dense_labels(sam2, WINDOW, [], FRAMES))
    assert found.shape == (7, *WINDOW.size_hw) and not found.any()


def test_missing_key_frames_and_other_sizes_are_named(sam2):
    mask = disc(WINDOW.size_hw, 0.5, 0.5, 0.2)
    with pytest.raises(ValueError, match=f"stamp {FRAMES[3].stamp_ns} ns"):
        finish(dense_labels(sam2, WINDOW, [tracklet(1, mask)], FRAMES[:3]))
    with pytest.raises(ValueError, match=r"size \(120, 200\), got \[\(60, 80\)\]"):
        finish(dense_labels(sam2, WINDOW, [], moving_scene(2, (60, 80))))
