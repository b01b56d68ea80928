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


def decode_rvl(data: bytes, pixels: int) -> np.ndarray:
    """Decodes `pixels` values, one or more; (pixels,) uint16.

    Raises ValueError if the data ends too early, holds more values than asked for, or goes on after the last one.
    """
    if len(data) % 4:
        raise ValueError(f"RVL: expected whole words of 4 bytes, got {len(data)} bytes")
    numbers, ends = _numbers(data)
    places, edges, place = _runs(numbers, pixels)
    # The writer may end with an empty run, which can take another word.
    used = -(-int(ends[place - 1] + 1) // _NIBBLES) * 4
    if len(data) > used + 4:
        raise ValueError(f"RVL: expected {pixels} pixels in {used} bytes, got {len(data)} bytes")
    is_difference = np.ones(place, bool)
    is_difference[places] = is_difference[places + 1] = False
    differences = numbers[:place][is_difference]
    signed = ((differences >> 1) ^ -(differences & 1)).astype(np.uint16)  # modulo 2^16, as the values
    lengths = np.diff(edges, prepend=0, append=pixels)
    filled = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    values = np.zeros(pixels, np.uint16)
    values[filled] = np.cumsum(signed, dtype=np.uint16)
    return values


def _runs(numbers: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Walks from run to run, whose lengths say where the next one is.

    Returns the place of each run's lengths among the numbers, the pixels at which zeros and others end in turn, and the
    number of numbers.
    """
    places, edges = [], []
    lengths, count = numbers.data, len(numbers)  # a memoryview gives integers faster than an array
    done = place = 0
    while done < pixels:
        zeros, others = (lengths[place], lengths[place + 1]) if place + 2 <= count else (0, 0)
        first = done + zeros
        if zeros + others == 0 or place + 2 + others > count:  # zeros fill the last word
            raise ValueError(f"RVL: expected {pixels} pixels, got data that ends after {first}")
        done = first + others
        if done > pixels:
            raise ValueError(f"RVL: expected {pixels} pixels, got a run up to pixel {done}")
        places.append(place)
        edges += [first, done]
        place += 2 + others
    return np.array(places), np.array(edges), place


def _numbers(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """All whole numbers in the data, (N,) int32, and the nibble at which each ends, (N,) int64."""
    halves = np.frombuffer(data, "<u4").astype(">u4").view(np.uint8)
    nibbles = np.stack([halves >> 4, halves & 15], axis=1).reshape(-1)
    ends = np.flatnonzero(nibbles < 8)
    lengths = np.diff(ends, prepend=-1)
    longest = int(lengths.max(initial=0))
    if longest > _LONGEST:
        raise ValueError(f"RVL: expected numbers of at most {_LONGEST} nibbles, got one of {longest}")
    numbers = nibbles[ends].astype(np.int32)
    longer = np.arange(ends.size)
    for back in range(1, longest):  # from the highest bits down
        longer = longer[lengths[longer] > back]
        numbers[longer] = numbers[longer] << 3 | nibbles[ends[longer] - back] & 7
    return numbers, ends
