from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.segmentation.marking import marked_image


def test_the_object_keeps_its_pixels_in_a_white_line_and_the_rest_is_grey():
    image = np.random.default_rng(0).integers(1, 256, (240, 320, 3), dtype=np.uint8)
    mask = np.zeros((240, 320), bool)
    mask[100:120, 200:230] = True
    before = image.copy()
    marked = marked_image(image, mask)
    assert (marked[mask] == image[mask]).all() and (image == before).all()
    # Two pixels wide at this size, an ellipse: no corner.
    line = (marked == 255).all(axis=-1) & ~mask
    assert line[98:100, 200:230].all() and line[120:122, 200:230].all() and line[100:120, 198:200].all()
    assert not line[:98].any() and not line[122:].any() and not line[:, :198].any() and not line[:, 232:].any()
    rest = ~mask & ~line
    grey = image[rest] @ [0.299, 0.587, 0.114]
    assert np.abs(marked[rest] - (128 + 0.3 * (grey - 128))[:, None]).max() < 1.2


def test_an_object_out_of_sight_leaves_all_grey():
    image = np.full((24, 32, 3), 200, np.uint8)
    assert (marked_image(image, np.zeros((24, 32), bool)) == 149).all()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected the size of the image \(24, 32\), got \(32, 24\)"):
        marked_image(np.zeros((24, 32, 3), np.uint8), np.zeros((32, 24), bool))
