"""Reads masks in COCO's run-length encoding, one track at a time from JSON files of any size.

The encoding: https://github.com/cocodataset/cocoapi (common/maskApi.h, MASK API). The pixels of a mask are taken column
by column; run lengths of 0 and 1 alternate, starting with 0. In the compressed form a length is the difference from the
length two before, from the fourth length on. It is written in groups of five bits, lowest first, as characters from
"0" on; bit 5 says that another group follows, and bit 4 of the last group is the sign.
"""

from __future__ import annotations

import functools
import json
import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
# Groups of five bits in a 64 bit number.
_MOST_GROUPS = 12


def run_lengths(counts: str) -> np.ndarray:
    """(N,) int64: the run lengths of a compressed mask. Raises ValueError for text that is none."""
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - ord("0")
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError(f"counts: expected COCO's compressed run lengths, got {counts[:40]!r}")
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.append(0, ends[:-1] + 1)
    groups = ends - starts + 1
    if groups.max() > _MOST_GROUPS:
        raise ValueError(f"counts: expected at most {_MOST_GROUPS} characters for a length, got {groups.max()}")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, groups))
    lengths = np.add.reduceat((codes & 31) << shifts, starts)
    lengths -= np.where(codes[ends] & 16, np.int64(1) << (5 * groups), 0)
    for first in (1, 2):
        lengths[first::2] = np.cumsum(lengths[first::2])
    return lengths


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """(H, W) bool: the mask of {"size": [H, W], "counts": text, or a list of run lengths}.

    Raises ValueError if that is no such mask, or its run lengths do not fill it.
    """
    height, width = size_of(rle)
    counts = rle.get("counts")
    if not isinstance(counts, (str, list)):
        raise ValueError(f"counts: expected text or a list, got {counts!r}")
    if isinstance(counts, list) and not all(type(run) is int and 0 <= run <= height * width for run in counts):
        raise ValueError(f"counts: expected run lengths from 0 to {height} x {width}, got {str(counts)[:60]}")
    lengths = run_lengths(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    if (lengths < 0).any() or (lengths > height * width).any() or lengths.sum() != height * width:
        raise ValueError(f"counts: expected run lengths with the sum {height} x {width}, got {lengths.sum()}")
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return np.ascontiguousarray(pixels.reshape(width, height).T)


def size_of(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a mask. Raises ValueError if it states none."""
    size = rle.get("size") if isinstance(rle, Mapping) else None
    if not (isinstance(size, Sequence) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        raise ValueError(f'expected a mask with "size": [height, width], above 0, got {str(rle)[:60]}')
    return size[0], size[1]


def read_entry(file: Path, key: str, mend: str) -> Any:
    """The value of a key of a JSON object, without the other values in memory.

    Raises ValueError, which names the file and ends with `mend`: no such file or key, or no JSON object.
    """
    check_entries(file, [key], mend)
    start, end = _places(file, mend)[key]
    with file.open("rb") as opened:
        opened.seek(start)
        text = opened.read(end - start)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file}, entry {key!r}: expected JSON: {error}; {mend}") from error


def check_entries(file: Path, keys: Iterable[str], mend: str) -> None:
    """Checks that a JSON object is complete and has these keys. Raises ValueError as `read_entry`."""
    places = _places(file, mend)
    for key in keys:
        if key not in places:
            raise ValueError(f"{file}: expected an entry {key!r}, got {len(places)} others; {mend}")


@functools.lru_cache(maxsize=4)
def _places(file: Path, mend: str) -> dict[str, tuple[int, int]]:
    """First byte and end of the value of each key whose value is a list or an object."""
    if not file.is_file() or not file.stat().st_size:
        raise ValueError(f"{file}: {'is empty' if file.is_file() else 'not found'}; {mend}")
    places: dict[str, tuple[int, int]] = {}
    depth, key, start = 0, "", 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for token in _TOKEN.finditer(content):
            text = token.group()
            if text in (b"{", b"["):
                start = token.start() if depth == 1 else start
                depth += 1
            elif text in (b"}", b"]"):
                depth -= 1
                if depth == 1:
                    places[key] = start, token.end()
            elif depth == 1:
                key = json.loads(text)
    if depth or not places:
        raise ValueError(f"{file}: expected one complete JSON object; {mend}")
    return places
