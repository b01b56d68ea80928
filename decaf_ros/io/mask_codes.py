"""Masks of targets as bytes, for `Tracklet.mask`.

"rle": the compressed counts of COCO's run-length encoding, as pycocotools reads them; see
`decaf_ros.evaluation.datasets.mask_file` for the encoding. "png": a PNG file with one bit a pixel, which readers
make 0 and 255, or bool.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from decaf_ros.config import OutputsConfig
from decaf_ros.types import FrameResult, MaskCode

# One bit a pixel takes a sixth of the time of eight.
_PNG = (cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 1)


def encode_rle(mask: np.ndarray) -> bytes:
    """COCO's compressed counts of a (H, W) bool mask, which is not empty in size."""
    columns = np.ascontiguousarray(mask.T).reshape(-1)
    changes = np.flatnonzero(columns[1:] != columns[:-1]) + 1
    # The first run is of background; it may be empty.
    ends = np.concatenate([[0] if columns[0] else [], changes, [columns.size]]).astype(np.int64)
    runs = np.diff(ends, prepend=0)
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    # Groups of five bits, lowest first; a number ends with the group whose top bit is its sign.
    written: list[np.ndarray] = []
    going = np.ones(numbers.size, bool)
    codes = np.zeros((numbers.size, 0), np.uint8)
    while going.any():
        group, numbers = numbers & 31, numbers >> 5
        last = numbers == -(group >> 4)
        written.append(np.where(going, (group | np.where(last, 0, 32)) + ord("0"), 0).astype(np.uint8))
        going = going & ~last
    codes = np.stack(written, axis=1)
    return codes[codes > 0].tobytes()


def encode_png(mask: np.ndarray) -> bytes:
    """A PNG file of a (H, W) bool mask."""
    return cv2.imencode(".png", mask.view(np.uint8) * np.uint8(255), _PNG)[1].tobytes()


_ENCODERS = {"rle": encode_rle, "png": encode_png}


def with_codes(result: FrameResult, config: OutputsConfig) -> tuple[FrameResult, list[int]]:
    """The result with the masks of its targets as bytes, as `outputs.tracklet_masks` asks for, and the ids of the
    targets whose masks find no room in `outputs.tracklet_masks_kib`: the ones with the lowest combined scores."""
    if config.tracklet_masks == "none":
        return result, []
    encode, room = _ENCODERS[config.tracklet_masks], config.tracklet_masks_kib * 1024
    codes: dict[int, MaskCode] = {}
    left_out = []
    for target in sorted(result.targets, key=lambda target: (-target.scores.combined, target.id)):
        data = encode(target.mask)
        if len(data) > room:
            left_out.append(target.id)
            continue
        room -= len(data)
        codes[target.id] = MaskCode(config.tracklet_masks, data)
    targets = tuple(replace(target, code=codes.get(target.id)) for target in result.targets)
    return replace(result, targets=targets), left_out
