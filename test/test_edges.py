"""Masks with edges of the image: what changes, what stays, and that the tracker is not touched."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from decaf_ros.config import Sam2Config, TrackingConfig
from decaf_ros.online.edges import ImageEdges
from decaf_ros.online.targets import label_image
from decaf_ros.segmentation.edges import Edges
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Frame, FrameResult, Query, Target, TargetState, TrackletScores

SIZE = (120, 160)


def scene(objects, seed=0):
    """A picture (H, W, 3) uint8 with noise, and a mask of each object: (colour, centre xy, radius), later ones hide
    earlier ones."""
    rng = np.random.default_rng(seed)
    picture = np.full((*SIZE, 3), (120, 90, 60), np.uint8)
    owner = np.zeros(SIZE, np.uint8)
    for number, (colour, centre, radius) in enumerate(objects, 1):
        disc = np.zeros(SIZE, np.uint8)
        cv2.circle(disc, centre, radius, 1, -1)
        picture[disc > 0], owner[disc > 0] = colour, number
    noisy = np.clip(picture.astype(int) + rng.integers(-8, 9, picture.shape), 0, 255).astype(np.uint8)
    return noisy, [owner == number for number in range(1, len(objects) + 1)]


def coarse(mask, cell=5):
    """A mask as on a grid of cells."""
    height, width = mask.shape
    small = cv2.resize(mask.astype(np.float32), (width // cell, height // cell), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST) > 0.5


WHITE, GREEN = (225, 225, 220), (40, 140, 60)


def test_edges_move_to_those_of_the_image():
    picture, (truth,) = scene([(WHITE, (80, 60), 21)])
    mask = coarse(truth)
    assert mask_iou(mask, truth) < 0.93
    corrected = Edges(5).correct(picture, mask)
    assert mask_iou(corrected, truth) > 0.98
    assert corrected.dtype == bool and corrected.shape == SIZE


def test_a_part_has_the_colours_of_the_whole():
    """Something comes in front; SAM 2's mask then covers as much of it as of the object."""
    edges = Edges(5)
    picture, (truth,) = scene([(WHITE, (80, 60), 21)])
    edges.correct(picture, coarse(truth))
    picture, (truth, _) = scene([(WHITE, (80, 60), 21), (GREEN, (96, 60), 26)], seed=1)
    spread = cv2.dilate(truth.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert np.count_nonzero(truth) < 0.4 * 21**2 * np.pi and mask_iou(spread, truth) < 0.6
    assert mask_iou(edges.correct(picture, spread), truth) > 0.9
    # One that has not seen the whole cannot know.
    assert mask_iou(Edges(5).correct(picture, spread), truth) < 0.9


def test_a_shrinking_object_becomes_the_whole():
    edges, masks = Edges(5), []
    for number, radius in enumerate(range(30, 12, -1)):
        picture, (truth,) = scene([(WHITE, (40 + 2 * number, 60), radius)], seed=number)
        masks.append(mask_iou(edges.correct(picture, coarse(truth)), truth))
    assert min(masks) > 0.93


@pytest.mark.parametrize("kind", ["empty", "few", "noise", "all"])
def test_a_mask_stays_where_colours_do_not_tell(kind):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    mask = np.zeros(SIZE, bool)
    if kind == "few":
        mask[60, 60:75] = True
    elif kind == "noise":
        mask[40:80, 50:100] = True
    elif kind == "all":
        mask[:] = True
    corrected = Edges(5).correct(noise, mask)
    if kind == "noise":
        assert mask_iou(corrected, mask) >= 0.6
    else:
        assert np.array_equal(corrected, mask)


def test_only_pixels_near_the_edge_change():
    """A spot of another colour inside, and an equal object elsewhere."""
    picture, (truth, spot, _) = scene([(WHITE, (60, 60), 25), (GREEN, (60, 60), 6), (WHITE, (130, 60), 15)])
    mask = coarse(truth | spot)
    changed = Edges(5).correct(picture, mask) != mask
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    assert changed.any() and not changed[(distance > 8) | (inside > 8)].any()


def test_large_objects_are_corrected_in_a_copy():
    picture, (truth,) = scene([(WHITE, (80, 60), 40)])
    large, truth = (
        cv2.resize(part.astype(np.uint8), None, fx=5, fy=5, interpolation=cv2.INTER_NEAREST)
        for part in (picture, truth)
    )
    mask = coarse(truth > 0, 20)
    corrected = Edges(20).correct(large, mask)
    assert mask_iou(corrected, truth > 0) > mask_iou(mask, truth > 0) + 0.02


def test_the_same_calls_give_the_same_masks():
    pictures = [scene([(WHITE, (60 + 2 * step, 60), 20), (GREEN, (100, 60), 18)], seed=step) for step in range(6)]
    cv2.setRNGSeed(1)
    runs = []
    for _ in range(2):
        edges = Edges(5)
        runs.append([edges.correct(picture, coarse(truth)) for picture, (truth, _) in pictures])
        np.random.default_rng().random()
        cv2.randu(np.zeros((3, 3), np.uint8), 0, 9)
    assert all(np.array_equal(first, second) for first, second in zip(*runs))


def test_a_change_of_the_image_size_is_taken():
    edges = Edges(5)
    picture, (truth,) = scene([(WHITE, (80, 60), 21)])
    edges.correct(picture, coarse(truth))
    part = coarse(truth)[:100]
    part[:, 75:] = False
    assert edges.correct(picture[:100], part).shape == (100, 160)


def result(picture, masks, first=0):
    """A result with a target for each mask, ids from 1, labels from 11; better scores first."""
    frame = Frame(picture, first + 1)
    scores = [TrackletScores(0.9, 0.9, 0.9, 0.9 - 0.1 * place) for place in range(len(masks))]
    targets = tuple(
        Target(place + 1, place + 11, ("q",), "disc", TargetState.TRACKED, mask, score, 1)
        for place, (mask, score) in enumerate(zip(masks, scores))
    )
    return FrameResult(frame, label_image(frame.size_hw, targets), (Query("q", "discs"),), targets)


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))


def test_published_masks_and_labels_are_corrected_together(sam2):
    correction = ImageEdges(sam2)
    correction._grid_side = 32  # cells of 5 pixels
    picture, truths = scene([(WHITE, (50, 60), 21), (GREEN, (110, 60), 21)])
    before = result(picture, [coarse(truth) for truth in truths])
    after = correction.correct(before, TrackingConfig(edges="image"))
    for target, truth in zip(after.targets, truths):
        assert mask_iou(target.mask, truth) > 0.98
        assert np.array_equal(after.labels == target.label, target.mask)
    assert [target.state for target in after.targets] == [target.state for target in before.targets]
    assert after.frame is before.frame and after.queries == before.queries


def test_masks_of_sam2_are_published_as_they_are_by_default(sam2):
    correction = ImageEdges(sam2)
    picture, (truth,) = scene([(WHITE, (80, 60), 21)])
    before = result(picture, [coarse(truth)])
    assert correction.correct(before, TrackingConfig()) is before


def test_a_target_that_comes_back_begins_anew(sam2):
    correction, config = ImageEdges(sam2), TrackingConfig(edges="image")
    picture, (truth,) = scene([(WHITE, (80, 60), 21)])
    correction.correct(result(picture, [coarse(truth)]), config)
    known = dict(correction._by_target)
    correction.correct(result(picture, [coarse(truth)]), config)
    assert correction._by_target == known
    correction.correct(result(picture, []), config)
    correction.correct(result(picture, [coarse(truth)]), config)
    assert correction._by_target[1] is not known[1]
