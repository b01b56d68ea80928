"""The whole method on tiny random checkpoints of the real architectures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from decaf_ros import pipeline
from decaf_ros.config import DecafConfig, MllmConfig, Sam2Config, replace
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.pipeline import STAGES, Decaf
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Frame, Window


@pytest.fixture(scope="module")
def models(tiny_mllm_dir, tiny_sam2_dir):
    mllm = load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32"))
    return mllm, load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True))


def moving_square(count=9, size_hw=(96, 128)):
    rng = np.random.default_rng(0)
    frames = []
    for index in range(count):
        image = rng.integers(0, 60, (*size_hw, 3), dtype=np.uint8)
        image[30:60, 10 + 6 * index : 40 + 6 * index] = (220, 40, 40)
        frames.append(Frame(image, (index + 1) * 100_000_000, "camera", index))
    return frames


def decaf(models, **changes):
    evaluation = {"presence.threshold": 0.0, "segmentation.fallback": "best", "segmentation.point_threshold": 0.9}
    evaluation["mllm.max_new_tokens"] = 8  # the random model ends no answer
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    return Decaf(*models, replace(DecafConfig(), {**evaluation, **changes}))


def test_whole_method(models):
    frames = moving_square()
    window = Window(tuple(frames[::2]))
    seen = []
    result = decaf(models).segment(window, "the red square", frames, lambda stage, _: seen.append(stage))
    stages = [stage for stage in STAGES if stage != "verification"]  # off by default
    assert list(dict.fromkeys(seen)) == stages
    assert [stage for stage, _ in result.stage_ms] == stages
    assert result.coarse_masks.shape == (5, 96, 128) and result.dense_labels.shape == (9, 96, 128)
    assert len(result.points) > 0 and 1 <= len(result.keypoints) <= 5
    assert len(result.selected) >= 1 and set(result.selected) <= set(result.tracklets)
    combined = [tracklet.scores.combined for tracklet in result.tracklets]
    assert combined == sorted(combined, reverse=True)
    source = result.selected[0]
    assert ((result.dense_labels[2 * source.source] == 1) & source.masks[source.source]).any()


def test_caches_change_nothing(models, tiny_sam2_dir):
    """Two overlapping windows, with all caches and without any, including SAM 2's embeddings."""
    sam2 = load_sam2(Sam2Config(checkpoint=str(tiny_sam2_dir), local_files_only=True, embedding_cache=1))
    off = {f"engine__{name}_cache_mib": 0 for name in ("prefix", "feature", "map")}
    with_caches, without = decaf(models), decaf((models[0], sam2), **off)
    frames = moving_square(7)
    for window in (Window(tuple(frames[:5])), Window(tuple(frames[2:]))):
        cached, fresh = (segmenter.segment(window, "the red square") for segmenter in (with_caches, without))
        assert len(cached.tracklets) == len(fresh.tracklets) > 0 and len(cached.selected) == len(fresh.selected)
        for a, b in zip(cached.tracklets, fresh.tracklets):
            assert np.array_equal(a.masks, b.masks) and a.scores == pytest.approx(b.scores, abs=1e-5)
    assert not without.grounder.engine.prefixes.held_bytes and len(sam2._cache) == 1


def test_a_frame_is_embedded_once(models, monkeypatch):
    """Shared by its points and by all tracklets propagated over it."""
    segmenter = decaf(models, segmentation__points="top_k", segmentation__top_k=1)
    window = Window(tuple(moving_square()[::2]))
    segmenter.sam2.forget()
    encoded, encode = [], segmenter.sam2._encode
    monkeypatch.setattr(segmenter.sam2, "_encode", lambda image: encoded.append(image) or encode(image))
    found = segmenter.segment(window, "the red square")
    assert len(np.unique(found.points.frame)) == len(window) and len(encoded) == len(window)


@pytest.mark.parametrize("spare_memory", [True, False])
def test_a_window_larger_than_the_cache_is_encoded_once(models, monkeypatch, spare_memory):
    """32 key frames and a cache of 2: every frame of the clip is encoded once. Only where memory is short, the frames
    between the key frames are encoded again on the way back."""
    frames = moving_square(63)
    window = Window(tuple(frames[::2]))
    sam2 = Sam2(models[1].model, Sam2Config(device="cpu", embedding_cache=2))
    encoded, forward_image = [], sam2.model.forward_image
    monkeypatch.setattr(sam2.model, "forward_image", lambda batch: encoded.append(1) or forward_image(batch))
    if not spare_memory:
        monkeypatch.setattr("decaf_ros.segmentation.dense.free_bytes", lambda device: 0)
    options = {"points": "top_k", "top_k": 1, "max_points": 3, "tracklet_threshold": 0.0}
    changes = {f"segmentation__{name}": value for name, value in options.items()}
    segmenter = decaf((models[0], sam2), grounding__mode="fast", window__size=32, **changes)
    without = segmenter.segment(window, "the red square")
    assert len(window) == len(encoded) == 32
    sources = [tracklet.source for tracklet in without.selected]
    assert min(sources) < max(sources)
    encoded.clear()
    sam2.forget()
    segmenter.segment(window, "the red square", frames)
    between = 0 if spare_memory else max(sources) - min(sources)
    assert len(encoded) == len(frames) + between
    assert len(sam2._cache) == 2


@pytest.mark.parametrize("part", ["propose_tracklets", "dense_labels"])
def test_out_of_memory_in_sam2_drops_the_caches_and_retries(models, monkeypatch, part):
    segmenter, frames = decaf(models), moving_square()
    window, work, held = Window(tuple(frames[::2])), getattr(pipeline, part), []
    expected = segmenter.segment(window, "the red square", frames)

    def fails_with_caches(*arguments):
        held.append(segmenter.grounder.engine.prefixes.held_bytes + segmenter.grounder.engine.features.held_bytes)
        if held[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(*arguments)

    monkeypatch.setattr(pipeline, part, fails_with_caches)
    found = segmenter.segment(window, "the red square", frames)
    assert len(held) == 2 and held[0] > 0
    assert np.array_equal(found.dense_labels, expected.dense_labels)

    def always_fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipeline, part, always_fails)
    with pytest.raises(torch.OutOfMemoryError):
        segmenter.segment(window, "the red square", frames)


def test_same_input_same_answer(models):
    window = Window(tuple(moving_square()[::2]))
    first, second = (decaf(models).segment(window, "the red square") for _ in range(2))
    assert np.array_equal(first.grounding.maps.fused, second.grounding.maps.fused)
    assert len(first.tracklets) == len(second.tracklets)
    assert all(np.array_equal(a.masks, b.masks) for a, b in zip(first.tracklets, second.tracklets))


def test_not_found_is_an_empty_selection(models):
    frames = moving_square()
    window = Window(tuple(frames[::2]))
    nothing = decaf(models, segmentation__fallback="none", segmentation__tracklet_threshold=1.0)
    absent = decaf(models, presence__threshold=1.0)
    for segmenter in (nothing, absent):
        result = segmenter.segment(window, "the green mug", frames)
        assert result.selected == () and result.tracklets and not result.dense_labels.any()


def test_the_category_none_means_not_found_with_a_presence_threshold(models, monkeypatch):
    window = Window(tuple(moving_square()[::2]))
    ground = Grounder.ground

    def answers_none(*arguments):
        return dataclasses.replace((yield from ground(*arguments)), category="none")

    monkeypatch.setattr(Grounder, "ground", answers_none)
    for threshold, is_selected in ((0.0, True), (1e-6, False)):
        result = decaf(models, presence__threshold=threshold).segment(window, "the green mug")
        assert result.tracklets and bool(result.selected) == is_selected


def test_aborting_leaves_the_segmenter_usable(models):
    segmenter, window = decaf(models), Window(tuple(moving_square()[::2]))
    expected = segmenter.segment(window, "the red square")

    def abort(stage, fraction):
        if stage == "tracklets":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        segmenter.segment(window, "the red square", progress=abort)
    again = segmenter.segment(window, "the red square")
    assert np.array_equal(expected.grounding.maps.fused, again.grounding.maps.fused)
    assert len(expected.selected) == len(again.selected)


def test_one_key_frame_is_enough(models):
    result = decaf(models).segment(Window(tuple(moving_square(1))), "the red square")
    assert len(result.grounding.maps.fused) == 1 and result.selected


def test_empty_query_is_named(models):
    with pytest.raises(ValueError, match="query: expected some text"):
        decaf(models).segment(Window(tuple(moving_square(2))), "  ")
