"""Catch-up: thinning, groups by source frame, frames that arrive meanwhile, sources that have left the buffer."""

from __future__ import annotations

import numpy as np
import pytest
from scripted import World, WorldTracker, frame, settings

from decaf_ros.online.catch_up import catch_up, thin
from decaf_ros.online.tracks import Candidate
from decaf_ros.online.window import FrameBuffer
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Tracklet, TrackletScores, Window

WORLD = World(a=lambda time_s: (round((time_s - 100) * 4), 0), b=lambda time_s: (16, round((time_s - 100) * 2)))


class Stepwise(WorldTracker):
    """Logs the frame indices of each `step` and `add`."""

    def __init__(self, sam2: World) -> None:
        super().__init__(sam2)
        self.log: list[tuple[str, int]] = []

    def add(self, ids, where, masks):
        self.log.append(("add", where.index))
        return super().add(ids, where, masks)

    def step(self, where):
        self.log.append(("step", where.index))
        return super().step(where)

    @property
    def steps(self) -> list[int]:
        return [index for kind, index in self.log if kind == "step"]


def _stream(count: int, **changes) -> tuple[FrameBuffer, list]:
    buffer, frames = FrameBuffer(), [frame(number) for number in range(count)]
    for pushed in frames:
        buffer.push(pushed, settings(**changes).window)
    return buffer, frames


def _candidate(key: int, name: str, window: Window, source: int) -> Candidate:
    masks = np.stack([WORLD.mask(name, key_frame) for key_frame in window.frames])
    scores = TrackletScores(0.9, 0.9, 0.9, 0.9)
    return Candidate(key, Tracklet(masks, source, (0.5, 0.5), scores, 1.0, 3.0), window.frames)


def _run(tracker, candidates, window, buffer, compared=(), pause=lambda: None, **changes):
    for _ in catch_up(tracker, candidates, window, buffer, settings(**changes).tracking, lambda: compared):
        pause()


@pytest.mark.parametrize("count", [1, 2, 7, 64, 65, 129, 600])
@pytest.mark.parametrize("max_count", [1, 3, 64])
def test_thin_is_even_and_keeps_order_and_the_newest(count, max_count):
    numbers = thin(list(range(count)), max_count)
    assert len(numbers) == min(count, max_count)
    assert numbers[-1] == count - 1
    gaps = np.diff([-1, *numbers])
    assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


def test_thin_nothing():
    assert thin([], 5) == []


def test_objects_start_at_their_source_and_reach_the_newest_frame():
    buffer, frames = _stream(13)
    window = buffer.window()
    assert [key_frame.index for key_frame in window.frames] == [0, 5, 10]
    tracker = Stepwise(WORLD)
    candidates = [_candidate(0, "a", window, 2), _candidate(1, "b", window, 1)]
    _run(tracker, candidates, window, buffer, compared=[frames[12]])
    assert tracker.log == [
        ("add", 5),
        *[("step", number) for number in (6, 7, 8, 9, 10)],
        ("add", 10),
        ("step", 11),
        ("step", 12),
    ]
    assert tracker.ids == (1, 0)
    for candidate, name in zip(candidates, "ab"):
        assert candidate.seen_frame is frames[12]
        np.testing.assert_array_equal(candidate.masks[frames[12]], WORLD.mask(name, frames[12]))
        assert set(candidate.masks) == {*window.frames, frames[12]}


def test_at_most_catch_up_frames_plus_the_comparison_frames():
    buffer, frames = _stream(41)
    window = Window((frames[0],))
    tracker = Stepwise(WORLD)
    candidate = _candidate(0, "a", window, 0)
    _run(tracker, [candidate], window, buffer, compared=[frames[7]], tracking__catch_up_frames=4)
    assert tracker.steps == [7, 10, 20, 30, 40]
    assert set(candidate.masks) == {frames[0], frames[7]}


def test_a_source_on_the_newest_frame_needs_no_step():
    buffer, frames = _stream(6)
    window = buffer.window()
    tracker = Stepwise(WORLD)
    candidate = _candidate(0, "a", window, 1)
    _run(tracker, [candidate], window, buffer)
    assert tracker.log == [("add", 5)]
    assert candidate.masks.keys() == {frames[0], frames[5]}


def test_key_frames_that_left_the_buffer_are_stepped_through():
    buffer, _ = _stream(24, window__buffer_frames=3)
    window = buffer.window()
    assert [key_frame.index for key_frame in window.frames] == [0, 5, 10, 15, 20]
    tracker = Stepwise(WORLD)
    _run(tracker, [_candidate(0, "a", window, 1), _candidate(1, "b", window, 3)], window, buffer)
    assert tracker.log == [
        ("add", 5),
        ("step", 10),
        ("step", 15),
        ("add", 15),
        ("step", 20),
        ("step", 21),
        ("step", 22),
        ("step", 23),
    ]


def test_frames_that_arrive_meanwhile_are_caught_up_with():
    buffer, frames = _stream(9)
    window = Window((frames[0],))
    tracker = Stepwise(WORLD)
    arriving = iter(range(9, 12))

    def pause():
        for number in arriving:
            buffer.push(frame(number), settings().window)
            break

    _run(tracker, [_candidate(0, "a", window, 0)], window, buffer, pause=pause)
    assert tracker.steps == [*range(1, 12)]  # one frame arrives in each of the first three pauses


def test_the_catch_up_ends_even_if_the_stream_is_faster():
    buffer, frames = _stream(9)
    window = Window((frames[0],))
    tracker = Stepwise(WORLD)
    numbers = iter(range(9, 10_000))

    def pause():
        for _ in range(20):
            buffer.push(frame(next(numbers)), settings().window)

    _run(tracker, [_candidate(0, "a", window, 0)], window, buffer, pause=pause)
    assert tracker.steps[-1] == buffer.newest.index
    assert len(tracker.steps) == 28 + 32 + 16 + 8 + 4 + 2 + 1 + 1, "half as many in each round"


def test_a_hidden_object_keeps_its_last_seen_mask():
    world = World(a=lambda time_s: (0, 0) if time_s < 100.35 else None)
    buffer, frames = _stream(8)
    window = Window((frames[0],))
    masks = np.stack([world.mask("a", frames[0])])
    candidate = Candidate(
        0, Tracklet(masks, 0, (0.5, 0.5), TrackletScores(0.9, 0.9, 0.9, 0.9), 1.0, 3.0), window.frames
    )
    _run(WorldTracker(world), [candidate], window, buffer, compared=[frames[2], frames[7]])
    assert candidate.seen_frame is frames[3]
    assert set(candidate.masks) == {frames[0], frames[2]}


def test_five_masks_that_agree_outvote_an_inexact_source():
    buffer, frames = _stream(8)
    config = settings(tracking__appearance_margin=0.1).tracking
    candidate = _candidate(0, "a", buffer.window(), 0)
    leaked, exact = np.array([1, 0], np.float32), np.array([0.95, 0.312], np.float32)
    mask = candidate.seen_mask
    assert candidate.see(frames[0], TrackStep(mask, 1.0, leaked), config)
    seen = [candidate.see(where, TrackStep(mask, 1.0, exact), config) for where in frames[1:]]
    assert seen == [False] * 4 + [True] * 3 and candidate.sure_frame is frames[7]
    assert candidate.appearance.is_doubtful(leaked, config)
