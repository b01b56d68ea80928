"""Hull masks, and box prompts for SAM 2."""

from __future__ import annotations

import numpy as np
import pytest
from sam2_scenes import moving_scene

from decaf_ros.config import DecafConfig, Sam2Config, SegmentationConfig, replace
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.hulls import hull_boxes, hull_masks
from decaf_ros.segmentation.points import attention_boxes
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import finish
from decaf_ros.types import AttentionMaps, Grounding, Window


def corner_map() -> np.ndarray:
    """Two frames of 6 x 8 tokens at the size of the image: an L and a smaller block; nothing."""
    fused = np.zeros((2, 6, 8), np.float32)
    fused[0, 1:5, 1] = 0.5
    fused[0, 4, 1:5] = 0.75
    fused[0, 0:2, 6:8] = 1.0
    return fused


def test_the_mask_is_the_largest_hull_filled():
    mask, empty = hull_masks(corner_map(), (6, 8))
    # The L with what it encloses; the block is smaller.
    expected = np.zeros((6, 8), bool)
    for row, columns in ((1, 1), (2, 2), (3, 3), (4, 4)):
        expected[row, 1 : columns + 1] = True
    assert (mask == expected).all() and not empty.any()


def test_boxes_are_of_the_largest_hulls_and_frames_without_one_have_none():
    frames, boxes = hull_boxes(corner_map(), (6, 8))
    assert frames.tolist() == [0]
    np.testing.assert_allclose(boxes, [[1 / 8, 1 / 6, 5 / 8, 5 / 6]], rtol=1e-6)
    prompts = attention_boxes(corner_map(), (6, 8))
    assert (prompts.frame.tolist(), prompts.value.tolist(), len(prompts)) == ([0], [0.75], 1)
    np.testing.assert_allclose(prompts.xy, [[3 / 8, 0.5]], rtol=1e-6)
    none = attention_boxes(np.full((2, 6, 8), 0.3, np.float32), (60, 80))
    assert len(none) == 0 and none.box.shape == (0, 4)


def test_boxes_are_prompts_in_place_of_points(tiny_sam2_dir):
    """A box around the disc of the first frame, and none in the second."""
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu", blank_unseen=True), fill_holes_px=0)
    window = Window(tuple(moving_scene(2)))
    fused = np.zeros((2, *window.size_hw), np.float32)
    fused[0, 38:82, 38:82] = 1.0
    prompts = attention_boxes(fused, window.size_hw)
    (proposal,) = finish(propose_tracklets(sam2, window, prompts, SegmentationConfig()))
    embedding = sam2.embed(window.frames[0])
    box, click = finish(sam2.box_steps(embedding, prompts.box)), sam2.masks_at_points(embedding, prompts.xy)
    assert (proposal.source, proposal.attention, proposal.iou) == (0, 1.0, pytest.approx(float(box.iou[0])))
    assert abs(float(click.iou[0] - box.iou[0])) > 1e-3


class KnownMap(Grounder):
    """Grounds every query with one map."""

    def __init__(self, fused: np.ndarray) -> None:
        self.fused = fused

    def ground(self, window, query, config, clock, others=tuple):
        yield
        return Grounding(AttentionMaps(self.fused))


def test_a_method_has_its_own_prompts_and_masks_of_the_map(tiny_sam2_dir):
    sam2 = load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))
    window, fused = Window(tuple(moving_scene(2))), corner_map()
    for prompt, coarse, count in (("box", hull_masks, 1), ("points", coarse_masks, 4)):
        config = replace(DecafConfig(), {"segmentation.prompt": prompt})
        found = Decaf(None, sam2, config, KnownMap(fused), coarse).segment(window, "it", window.frames)
        assert len(found.points) == count and (found.points.box is not None) == (prompt == "box")
        assert (found.coarse_masks == coarse(fused, window.size_hw)).all()
        assert found.presence.contrast == 0.0 and np.isfinite(found.presence.score)
