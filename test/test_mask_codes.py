"""Masks of targets as bytes, read by other programs: pycocotools, Pillow, and a reader written from the definition."""

from __future__ import annotations

import io

import numpy as np
import pytest
from benchmark_layouts import rle
from PIL import Image

from decaf_ros.config.stream import OutputsConfig
from decaf_ros.evaluation.datasets.mask_file import decode_rle
from decaf_ros.io.mask_codes import encode_png, encode_rle, with_codes
from decaf_ros.types import Frame, FrameResult, Target, TargetState, TrackletScores


def masks(count: int = 60) -> list[np.ndarray]:
    """Empty, full and random masks of all densities, with short and long runs."""
    rng = np.random.default_rng(0)
    found = [np.zeros((3, 5), bool), np.ones((3, 5), bool), np.ones((1, 1), bool), np.zeros((700, 900), bool)]
    found[-1][100:650, 200:800] = True
    for _ in range(count):
        blocks = rng.random(rng.integers(1, 40, 2)) < rng.random()
        found.append(np.kron(blocks, np.ones(rng.integers(1, 30, 2))) > 0)
    return found


def test_rle_is_that_of_an_encoder_written_from_the_definition():
    for mask in masks():
        assert encode_rle(mask).decode() == rle(mask)["counts"]
        np.testing.assert_array_equal(decode_rle({**rle(mask), "counts": encode_rle(mask).decode()}), mask)


def test_pycocotools_decodes_rle():
    coco = pytest.importorskip("pycocotools.mask")
    for mask in masks():
        decoded = coco.decode({"size": list(mask.shape), "counts": encode_rle(mask)})
        np.testing.assert_array_equal(decoded, mask)


def test_pillow_decodes_png():
    for mask in masks(10):
        picture = Image.open(io.BytesIO(encode_png(mask)))
        assert picture.mode == "1"
        np.testing.assert_array_equal(np.array(picture), mask)


def result(*combined: float) -> FrameResult:
    """Targets with these combined scores, on overlapping discs; a larger id has a larger disc."""
    rows, columns = np.indices((480, 640))
    targets = tuple(
        Target(
            id=10 + place,
            label=place + 1,
            query_ids=("q1",),
            category="",
            state=TargetState.TRACKED,
            mask=np.hypot(rows - 240, columns - 320) < 50 + 20 * place,
            scores=TrackletScores(score, score, score, score),
            source_stamp_ns=1,
        )
        for place, score in enumerate(combined)
    )
    return FrameResult(Frame(np.zeros((480, 640, 3), np.uint8), 1), np.zeros((480, 640), np.uint8), targets=targets)


@pytest.mark.parametrize("encoding", ["rle", "png"])
def test_each_target_gets_its_whole_mask(encoding):
    coded, left_out = with_codes(result(0.9, 0.8), OutputsConfig(encoding))
    assert left_out == []
    for target in coded.targets:
        assert target.code.encoding == encoding
        if encoding == "rle":
            decoded = decode_rle({"size": [480, 640], "counts": target.code.data.decode()})
        else:
            decoded = np.array(Image.open(io.BytesIO(target.code.data))) > 0
        np.testing.assert_array_equal(decoded, target.mask)


def test_nothing_is_encoded_without_being_asked_for():
    before = result(0.9)
    after, left_out = with_codes(before, OutputsConfig())
    assert after is before and left_out == [] and after.targets[0].code is None


def test_the_best_targets_find_room():
    found = result(*([0.7] * 5 + [0.9] * 3))
    coded, left_out = with_codes(found, OutputsConfig("rle", 1))
    sizes = {target.id: len(target.code.data) for target in coded.targets if target.code}
    assert 0 < sum(sizes.values()) <= 1024
    assert max(sizes) == 15, "the first of the highest scores"
    assert left_out and set(left_out) == {target.id for target in coded.targets} - set(sizes)
    assert all(len(encode_rle(found.targets[one - 10].mask)) + sum(sizes.values()) > 1024 for one in left_out)
