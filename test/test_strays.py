"""Pieces of a mask that lie apart from the object."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import frame, settings

from decaf_ros.online.appearance import Appearance
from decaf_ros.segmentation.strays import has_strays, without_strays


def _mask(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """(60, 100) bool. boxes: left, top, width, height."""
    mask = np.zeros((60, 100), bool)
    for left, top, width, height in boxes:
        mask[top : top + height, left : left + width] = True
    return mask


OBJECT = (10, 10, 20, 20)


@pytest.mark.parametrize(
    ("boxes", "kept"),
    [
        ((), ()),
        ((OBJECT,), (OBJECT,)),
        ((OBJECT, (70, 40, 10, 10)), (OBJECT,)),
        ((OBJECT, (34, 10, 20, 20)), (OBJECT, (34, 10, 20, 20))),  # split by an occluder
        ((OBJECT, (60, 10, 30, 30)), ((60, 10, 30, 30),)),
        ((OBJECT, (36, 10, 6, 6), (48, 10, 6, 6)), (OBJECT, (36, 10, 6, 6), (48, 10, 6, 6))),  # a chain is one part
        (((0, 0, 20, 20), (80, 40, 20, 20), (80, 38, 20, 1)), ((80, 40, 20, 20), (80, 38, 20, 1))),  # at the border
    ],
)
def test_the_largest_part_is_kept(boxes, kept):
    np.testing.assert_array_equal(without_strays(_mask(*boxes)), _mask(*kept))


def test_a_mask_of_one_part_is_not_copied():
    mask = _mask(OBJECT)
    assert without_strays(mask) is mask


def test_speckles_are_no_strays():
    for stray, expected in (((70, 40, 4, 4), False), ((70, 40, 6, 6), True)):
        mask = _mask(OBJECT, stray)
        assert has_strays(mask, without_strays(mask)) == expected


def test_nothing_is_learned_while_there_are_strays():
    config = settings(tracking__appearance_margin=0.1).tracking
    look = np.array([1, 0], np.float32)
    appearance = Appearance()
    assert not appearance.accept(frame(0), _mask(OBJECT), look, config, has_strays=True)
    assert appearance.similarity(look) is None
    assert appearance.accept(frame(1), _mask(OBJECT), look, config)
    assert appearance.similarity(look) == pytest.approx(1)
