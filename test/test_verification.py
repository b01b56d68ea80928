"""Verification of close candidates with a tiny random model of the real architecture, and by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sam2_scenes import grid_masks

from decaf_ros.config import DecafConfig, MllmConfig, Sam2Config, SegmentationConfig, replace
from decaf_ros.grounding import engine
from decaf_ros.grounding.grounder import Grounder, video_view
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import answer_margin, forward
from decaf_ros.grounding.prompts import verification_prompt
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.marking import marked_image
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.stages import finish
from decaf_ros.types import Frame, Tracklet, TrackletScores, Window
from decaf_ros.verification import marked_window, verify_tracklets

QUERY = "The red square"
SIZE_HW = (96, 128)


@pytest.fixture(scope="module")
def grounder(tiny_mllm_dir):
    return Grounder(
        load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32"))
    )


@pytest.fixture(scope="module")
def window():
    rng = np.random.default_rng(0)
    return Window(tuple(Frame(rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(5)))


def tracklet(left: int, attention: float) -> Tracklet:
    """An upright bar of 16 pixels' width that moves right by a pixel from frame to frame."""
    masks = torch.zeros(5, *SIZE_HW, dtype=torch.bool)
    for index in range(5):
        masks[index, 20:60, left + index : left + 16 + index] = True
    scores = TrackletScores(attention, 0.9, 1.0, attention)
    return Tracklet(grid_masks(masks), 0, (0.5, 0.5), scores, 1.0, 5.0, density=attention)


def literal_margin(mllm, marked: Window) -> float:
    """The log-odds of one full pass over the prompt."""
    view = video_view(mllm, marked)
    prompt = mllm.prompt(view.layout, verification_prompt(QUERY, "video"))
    images = np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])
    inputs = mllm.embed(prompt.ids, prompt.slots, [mllm.encode(view.layout, images)])
    logits = forward(mllm.model, inputs, prompt.positions, None, mllm.layers, wants_token=True).logits
    return float(answer_margin(mllm.tokenizer, logits, "yes", "no"))


def test_the_frames_shown_are_spread_over_the_window_and_marked(window):
    bar = tracklet(10, 0.9)
    few = marked_window(window, bar, 3)
    assert [frame.index for frame in few.frames] == [0, 2, 4]
    for frame in few.frames:
        whole = window.frames[frame.index]
        assert np.array_equal(frame.image, marked_image(whole.image, bar.masks[frame.index]))
        assert frame.stamp_ns == whole.stamp_ns and frame.digest != whole.digest
    assert len(marked_window(window, bar, 0)) == len(marked_window(window, bar, 9)) == 5
    assert [frame.index for frame in marked_window(window, bar, 1).frames] == [0]


def test_each_close_object_is_asked_about_once(grounder, window):
    """The log-odds are those of the whole prompt about the marked frames; a part has those of its object."""
    config = SegmentationConfig(verify_frames=4, verify_close=0.2)
    best, part, other = tracklet(10, 0.9), tracklet(12, 0.8), tracklet(60, 0.85)
    far = tracklet(100, 0.5)
    verified = finish(verify_tracklets(grounder, window, QUERY, [best, other, part, far], config, False))
    margins = [one.verified for one in verified]
    expected = [literal_margin(grounder.mllm, marked_window(window, one, 4)) for one in (best, other)]
    assert margins[:2] == pytest.approx(expected, abs=1e-4) and abs(expected[0] - expected[1]) > 1e-3
    assert margins[2] == margins[0] and margins[3] is None
    assert [dataclasses.replace(one, verified=None).masks for one in verified] == [
        one.masks for one in (best, other, part, far)
    ]
    # Marked images are not asked about again.
    assert not len(grounder.engine.prefixes) and not len(grounder.engine.features)


def test_one_close_object_is_not_asked_about(grounder, window, monkeypatch):
    monkeypatch.setattr(grounder, "verify", lambda *_: pytest.fail("asked"))
    config, candidates = SegmentationConfig(verify_close=0.2), [tracklet(10, 0.9), tracklet(60, 0.5)]
    assert finish(verify_tracklets(grounder, window, QUERY, candidates, config, False)) == candidates


def test_out_of_memory_is_retried_without_the_caches(grounder, window, monkeypatch):
    config, candidates = SegmentationConfig(verify_frames=2), [tracklet(10, 0.9), tracklet(60, 0.85)]
    expected = [one.verified for one in finish(verify_tracklets(grounder, window, QUERY, candidates, config, False))]
    calls, run_prefix = [], engine.run_prefix

    def fails_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run_prefix(*arguments)

    monkeypatch.setattr(engine, "run_prefix", fails_first)
    again = finish(verify_tracklets(grounder, window, QUERY, candidates, config, False))
    assert [one.verified for one in again] == pytest.approx(expected, abs=1e-5) and len(calls) == 3


def test_the_method_verifies_if_it_is_configured(grounder, tiny_sam2_dir, monkeypatch):
    """The answer of the model, here a made-up one, decides between the objects."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 60, (4, *SIZE_HW, 3), dtype=np.uint8)
    images[:, 10:40, 10:40], images[:, 50:80, 80:110] = (220, 40, 40), (40, 40, 220)
    window = Window(tuple(Frame(image, index + 1, "camera", index) for index, image in enumerate(images)))
    changes = {"presence.threshold": 0.0, "segmentation.point_threshold": 0.8, "grounding.number": "one"}
    config = replace(DecafConfig(), {**changes, "grounding.mode": "fast", "segmentation.verify_close": 2.0})
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))
    decaf = Decaf(grounder.mllm, sam2, config)
    without = decaf.segment(window, QUERY)
    assert all(one.verified is None for one in without.tracklets) and "verification" not in dict(without.stage_ms)
    asked = []

    def answer(self, marked, query):
        asked.append(query)
        yield
        return float(len(asked))

    monkeypatch.setattr(Grounder, "verify", answer)
    decaf.config = replace(config, {"segmentation.verify": True})
    found = decaf.segment(window, QUERY)
    assert asked == [QUERY] * len(asked) and len(asked) >= 2 and "verification" in dict(found.stage_ms)
    assert found.selected[0].verified == len(asked) and without.selected[0].verified is None
    assert found.selected[0].point_xy != without.selected[0].point_xy
    asked.clear()
    decaf.config = replace(decaf.config, {"presence.threshold": 1.0})
    assert not decaf.segment(window, QUERY).selected and not asked
