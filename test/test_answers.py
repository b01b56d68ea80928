"""Answers made from a grounding's result."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scripted import ABSENT, ScriptedDecaf, World, frame, settings
from torch.nn.functional import interpolate

from decaf_ros.answers import absence, first_line, heatmaps, left_out_text, pixel_keypoints, tracking_text
from decaf_ros.types import AttentionMaps, Grounding, Query, Segmentation, Window


@pytest.fixture
def found() -> Segmentation:
    world = World(a=lambda time_s: (0, 0), b=lambda time_s: (16, 8))
    return ScriptedDecaf(world, settings(), [["a", "b"]]).segment(Window((frame(0), frame(5))), "it")


def test_absence_names_the_score_and_the_threshold(found):
    config = settings(presence__threshold=0.3, segmentation__tracklet_threshold=0.8)
    assert absence(found, config) == ""
    absent = dataclasses.replace(found, presence=ABSENT, selected=())
    assert absence(absent, config) == "not found: presence score 0.10 is below presence.threshold 0.30"
    nothing = dataclasses.replace(found, selected=())
    assert absence(nothing, config) == (
        "not found: the best of 2 candidates scores 1.00, not over segmentation.tracklet_threshold 0.80"
    )
    single = dataclasses.replace(nothing, tracklets=nothing.tracklets[:1])
    assert "the only candidate scores 1.00" in absence(single, config)
    assert "no candidate object at all" in absence(dataclasses.replace(nothing, tracklets=()), config)


def test_the_category_none_means_not_found(found):
    none = dataclasses.replace(found, grounding=dataclasses.replace(found.grounding, category="none"))
    score = f"{found.presence.score:.2f}"
    expected = f"not found: the model answered 'none' for the category (presence score {score})"
    assert absence(none, settings(presence__threshold=0.3)) == expected
    assert absence(none, settings(presence__threshold=0.0)) == ""


def test_tracking_text():
    assert tracking_text(2, "mug") == "tracking 2 targets: mug"
    assert tracking_text(1, "") == "tracking 1 target"


def test_an_answer_reports_left_out_points(found):
    assert left_out_text(found.points) == ""
    points = dataclasses.replace(found.points, left_out=7)
    used = len(points)
    assert left_out_text(points) == (f" (segmentation.max_points: the strongest {used} of {used + 7} points were used)")


def test_heatmaps_are_bilinear_at_the_image_size(found):
    rng = np.random.default_rng(0)
    fused = rng.random((2, 3, 4), dtype=np.float32)
    found = dataclasses.replace(found, grounding=Grounding(AttentionMaps(fused)))
    made = list(heatmaps(found, Query("q", "it")))
    expected = interpolate(torch.from_numpy(fused)[None], found.window.size_hw, mode="bilinear", align_corners=False)
    assert [heatmap.frame for heatmap in made] == list(found.window.frames)
    np.testing.assert_allclose(np.stack([heatmap.values for heatmap in made]), expected[0].numpy(), atol=1e-6)


def test_keypoints_are_in_pixels_of_their_key_frame(found):
    (point,) = pixel_keypoints(found)
    assert point == (found.window.frames[1].stamp_ns, 20.0, 12.0, 1.0)  # (0.625, 0.5) of 32x24


def test_first_line():
    assert first_line(RuntimeError("out of memory\nand much more")) == "RuntimeError: out of memory"
    assert first_line(KeyError()) == "KeyError"
