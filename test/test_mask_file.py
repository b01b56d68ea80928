"""COCO's run-length encoding against hand-made texts and a second implementation; JSON files read entry by entry."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from benchmark_layouts import rle

from decaf_ros.evaluation.datasets.mask_file import decode_rle, read_entry, run_lengths


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("6", [6]),
        ("042", [0, 4, 2]),  # one digit a length: "0" is 0, "?" is 15
        ("P1", [32]),  # 0 with "another follows", then 1 times 32
        ("o0", [31]),  # 31 needs a second group, whose sign bit is 0
        ("3210", [3, 2, 1, 2]),  # the fourth length is that of the second, plus 0
        ("321O", [3, 2, 1, 1]),  # "O" is 31, a negative number in five bits: -1
        ("32101", [3, 2, 1, 2, 2]),
        ("SR2", [(ord("S") - 48 & 31) + ((ord("R") - 48 & 31) << 5) + (2 << 10)]),
    ],
)
def test_hand_made_texts(text, lengths):
    assert run_lengths(text).tolist() == lengths


def test_pixels_go_down_the_columns():
    mask = decode_rle({"size": [2, 3], "counts": "132"})
    assert mask.tolist() == [[False, True, False], [True, True, False]]
    assert (decode_rle({"size": [2, 3], "counts": [1, 3, 2]}) == mask).all()
    assert decode_rle({"size": [2, 3], "counts": "06"}).all() and not decode_rle({"size": [2, 3], "counts": "6"}).any()


def test_random_masks_of_all_densities():
    """Against an encoder written from the definition, which counts pixel by pixel."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        mask = rng.random(rng.integers(1, 60, 2)) < rng.random()
        mask = np.kron(mask, np.ones(rng.integers(1, 9, 2))) > 0
        np.testing.assert_array_equal(decode_rle(rle(mask)), mask)


def test_the_same_as_pycocotools():
    coco = pytest.importorskip("pycocotools.mask", reason="no dependency of ours")
    rng = np.random.default_rng(1)
    for _ in range(40):
        mask = np.kron(rng.random(rng.integers(1, 60, 2)) < rng.random(), np.ones(rng.integers(1, 9, 2))) > 0
        written = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle(mask)["counts"] == written["counts"].decode()
        np.testing.assert_array_equal(decode_rle({**written, "counts": written["counts"].decode()}), mask)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"size": [2, 3], "counts": "133"}, "expected run lengths with the sum 2 x 3, got 7"),
        ({"size": [2, 3], "counts": "13O2"}, "expected run lengths with the sum"),
        ({"size": [2, 3], "counts": ""}, "expected COCO's compressed run lengths, got ''"),
        ({"size": [2, 3], "counts": "1P"}, "expected COCO's compressed run lengths, got '1P'"),
        ({"size": [2, 3], "counts": "1 5"}, "expected COCO's compressed run lengths"),
        ({"size": [2, 3], "counts": "P" * 13 + "1"}, "expected at most 12 characters for a length, got 14"),
        ({"size": [2, 3], "counts": [7, -1]}, "expected run lengths from 0 to 2 x 3, got [7, -1]"),
        ({"size": [2, 3], "counts": [2**63, 2]}, "expected run lengths from 0 to 2 x 3, got [9223372036854775808, 2]"),
        ({"size": [2, 3], "counts": [1.5, 4.5]}, "expected run lengths from 0 to 2 x 3"),
        ({"size": [2, 3], "counts": [True, 5]}, "expected run lengths from 0 to 2 x 3"),
        ({"size": [True, 6], "counts": [6]}, 'expected a mask with "size": [height, width], above 0'),
        ({"size": [-2, -3], "counts": [6]}, 'expected a mask with "size": [height, width], above 0'),
        ({"size": [0, 3], "counts": []}, 'expected a mask with "size": [height, width], above 0'),
        ({"size": [2, 3]}, "expected text or a list, got None"),
        ({"counts": "6"}, 'expected a mask with "size"'),
        ([1], 'expected a mask with "size"'),
    ],
)
def test_no_mask(mask, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        decode_rle(mask)


CONTENT = {
    "7": [{"size": [1, 2], "counts": 'brackets ]}[{ "quoted" \\ and \\" back'}, None],
    'a "key" with {': {"masks_rle": [None], "ratio": [0.5]},
    "number": 3,
    "8": [],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_entries_are_read_one_by_one(tmp_path, indent):
    file = tmp_path / "masks.json"
    file.write_text(json.dumps(CONTENT, indent=indent))
    for key in CONTENT.keys() - {"number"}:
        assert read_entry(file, key, "mend it") == CONTENT[key]
    with pytest.raises(ValueError, match=r"masks.json: expected an entry '9', got 3 others; mend it"):
        read_entry(file, "9", "mend it")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not found"),
        ("", "is empty"),
        (json.dumps(CONTENT)[:-9], "expected one complete JSON object"),
        ("[]", "expected one complete JSON object"),
        ("version https://git-lfs.github.com/spec/v1", "expected one complete JSON object"),
        ('{"7": [1, nothing]}', "entry '7': expected JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    file = tmp_path / "masks.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=rf"masks.json.*{re.escape(words)}.*; mend it"):
        read_entry(file, "7", "mend it")
