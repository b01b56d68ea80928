from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scripted import frame

from decaf_ros.online.anchors import anchored, choose_anchors
from decaf_ros.types import Window

FRAMES = [frame(number) for number in range(12)]


def _window(*numbers: int) -> Window:
    return Window(tuple(FRAMES[number] for number in numbers))


def _numbers(frames) -> list[int]:
    return [frame.index for frame in frames]


def _found(sources, peaks):
    """An answer over key frames 0, 1, ...: source key frames of its tracklets, maximum of each key frame's map."""
    fused = np.zeros((len(peaks), 2, 3), np.float32)
    fused[:, 1, 2] = peaks
    maps = SimpleNamespace(maps=SimpleNamespace(fused=fused))
    return SimpleNamespace(
        window=_window(*range(len(peaks))),
        selected=[SimpleNamespace(source=source) for source in sources],
        grounding=maps,
    )


@pytest.mark.parametrize(
    ("sources", "count", "chosen"),
    [
        ([5], 4, [1, 2, 4, 5]),  # the source and the three strongest
        ([5, 0, 3], 4, [0, 1, 2, 5]),  # at most half of the places for sources, the best first
        ([2, 2], 2, [1, 2]),
        ([5], 1, [5]),
        ([5], 0, []),
        ([5], 99, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_sources_and_the_strongest_key_frames_are_chosen(sources, count, chosen):
    assert _numbers(choose_anchors(_found(sources, [0.1, 0.9, 0.8, 0.2, 0.7, 0.3]), count)) == chosen


@pytest.mark.parametrize(
    ("anchors", "least", "expected"),
    [
        ([], 2, [4, 6, 8, 10]),
        ([3, 1], 2, [1, 3, 8, 10]),
        ([3, 1, 2], 2, [2, 3, 8, 10]),  # the oldest is left out
        ([1, 1, 6], 1, [1, 6, 8, 10]),  # one is in the window already
        ([11], 2, [6, 8, 10]),  # later than the window: no key frame of its past
        ([1], 4, [4, 6, 8, 10]),
    ],
)
def test_anchors_replace_the_oldest_key_frames(anchors, least, expected):
    window = anchored(_window(4, 6, 8, 10), [FRAMES[number] for number in anchors], least)
    assert _numbers(window.frames) == expected


def test_anchors_of_another_size_are_left_out():
    other = frame(1, size_hw=(30, 40))
    assert _numbers(anchored(_window(4, 6), [other], 1).frames) == [4, 6]
