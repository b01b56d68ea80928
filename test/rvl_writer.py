"""Writes RVL number by number, as the format is described in `decaf_ros/space/rvl.py`."""

from __future__ import annotations

import struct


def encode_rvl(values: list[int]) -> bytes:
    """The code of values, each 0 to 65535."""
    nibbles: list[int] = []

    def put(number: int) -> None:
        while True:
            low, number = number & 7, number >> 3
            nibbles.append(low | (8 if number else 0))
            if not number:
                return

    place = previous = 0
    while place < len(values):
        zeros = next((n for n, value in enumerate(values[place:]) if value), len(values) - place)
        put(zeros)
        place += zeros
        others = next((n for n, value in enumerate(values[place:]) if not value), len(values) - place)
        put(others)
        for value in values[place : place + others]:
            difference = value - previous
            put(2 * difference if difference >= 0 else -2 * difference - 1)
            previous = value
        place += others
    nibbles += [0] * (-len(nibbles) % 8)
    words = [int("".join(f"{nibble:x}" for nibble in nibbles[i : i + 8]), 16) for i in range(0, len(nibbles), 8)]
    return struct.pack(f"<{len(words)}I", *words)
