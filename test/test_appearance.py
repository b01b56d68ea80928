"""The memory of a target's appearance, and the masks that it rejects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sam2_scenes import disc, moving_scene
from scripted import frame, settings

from decaf_ros.config import Sam2Config
from decaf_ros.online.appearance import Appearance
from decaf_ros.segmentation.appearance import BINS, colour_bins, describe
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.search import Example, likely_points
from decaf_ros.types import Frame

CONFIG = settings(tracking__appearance_margin=0.1).tracking
OFF = settings(tracking__appearance_margin=2.0).tracking
LOOK, OTHER = np.array([1, 0, 0], np.float32), np.array([0.6, 0.8, 0], np.float32)
DOUBTFUL = np.array([0.95, 0.31, 0], np.float32)
LESS_ALIKE = np.array([0.97, 0.2431, 0], np.float32)
UNLIKE = np.array([0.96, 0.28, 0], np.float32)
NO_LOOK = np.zeros(3, np.float32)


def _mask(left: int, width: int = 8, height: int = 8) -> np.ndarray:
    mask = np.zeros((100, 200), bool)
    mask[20 : 20 + height, left : left + width] = True
    return mask


@pytest.fixture
def known() -> Appearance:
    """A target seen at the same place on ten frames, 0.1 s apart."""
    appearance = Appearance()
    for number in range(10):
        assert not appearance.contradicts(frame(number), _mask(40), LOOK, CONFIG)
        appearance.accept(frame(number), _mask(40), LOOK, CONFIG)
    return appearance


def test_a_new_target_accepts_anything():
    assert Appearance().similarity(LOOK) is None
    assert not Appearance().contradicts(frame(0), _mask(0), OTHER, CONFIG)


def test_a_mask_that_looks_different_contradicts(known):
    assert known.similarity(OTHER) == pytest.approx(0.6)
    assert known.contradicts(frame(10), _mask(40), OTHER, CONFIG)
    assert not known.contradicts(frame(10), _mask(40), OTHER, OFF)
    for look in (LOOK, NO_LOOK, None):  # without a descriptor there is no evidence
        assert not known.contradicts(frame(10), _mask(40), look, CONFIG)


@pytest.mark.parametrize("look", [NO_LOOK, None])
def test_a_speck_without_a_descriptor_is_no_return(known, look):
    """Hidden for longer than a moment, the target may be anywhere, so it has to look alike."""
    speck = _mask(120, 3, 3)
    assert known.contradicts(frame(40), speck, look, CONFIG)
    assert not known.contradicts(frame(40), speck, look, OFF)
    assert not known.contradicts(frame(40), _mask(120), LOOK, CONFIG)


def test_usual_similarity_is_the_targets_own():
    """It follows a target whose looks change slowly."""
    varying = Appearance()
    for number in range(60):
        look = np.array([np.cos(number / 200), 0, np.sin(number / 200)], np.float32)  # turns slowly
        varying.accept(frame(number), _mask(40), look, CONFIG)
    assert not varying.looks_different(np.array([0.95, 0, 0.31], np.float32), CONFIG)
    assert varying.looks_different(np.array([0.5, 0.87, 0], np.float32), CONFIG)


@pytest.mark.parametrize(
    ("mask", "number", "contradicts"),
    [
        (_mask(50), 10, False),
        (_mask(60), 10, True),  # 20 px at once; the target is 8 px wide
        (_mask(60), 18, False),  # 0.9 s later it may be anywhere
        (_mask(40, 14, 12), 10, True),  # 2.6 times the area
        (_mask(40, 14, 12), 18, True),  # also when it comes back
        (_mask(40, 10, 8), 10, False),
        (_mask(40, 2, 2), 10, False),  # nearly hidden
    ],
)
def test_jumps_for_a_moment_and_growth_contradict(known, mask, number, contradicts):
    assert known.contradicts(frame(number), mask, LOOK, CONFIG) == contradicts


def test_doubtful_masks_and_slivers_teach_nothing(known):
    for number in range(10, 40):
        assert not known.accept(frame(number), _mask(40), DOUBTFUL, CONFIG)
    assert known.similarity(DOUBTFUL) == pytest.approx(0.95, abs=0.01)
    for number in range(10, 40):
        assert not known.accept(frame(number), _mask(40, 2), LOOK, CONFIG)
    assert known.contradicts(frame(40), _mask(40), OTHER, CONFIG)
    assert not known.contradicts(frame(40), _mask(40, 10, 8), LOOK, CONFIG), "the typical area is still the whole"


def test_a_doubtful_mask_may_not_grow_or_come_back(known):
    """An occluder makes the mask smaller; SAM 2 slides to another object as it grows, or after a while."""
    assert not known.contradicts(frame(10), _mask(40, 4), DOUBTFUL, CONFIG)
    assert known.contradicts(frame(10), _mask(40, 10), DOUBTFUL, CONFIG)
    assert not known.contradicts(frame(10), _mask(40, 10), LOOK, CONFIG)
    assert known.contradicts(frame(18), _mask(40, 4), DOUBTFUL, CONFIG)
    assert not known.contradicts(frame(18), _mask(40, 4), LOOK, CONFIG)


ALMOST = np.array([0.985, 0.173, 0], np.float32)


@pytest.mark.parametrize(
    ("masks", "looks", "chosen"),
    [
        ([_mask(0), _mask(80)], [OTHER, LOOK], 1),
        ([_mask(0), _mask(80)], [OTHER, ALMOST], None),  # alike, but nothing else speaks for it
        ([_mask(0), _mask(80)], [LOOK, LOOK], None),  # two of a kind
        ([_mask(80), _mask(81)], [LOOK, LOOK], 0),  # twice the same thing
        ([_mask(80, 4, 4)], [LOOK], 0),  # farther away
        ([_mask(80, 3, 4)], [LOOK], None),
        ([_mask(80, 16, 16)], [LOOK], None),
        ([], [], None),
    ],
)
def test_the_choice_among_masks_needs_one_that_clearly_is_the_target(known, masks, looks, chosen):
    stacked = np.array(masks, bool).reshape(len(masks), 100, 200)
    assert known.choose(stacked, np.array(looks, np.float32).reshape(len(looks), 3), CONFIG) == chosen


def test_what_is_found_farther_away_is_learned_and_may_come_near_again(known):
    small = _mask(80, 4, 4)
    assert not known.accept(frame(10), small, LOOK, CONFIG), "a sliver"
    known.find(small)
    assert known.accept(frame(20), small, LOOK, CONFIG)
    assert not known.contradicts(frame(30), _mask(80, 10, 8), LOOK, CONFIG)
    assert known.contradicts(frame(30), _mask(80, 11, 8), LOOK, CONFIG)


def test_a_choice_needs_most_samples_to_agree():
    """The mask leaked into a neighbour bit by bit, and its looks were learned; then the target left."""
    looks = Appearance()
    for number in range(55):
        angle = np.deg2rad(8 * max(0, number // 5 - 7))  # ends at 24 degrees
        leaking = np.array([np.cos(angle), np.sin(angle), 0], np.float32)
        looks.accept(frame(number), _mask(40), leaking, CONFIG)
    assert looks.looks_alike(leaking, CONFIG)
    assert looks.choose(np.array([_mask(80)]), leaking[None], CONFIG) is None
    assert looks.choose(np.array([_mask(80)]), LOOK[None], CONFIG) == 0
    assert looks.choose(np.array([_mask(40)]), leaking[None], CONFIG, in_place=[0]) == 0


def test_a_mask_in_the_old_place_may_look_less_alike(known):
    masks, looks = np.array([_mask(40), _mask(80)]), np.array([LESS_ALIKE, UNLIKE], np.float32)
    assert known.choose(masks, looks, CONFIG) is None
    assert known.choose(masks, looks, CONFIG, in_place=[0]) == 0
    assert known.choose(masks, looks, CONFIG, in_place=[1]) is None, "the margin is a third"


def test_slivers_and_strays_are_no_doubt(known):
    """Half hidden, it looked alike all the time; then a doubtful mask comes."""
    for number in range(10, 25):
        assert not known.accept(frame(number), _mask(40, 4, 4), LOOK, CONFIG, has_strays=number % 2 == 0)
    assert not known.contradicts(frame(25), _mask(40), DOUBTFUL, CONFIG)


def test_doubt_that_lasts_asks_for_more_similarity(known):
    """The mask took in an object beside the target, which then left: the rest looks a little like it."""
    for number in range(10, 19):
        assert not known.contradicts(frame(number), _mask(40), DOUBTFUL, CONFIG)
        assert not known.accept(frame(number), _mask(40), DOUBTFUL, CONFIG)
    assert not known.contradicts(frame(20), _mask(40), LESS_ALIKE, CONFIG)
    assert known.contradicts(frame(20), _mask(40), DOUBTFUL, CONFIG)
    assert not known.contradicts(frame(20), _mask(40), NO_LOOK, CONFIG), "no evidence"
    assert not known.contradicts(frame(20), _mask(40), DOUBTFUL, OFF)


def test_a_mask_that_sam_2_follows_and_a_click_confirms_may_be_larger(known):
    """The target came out from behind something; before, it was never seen whole."""
    masks, looks = np.array([_mask(40, 20)]), np.array([ALMOST], np.float32)
    assert known.choose(masks, looks, CONFIG) is None
    assert known.choose(masks, looks, CONFIG, followed=[0]) == 0
    assert known.choose(masks, np.array([DOUBTFUL], np.float32), CONFIG, followed=[0]) is None
    assert known.choose(np.array([_mask(40, 26)]), looks, CONFIG, followed=[0]) is None


def test_a_target_may_come_near_bit_by_bit_but_not_at_once(known):
    """A mask that grows at once has taken in another object."""
    side = 8
    for number in range(10, 30):
        side += 1
        assert not known.contradicts(frame(number), _mask(40, side, side), LOOK, CONFIG)
        known.accept(frame(number), _mask(40, side, side), LOOK, CONFIG)
    assert known.contradicts(frame(30), _mask(40, 4 * side // 3, 4 * side // 3), LOOK, CONFIG)
    beside = _mask(40, side, side)
    beside[20:24, 40 + side : 40 + 2 * side] = True
    assert known.contradicts(frame(30), beside, LOOK, CONFIG), "as large, but of another shape"


@pytest.mark.parametrize("may_be_nearer, most", [(False, 1.5), (True, 3.0)])
def test_what_is_found_elsewhere_may_be_larger_within_bounds(known, may_be_nearer, most):
    assert not known.is_too_large(64 * most, may_be_nearer) and known.is_too_large(64 * most + 1, may_be_nearer)


def test_the_first_masks_do_not_say_for_ever_how_large_a_target_may_be():
    """They took in the object beside it."""
    looks = Appearance(128.0)
    for number in range(40):
        looks.accept(frame(number), _mask(40, 12 if number < 5 else 8), LOOK, CONFIG)
        if number == 20:
            assert not looks.contradicts(frame(number), _mask(40, 14), LOOK, CONFIG)
    assert looks.contradicts(frame(40), _mask(40, 14), LOOK, CONFIG)
    assert not looks.contradicts(frame(40), _mask(40, 10), LOOK, CONFIG)


def test_a_mask_that_grows_to_one_side_step_by_step_is_a_leak(known):
    """Two touching boxes of one colour."""
    for number, width in enumerate((9, 10), start=10):
        known.accept(frame(number), _mask(40, width), LOOK, CONFIG)
    assert known.contradicts(frame(12), _mask(40, 12), LOOK, CONFIG)


def test_the_margin_can_be_off(known):
    for number in (10, 30):
        assert not known.contradicts(frame(number), _mask(40, 10), OTHER, OFF)
    assert known.accept(frame(30), _mask(40), OTHER, OFF)


def test_the_first_mask_may_show_a_part():
    """It touches the border of the image; the whole object is larger."""
    for area_px, contradicts in ((0.0, True), (64.0, False)):
        entering = Appearance(area_px)
        entering.accept(frame(0), _mask(0, 2), LOOK, CONFIG)
        assert entering.contradicts(frame(1), _mask(0), LOOK, CONFIG) == contradicts


def test_memory_is_bounded(known):
    for number in range(10, 400):
        known.accept(frame(number), _mask(40), LOOK, CONFIG)
    assert len(known._samples) == 12


@pytest.fixture(scope="module")
def sam2(tiny_sam2_dir):
    return load_sam2(Sam2Config(str(tiny_sam2_dir), device="cpu"))


def test_descriptors_tell_objects_apart(sam2):
    size = (120, 200)
    masks = torch.from_numpy(np.stack([disc(size, 0.3, 0.5, 0.17), disc(size, 0.75, 0.4, 0.12)]))
    first, last = (describe(sam2.embed(one), masks.numpy(), one) for one in moving_scene(3)[::2])
    channels = sum(level.shape[1] for level in sam2.embed(moving_scene(1)[0]).features)
    assert first.shape == last.shape and first.shape[0] == 2 and first.shape[1] > channels
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-5)
    similarity = first @ last.T
    assert similarity[0, 0] > 0.9 and similarity[1, 1] > 0.9
    assert max(similarity[0, 1], similarity[1, 0]) < min(similarity[0, 0], similarity[1, 1]) - 0.1


def test_a_mask_below_a_cell_has_no_descriptor(sam2):
    masks = torch.zeros(2, 120, 200, dtype=torch.bool)
    masks[1, 5, 5] = True
    (scene,) = moving_scene(1)
    assert not describe(sam2.embed(scene), masks.numpy(), scene).any()


def test_a_leak_into_another_colour_changes_a_descriptor(sam2):
    """And it does so although the pooled features hardly change."""
    image = np.full((120, 200, 3), 90, np.uint8)
    image[40:80, 40:80], image[40:80, 80:120] = (200, 30, 30), (200, 180, 30)
    masks = torch.zeros(3, 120, 200, dtype=torch.bool)
    masks[0, 40:80, 40:80] = masks[1, 40:80, 50:80] = masks[2, 40:80, 40:105] = True
    scene = Frame(image, 0)
    whole, part, leaking = describe(sam2.embed(scene), masks.numpy(), scene)
    assert whole @ part > 0.98 and whole @ leaking < 0.95


RED = (210, 40, 35)


def test_colours_show_where_to_search():
    image = np.full((120, 200, 3), 90, np.uint8)
    image[20:40, 30:50] = image[70:90, 150:170] = RED
    image[80:100, 20:40] = (30, 30, 200)
    look = np.sqrt(np.bincount(colour_bins(np.array([RED], np.uint8)), minlength=BINS)).astype(np.float32)
    points = likely_points(Frame(image, 0), Example(look, 400.0))[:2] * (200, 120)
    assert sorted(points[:, 0] // 100) == [0, 1]
    for x, y in points:
        assert (image[int(y), int(x)] == RED).all()
    blue = np.full((120, 200, 3), (30, 30, 200), np.uint8)
    assert likely_points(Frame(blue, 0), Example(look, 400.0)).shape == (0, 2)
