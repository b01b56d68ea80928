"""The confidence image: whose probability counts where, and the real tracker's logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scripted import SIDE, Recorder, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.config import Sam2Config
from decaf_ros.io.sizes import at_camera_size
from decaf_ros.online import follower
from decaf_ros.online.confidence import confidence_image
from decaf_ros.online.targets import label_image
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.types import Frame, FrameResult, Target, TargetState, TrackletScores

HALF = 127.5


def target(number: int, mask: np.ndarray, score: float) -> Target:
    scores = TrackletScores(score, score, score, score)
    return Target(number, number, ("q1",), "", TargetState.TRACKED, mask, scores, 1)


def result(*targets: Target) -> FrameResult:
    size_hw = targets[0].mask.shape
    return FrameResult(Frame(np.zeros((*size_hw, 3), np.uint8), 1), label_image(size_hw, targets), targets=targets)


def logits_of(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))


def test_probabilities_by_hand():
    """Without resizing: the sigmoid of each logit, and the best one in the background."""
    first = np.array([[4.0, 2.0, -1.0, -8.0]])
    second = np.array([[-3.0, 1.0, -0.5, -8.0]])
    found = result(target(1, first > 0, 0.5), target(2, second > 0, 0.9))
    assert found.labels.tolist() == [[1, 2, 0, 0]]
    image = confidence_image(found, {1: logits_of(first), 2: logits_of(second)})
    expected = [255 / (1 + np.exp(-value)) for value in (4.0, 1.0, -0.5, -8.0)]
    assert image.dtype == np.uint8 and image.tolist() == [[round(value) for value in expected]]


def test_pixels_that_were_taken_away_afterwards_count_as_zero():
    values = np.array([[4.0, -2.0, 6.0]])
    mask = np.array([[True, False, False]])  # the last pixel was a piece apart from the object
    assert confidence_image(result(target(1, mask, 0.5)), {1: logits_of(values)}).tolist() == [[250, 30, 0]]


def test_hidden_targets_and_empty_frames_give_zeros():
    hidden = target(1, np.zeros((4, 6), bool), 0.5)
    assert not confidence_image(result(hidden), {}).any()


def test_it_follows_the_masks_of_the_real_tracker(tiny_sam2_dir):
    from sam2_scenes import disc, moving_scene

    tracker = StreamingTracker(load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu")))
    frames = moving_scene(3)
    size_hw = frames[0].size_hw
    tracker.add([1], frames[0], disc(size_hw, 0.3, 0.5, 0.2)[None])
    step = tracker.step(frames[1])[1]
    image = confidence_image(result(target(1, step.mask, 0.5)), {1: step.logits})
    assert 0 < step.mask.mean() < 1
    # Up to the rounding of another interpolation.
    assert np.mean((image > HALF) == step.mask) > 0.999
    assert len(np.unique(image)) > 20


def test_enlarged_results_have_it_at_the_size_of_the_camera():
    values = np.array([[4.0, -2.0]])
    small = result(target(1, values > 0, 0.5))
    confidence = confidence_image(small, {1: logits_of(values)})
    small = FrameResult(small.frame, small.labels, targets=small.targets, confidence=confidence)
    camera = Frame(np.zeros((2, 4, 3), np.uint8), 1)
    assert at_camera_size(small, camera).confidence.tolist() == [[250, 250, 30, 30]] * 2


class _SureTracker(WorldTracker):
    """Logits of 5 inside of masks and -5 outside."""

    def step(self, where):
        steps = super().step(where)
        return {key: one._replace(logits=torch.from_numpy(10.0 * one.mask - 5).float()) for key, one in steps.items()}


@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_stream_computes_it_for_those_who_want_it(is_wanted, monkeypatch):
    monkeypatch.setattr(follower, "StreamingTracker", _SureTracker)
    world = World(ball=lambda t: None if 102.4 < t < 102.8 else (4, 5))
    run = Recorder(ScriptedDecaf(world, settings(), [["ball"]]), want_confidence=lambda: is_wanted)
    run.watch(range(20))
    run.ask("q1")
    run.watch(range(20, 35))
    images = [one.confidence for one in run.results]
    if not is_wanted:
        assert images == [None] * 35
        return
    assert not any(image.any() for image in images[:20])
    seen, hidden = images[22], images[26]
    assert np.unique(seen[5 : 5 + SIDE, 4 : 4 + SIDE]).tolist() == [253] and seen.min() == 2
    assert not hidden.any(), "no visible target"
    assert frame(0).size_hw == seen.shape
