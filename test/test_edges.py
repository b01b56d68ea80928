"""Masks with edges of the image: what changes, what stays, and that the tracker is not touched."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from decaf_ros.config import TrackingConfig
from decaf_ros.online.edges import ImageEdges
from decaf_ros.online.targets import label_image
from decaf_ros.segmentation.edges import Edges
from decaf_ros.segmentation.overlap import mask_iou
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


WHITE, GREEN, RED = (225, 225, 220), (40, 140, 60), (200, 60, 60)
WHITE_DISC = (WHITE, (80, 60), 21)


class Played:
    """Plays masks through `Edges`, 10 Hz."""

    def __init__(self, cell_px=5):
        self.edges, self.frame = Edges(cell_px), 0

    def correct(self, picture, mask, is_sure=True):
        self.frame += 1
        return self.edges.correct(picture, mask, self.frame * 100_000_000, is_sure)

    def iou(self, objects, number, mask_of=coarse, is_sure=True):
        """IoU of the corrected mask of object `number` with the truth, and that of the mask before."""
        picture, truths = scene(objects, seed=self.frame)
        mask = mask_of(truths[number])
        return mask_iou(self.correct(picture, mask, is_sure), truths[number]), mask_iou(mask, truths[number])


def spread(pixels):
    return lambda mask: cv2.dilate(mask.astype(np.uint8), np.ones((pixels, pixels), np.uint8)) > 0


def test_edges_move_to_those_of_the_image():
    picture, (truth,) = scene([WHITE_DISC])
    mask = coarse(truth)
    assert mask_iou(mask, truth) < 0.93
    corrected = Played().correct(picture, mask)
    assert mask_iou(corrected, truth) > 0.98
    assert corrected.dtype == bool and corrected.shape == SIZE


@pytest.mark.parametrize("pixels, place", [(9, 96), (7, 96), (5, 96), (7, 105), (9, 110)])
def test_a_part_has_the_colours_of_the_whole(pixels, place):
    """Something comes in front and stays; SAM 2's mask then covers some of it."""
    played, hider = Played(), (GREEN, (place, 60), 26)
    played.iou([WHITE_DISC], 0)
    ious = [played.iou([WHITE_DISC, hider], 0, spread(pixels), is_sure=False) for _ in range(79)]
    assert max(before for _, before in ious) < 0.77
    assert min(after for after, _ in ious) > 0.9


def test_colours_of_a_part_are_learned_after_seconds_only():
    """The target is surely seen: it may have turned for good."""
    played, hider = Played(), (GREEN, (96, 60), 26)
    played.iou([WHITE_DISC], 0)
    ious = [played.iou([WHITE_DISC, hider], 0, spread(9))[0] for _ in range(50)]
    assert min(ious) > 0.9


def test_one_that_has_not_seen_the_whole_cannot_know():
    assert Played().iou([WHITE_DISC, (GREEN, (96, 60), 26)], 0, spread(9))[0] < 0.9


@pytest.mark.parametrize("radius", [9, 10, 11, 12])
def test_a_leak_into_a_neighbour_is_not_learned(radius):
    played, objects = Played(), [(RED, (98, 60), radius), (WHITE, (70, 60), 21)]
    for _ in range(5):
        played.iou(objects, 1)
    picture, (neighbour, truth) = scene(objects, seed=9)
    leak = coarse(truth | neighbour)
    assert mask_iou(leak, truth) < 0.85
    played.correct(picture, leak)
    assert min(played.iou(objects, 1)[0] for _ in range(5)) > 0.95


def test_a_shrinking_object_is_followed():
    played = Played()
    ious = [played.iou([(WHITE, (40 + 2 * number, 60), 30 - number)], 0)[0] for number in range(18)]
    assert min(ious) > 0.93


@pytest.mark.parametrize("light", [0.7, 0.5])
def test_a_mask_stays_when_the_light_changes(light):
    played = Played()
    played.iou([WHITE_DISC], 0)
    dark = tuple(int(light * value) for value in WHITE)
    after, before = played.iou([(dark, (80, 60), 18)], 0)
    assert after >= before - 0.01


def test_a_mask_stays_where_colours_do_not_tell():
    """An object of the colour of the table, and a look-alike that passes in front."""
    after, before = Played().iou([((126, 94, 64), (80, 60), 21)], 0)
    assert after == before
    played = Played()
    played.iou([WHITE_DISC], 0)
    after, before = played.iou([WHITE_DISC, (WHITE, (96, 60), 21)], 0)
    assert after >= before - 0.01


@pytest.mark.parametrize("rows, columns", [(np.s_[60:61], np.s_[60:75]), (np.s_[:], np.s_[:]), (np.s_[:0], np.s_[:])])
def test_small_full_and_empty_masks_stay(rows, columns):
    picture, mask = scene([WHITE_DISC])[0], np.zeros(SIZE, bool)
    mask[rows, columns] = True
    assert Played().correct(picture, mask) is mask


@pytest.mark.parametrize("centre", [(5, 60), (155, 60), (80, 3), (80, 118), (3, 3)])
def test_an_object_at_the_border_of_the_image(centre):
    after, before = Played().iou([(WHITE, centre, 21)], 0)
    assert after > before and after > 0.97


def test_only_pixels_near_the_edge_change():
    """A spot of another colour inside, and an equal object elsewhere."""
    picture, (truth, spot, _) = scene([(WHITE, (60, 60), 25), (GREEN, (60, 60), 6), (WHITE, (130, 60), 15)])
    mask = coarse(truth | spot)
    changed = Played().correct(picture, mask) != mask
    outside, inside = (cv2.distanceTransform(part.astype(np.uint8), cv2.DIST_L2, 5) for part in (~mask, mask))
    assert changed.any() and not changed[(outside > 8) | (inside > 8)].any()


def test_large_objects_are_corrected_in_a_copy():
    picture, (truth,) = scene([(WHITE, (80, 60), 40)])
    large, truth = (
        cv2.resize(part.astype(np.uint8), None, fx=5, fy=5, interpolation=cv2.INTER_NEAREST)
        for part in (picture, truth)
    )
    mask = coarse(truth > 0, 20)
    corrected = Played(20).correct(large, mask)
    assert mask_iou(corrected, truth > 0) > mask_iou(mask, truth > 0) + 0.02


def test_a_large_object_on_a_fine_grid_stays():
    picture, (truth,) = scene([(WHITE, (80, 60), 50)])
    large = cv2.resize(picture, None, fx=5, fy=5)
    mask = cv2.resize(truth.astype(np.uint8), None, fx=5, fy=5) > 0
    assert Played(2).correct(large, mask) is mask


def test_the_same_calls_give_the_same_masks():
    pictures = [scene([(WHITE, (60 + 2 * step, 60), 20), (GREEN, (100, 60), 18)], seed=step) for step in range(6)]
    runs = []
    for seed in range(2):
        cv2.setRNGSeed(seed)
        played = Played()
        runs.append([played.correct(picture, coarse(truth)) for picture, (truth, _) in pictures])
    assert all(np.array_equal(first, second) for first, second in zip(*runs))


def test_another_image_size_begins_anew():
    played = Played()
    played.iou([WHITE_DISC], 0)
    picture, (truth,) = scene([WHITE_DISC])
    mask = coarse(truth)[:100]
    corrected = played.correct(picture[:100], mask)
    assert corrected.shape == (100, 160) and mask_iou(corrected, truth[:100]) > 0.98


def result(picture, masks, first=0):
    """A result with a target for each mask, ids from 1, labels from 11; better scores first."""
    frame = Frame(picture, first + 1)
    scores = [TrackletScores(0.9, 0.9, 0.9, 0.9 - 0.1 * place) for place in range(len(masks))]
    targets = tuple(
        Target(place + 1, place + 11, ("q",), "disc", TargetState.TRACKED, mask, score, 1)
        for place, (mask, score) in enumerate(zip(masks, scores))
    )
    return FrameResult(frame, label_image(frame.size_hw, targets), (Query("q", "discs"),), targets)


class Grid:
    """Stands for SAM 2: the size of its input. Cells are then 5 pixels wide."""

    image_size = 128


IMAGE = TrackingConfig(edges="image")
SURE = {1: (7, True), 2: (8, True)}


def test_published_masks_and_labels_are_corrected_together():
    picture, truths = scene([(WHITE, (50, 60), 21), (GREEN, (110, 60), 21)])
    before = result(picture, [coarse(truth) for truth in truths])
    after = ImageEdges(Grid()).correct(before, SURE, IMAGE)
    for target, truth in zip(after.targets, truths):
        assert mask_iou(target.mask, truth) > 0.98
        assert np.array_equal(after.labels == target.label, target.mask)
    assert [target.state for target in after.targets] == [target.state for target in before.targets]
    assert after.frame is before.frame and after.queries == before.queries


def test_masks_of_sam2_are_published_as_they_are_by_default():
    picture, (truth,) = scene([WHITE_DISC])
    before = result(picture, [coarse(truth)])
    assert ImageEdges(Grid()).correct(before, SURE, TrackingConfig()) is before


def hidden_iou(correction, evidence):
    """IoU on a frame on which something hides the target, with the whole seen before if it is remembered."""
    picture, (truth, _) = scene([WHITE_DISC, (GREEN, (96, 60), 26)], seed=1)
    after = correction.correct(result(picture, [spread(9)(truth)]), evidence, IMAGE)
    return mask_iou(after.targets[0].mask, truth)


@pytest.mark.parametrize("between", ["seen", "new memory", "lost", "gone"])
def test_a_target_that_is_found_again_begins_anew(between):
    correction, evidence = ImageEdges(Grid()), {1: (7, True)}
    picture, (truth,) = scene([WHITE_DISC])
    shown = result(picture, [coarse(truth)])
    correction.correct(shown, evidence, IMAGE)
    if between == "new memory":
        evidence = {1: (9, True)}
    elif between == "lost":
        lost = replace(shown.targets[0], state=TargetState.LOST, mask=np.zeros(SIZE, bool))
        after = correction.correct(replace(shown, targets=(lost,)), {}, IMAGE)
        assert after.targets[0].state is TargetState.LOST
    elif between == "gone":
        correction.correct(result(picture, []), {}, IMAGE)
    assert (hidden_iou(correction, evidence) > 0.9) == (between == "seen")


def test_what_is_not_surely_seen_is_not_learned():
    correction = ImageEdges(Grid())
    picture, (truth,) = scene([WHITE_DISC])
    correction.correct(result(picture, [coarse(truth)]), {1: (7, False)}, IMAGE)
    assert hidden_iou(correction, {1: (7, True)}) < 0.9
