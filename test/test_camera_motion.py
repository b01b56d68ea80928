"""A camera that turns moves everything in the image: targets are expected where it took them."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import settings
from target_scenes import QUERY, make_candidate, make_mask, states_of

from decaf_ros.online.appearance import Appearance
from decaf_ros.online.camera import image_shift, shifted
from decaf_ros.online.targets import Targets
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, Query

_LOOK = np.array([1, 0], np.float32)


def _texture(rows, columns, seed=0):
    """A coarse random texture, as of a table."""
    cells = np.random.default_rng(seed).integers(0, 256, (rows // 4 + 1, columns // 4 + 1, 3), np.uint8)
    return cells.repeat(4, axis=0).repeat(4, axis=1)[:rows, :columns]


def _frame(image, number=0):
    return Frame(np.ascontiguousarray(image), number * 100_000_000, "camera", number)


@pytest.mark.parametrize("rows, columns", [(120, 160), (240, 320), (480, 854)])
def test_the_shift_of_a_camera_that_turns(rows, columns):
    x, y = columns // 6, -rows // 10
    scene = _texture(2 * rows, 2 * columns)
    before = _frame(scene[rows // 2 :][:rows, columns // 2 :][:, :columns])
    after = _frame(scene[rows // 2 - y :][:rows, columns // 2 - x :][:, :columns])
    np.testing.assert_allclose(image_shift(before, after), (x, y), atol=rows / 100)


def test_an_object_that_moves_is_no_shift():
    scene = _texture(120, 160)
    before, after = scene.copy(), scene.copy()
    before[40:70, 20:60], after[40:70, 70:110] = 255, 255
    np.testing.assert_allclose(image_shift(_frame(before), _frame(after)), 0, atol=0.5)


@pytest.mark.parametrize("contrast", [0.05, 0.2, 1.0])
def test_an_object_of_strong_texture_is_no_shift_on_a_table_of_weak_texture(contrast):
    """Phase correlation alone takes it for the camera's motion."""
    table = (100 + contrast * (_texture(240, 320).astype(int) - 128)).clip(0, 255).astype(np.uint8)
    table[150:200, 200:260] = _texture(50, 60, seed=5)  # stands still
    before, after = table.copy(), table.copy()
    before[30:110, 20:120], after[30:110, 50:150] = (_texture(80, 100, seed=2),) * 2
    assert image_shift(_frame(before), _frame(after)).tolist() == [0, 0]


@pytest.mark.parametrize(
    "before, after",
    [
        (_texture(120, 160), _texture(120, 160, seed=1)),
        (np.zeros((120, 160, 3), np.uint8), np.zeros((120, 160, 3), np.uint8)),
        (np.zeros((120, 160, 3), np.uint8), _texture(120, 160)),
        (np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 3), np.uint8)),
        (np.zeros((2000, 3, 3), np.uint8), np.ones((2000, 3, 3), np.uint8)),
    ],
    ids=["cut", "black", "switched on", "pixel", "line"],
)
def test_no_shift_where_nothing_can_be_said(before, after):
    assert image_shift(_frame(before), _frame(after)).tolist() == [0, 0]


def test_a_shifted_mask():
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:4] = True
    expected = np.zeros((4, 6), bool)
    expected[0:1, 4:6] = True
    np.testing.assert_array_equal(shifted(mask, np.array([2.2, -1.8])), expected)
    np.testing.assert_array_equal(shifted(mask, np.array([-2.4, 1.0]))[2:, :2], np.ones((2, 2), bool))
    assert shifted(mask, np.array([0.4, -0.4])) is mask
    for far in ((6, 0), (0, -4), (100, 100)):
        assert not shifted(mask, np.array(far)).any()


def _turn(shift):
    """Two images of the targets' size; everything moves by `shift` pixels to the right."""
    scene = _texture(24, 96, seed=3)
    return scene[:, 32:64], scene[:, 32 - shift :][:, :32]


def test_a_look_alike_that_the_camera_moves_to_the_targets_place_is_not_the_target():
    """Both masks now lie on the second one: the first has left the image."""
    config = settings()
    before, after = _turn(8)
    now = _frame(before)
    targets = Targets()
    candidates = [make_candidate(0, 20), make_candidate(1, 12)]
    for candidate in candidates:
        candidate.frames = (now,)
        candidate.seen_frame = candidate.sure_frame = now
        candidate.masks = {now: candidate.seen_mask}
    targets.merge(candidates, QUERY, "mug", now, config)
    for number in range(1, 5):
        steps = {key: TrackStep(make_mask(left), 3.0, _LOOK) for key, left in ((0, 20), (1, 12))}
        targets.update(now := _frame(before, number), steps, config)
        targets.publish(now, [QUERY])
    there = TrackStep(make_mask(20), 3.0, _LOOK)
    targets.update(now := _frame(after, 5), {0: there, 1: there}, config)
    assert states_of(targets.publish(now, [QUERY])) == [(1, "OCCLUDED"), (2, "TRACKED")]


def test_a_mask_that_stays_where_it_was_while_the_camera_turns_is_not_the_target():
    config = settings()
    looks, area = Appearance(), make_mask(0).sum()
    for number in range(5):
        assert looks.accept(_frame(_texture(24, 96), number), make_mask(4), _LOOK, config.tracking)
    now, width = _frame(_texture(24, 96), 5), area**0.5
    assert not looks.contradicts(now, make_mask(4), _LOOK, config.tracking)
    looks.follow_camera(np.array([2.5 * width, 0]))
    assert looks.contradicts(now, make_mask(4), _LOOK, config.tracking)
    assert not looks.contradicts(now, make_mask(4 + round(2 * width)), _LOOK, config.tracking)


def test_a_new_target_is_not_moved_by_what_the_camera_did_before_it(monkeypatch):
    """Nothing was followed between the end of the first query and the answer of the second one."""
    config, compared = settings(), []
    before, after = _turn(8)
    targets, frames = Targets(), [_frame(before), _frame(before, 1), _frame(after, 50), _frame(after, 51)]

    def noted(one, other):
        compared.append((one, other))
        return image_shift(one, other)

    monkeypatch.setattr("decaf_ros.online.targets.image_shift", noted)
    for key, query, newest, now in ((0, QUERY, *frames[:2]), (1, Query("q2", "it"), *frames[2:])):
        candidate = make_candidate(key, 12)
        candidate.frames, candidate.seen_frame, candidate.sure_frame = (newest,), newest, newest
        candidate.masks = {newest: candidate.seen_mask}
        targets.merge([candidate], query, "mug", newest, config)
        targets.update(now, {key: TrackStep(make_mask(12), 3.0, _LOOK)}, config)
        targets.drop(query)
    assert compared == [tuple(frames[:2]), tuple(frames[2:])]
