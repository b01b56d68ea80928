"""Decodes RVL, a lossless code for depth images (Wilson, Fast Lossless Depth Image Compression, 2017).

A stream of numbers: how many zeros follow, how many other values follow, the differences of those to the value before,
and so on. A number is a chain of nibbles with three bits each, the lowest first; the fourth bit says that another one
follows. Eight nibbles are packed into a 32-bit word, the first in the highest bits. Words are little-endian here, as
all publishers' machines write them.
"""

from __future__ import annotations

import numpy as np

_NIBBLES = 8  # of a word
_LONGEST = 10  # nibbles of a 30-bit number; more are damaged data
_SHIFTS = np.arange(28, -1, -4, dtype=np.uint32)


def decode_rvl(data: bytes, pixels: int) -> np.ndarray:
    """Decodes `pixels` values, one or more; (pixels,) uint16.

    Raises ValueError if the data ends too early, holds more values than asked for, or goes on after the last one.
    """
    if len(data) % 4:
        raise ValueError(f"RVL: expected whole words of 4 bytes, got {len(data)} bytes")
    numbers, ends = _numbers(data)
    filled = np.zeros(pixels, bool)
    differences = np.zeros(pixels, np.int32)
    done = place = 0
    while done < pixels:
        zeros, others = map(int, numbers[place : place + 2]) if place + 2 <= len(numbers) else (0, 0)
        place += 2
        if zeros + others == 0 or place + others > len(numbers):  # zeros fill the last word
            raise ValueError(f"RVL: expected {pixels} pixels, got data that ends after {done + zeros}")
        first, done = done + zeros, done + zeros + others
        if done > pixels:
            raise ValueError(f"RVL: expected {pixels} pixels, got a run up to pixel {done}")
        differences[first:done] = numbers[place : place + others]
        filled[first:done] = True
        place += others
    # The writer may end with an empty run, which can take another word.
    used = -(-int(ends[place - 1] + 1) // _NIBBLES) * 4
    if len(data) > used + 4:
        raise ValueError(f"RVL: expected {pixels} pixels in {used} bytes, got {len(data)} bytes")
    signed = ((differences >> 1) ^ -(differences & 1)).astype(np.uint16)  # modulo 2^16, as the values
    return np.cumsum(signed, dtype=np.uint16) * filled


def _numbers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """All whole numbers in the data, and the nibble at which each ends."""
    words = np.frombuffer(data, "<u4")
    nibbles = ((words[:, None] >> _SHIFTS) & 15).astype(np.int64).reshape(-1)
    ends = np.flatnonzero(nibbles < 8)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)
    if ends.size == 0:
        return np.zeros(0, np.int64), ends
    longest = int((ends - starts).max()) + 1
    if longest > _LONGEST:
        raise ValueError(f"RVL: expected numbers of at most {_LONGEST} nibbles, got one of {longest}")
    nibbles = nibbles[: ends[-1] + 1]
    places = np.arange(nibbles.size) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((nibbles & 7) << (3 * places), starts), ends
