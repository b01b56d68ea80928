"""Stamps that do not tell the time: never set, frozen, jumping, out of order; in bags, live and in replays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recordings import FRAMES, START_NS, STEP_NS, place_of, write_bag

from decaf_ros.cli.clips import ClipSource
from decaf_ros.io.bags import BagReader
from decaf_ros.io.stamps import StreamStamps, settled_stamps

TIMES = [START_NS + place * STEP_NS for place in range(FRAMES)]
FAR_NS = 2_100_000_000_000_000_000  # 2036


def clock_that_jumps(period: int, by_ns: int = 4 * 10**9) -> list[int]:
    """Jumps back and forth after each `period` images."""
    return [time - by_ns * (place // period % 2) for place, time in enumerate(TIMES)]


USELESS = {
    "never set": ([0] * FRAMES, "stamps of all 30 images are not set"),
    "negative": ([-(10**9)] * FRAMES, "stamps of all 30 images are not set"),
    "constant": ([START_NS - 10**12] * FRAMES, "do not move"),
    "frozen after a good start": (TIMES[:12] + [TIMES[11]] * (FRAMES - 12), "do not move"),
    "frozen in the middle": (TIMES[:12] + [TIMES[11]] * 6 + TIMES[18:], "do not move"),
    "jumps each half second": (clock_that_jumps(5), "jump back"),
    "jumps with each image": (clock_that_jumps(1), "jump back"),
    "jumps far ahead and back": (
        [FAR_NS + place if place % 7 == 3 else time for place, time in enumerate(TIMES)],
        "jump",
    ),
    "one step back of the clock": ([time - 4 * 10**9 * (place > 14) for place, time in enumerate(TIMES)], "jump back"),
    "one short step back": ([time - 2 * 10**9 * (place > 14) for place, time in enumerate(TIMES)], "jump back"),
    "one step back and forth": ([t - 2 * 10**9 * (9 < place < 20) for place, t in enumerate(TIMES)], "jump back"),
}


@pytest.mark.parametrize("name", USELESS)
def test_recorded_times_replace_useless_stamps(tmp_path, name):
    stamps, text = USELESS[name]
    source = ClipSource(write_bag(tmp_path / "bag", stamps=stamps))
    frames = source.load()
    assert [frame.stamp_ns for frame in frames] == TIMES
    assert [place_of(frame.image) for frame in frames] == [frame.index for frame in frames] == list(range(FRAMES))
    (said,) = source.problems.texts
    assert text in said and "the recorded times are used" in said


def test_single_stamps_that_are_not_set_are_filled(tmp_path):
    """The camera's clock is another one, and each image is recorded a little later."""
    times = [time + 10**15 for time in TIMES]
    source = ClipSource(write_bag(tmp_path / "bag", stamps=[time * (place % 2) for place, time in enumerate(times)]))
    assert [frame.stamp_ns for frame in source.load()] == times
    assert "the stamps of 15 images are not set" in source.problems.texts[0]


@pytest.mark.parametrize("stamps", [TIMES, [FAR_NS + place * STEP_NS for place in range(FRAMES)]])
def test_good_stamps_stay(tmp_path, stamps):
    """Also those of the far future."""
    source = ClipSource(write_bag(tmp_path / "bag", stamps=stamps))
    assert [frame.stamp_ns for frame in source.load()] == stamps and source.problems.texts == []
    assert [frame.stamp_ns for frame in source.read()] == stamps and source.problems.texts == []


def test_a_recording_in_any_order_is_sorted(tmp_path):
    """Two halves that were joined in the wrong order, all backwards, and shuffled: not a clock that jumps."""
    shuffled = np.random.default_rng(0).permutation(FRAMES).tolist()
    for number, order in enumerate(([*range(15, FRAMES), *range(15)], [*reversed(range(FRAMES))], shuffled)):
        bag = write_bag(tmp_path / str(number), indices=order, stamps=[TIMES[index] for index in order])
        source = ClipSource(bag)
        assert [place_of(frame.image) for frame in source.load()] == list(range(FRAMES))
        assert "sorted by their stamps" in source.problems.texts[0]


def test_a_clock_that_jumps_rarely_in_a_long_recording():
    recorded = [START_NS + place * STEP_NS for place in range(300)]
    for period in (7, 10, 40, 60, 100):
        headers = [time - 4 * 10**9 * (place // period % 2) for place, time in enumerate(recorded)]
        assert settled_stamps(headers, recorded)[0] == recorded, period


@pytest.mark.parametrize("images", [4, 8, 40])
def test_a_clock_that_jumps_back_once_for_a_moment(images):
    """The recording is as long as its stamps say, and the gap is short; but images crowd at another time."""
    recorded = [START_NS + place * STEP_NS for place in range(300)]
    for by_ns in (4 * 10**9, 4 * 10**9 + STEP_NS // 2):
        headers = [time - by_ns * (100 <= place < 100 + images) for place, time in enumerate(recorded)]
        assert settled_stamps(headers, recorded)[0] == recorded


def test_a_message_that_came_much_later_is_sorted():
    """Also if the camera's rate varies."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        times = START_NS + np.cumsum(rng.integers(STEP_NS // 4, 2 * STEP_NS, 300))
        order = [*range(100), *range(101, 140), 100, *range(140, 300)]
        headers = times[order].tolist()
        assert settled_stamps(headers, times.tolist()) == (headers, ""), seed


@pytest.mark.parametrize("disorder", [[1, 0], [2, 0, 1], [4, 3, 2, 1, 0]])
def test_messages_out_of_order_are_sorted(tmp_path, disorder):
    order = [start + place for start in range(0, FRAMES, len(disorder)) for place in disorder if start + place < FRAMES]
    source = ClipSource(write_bag(tmp_path / "bag", indices=order, stamps=[TIMES[index] for index in order]))
    frames = source.load()
    assert [frame.stamp_ns for frame in frames] == TIMES
    assert [place_of(frame.image) for frame in frames] == [frame.index for frame in frames] == list(range(FRAMES))
    assert "out of order" in source.problems.texts[0] and "sorted" in source.problems.texts[0]
    part = ClipSource(source.path, start_s=0.0, duration_s=1.0).load()
    assert 9 <= len(part) <= 14 and part == sorted(part, key=lambda frame: frame.stamp_ns)


def test_an_image_that_was_delivered_twice(tmp_path):
    stamps = [TIMES[place - (place % 5 == 4)] for place in range(FRAMES)]
    source = ClipSource(write_bag(tmp_path / "bag", stamps=stamps))
    frames = source.load()
    assert len(frames) == FRAMES and (np.diff([frame.stamp_ns for frame in frames]) > 0).all()
    assert "6 images have the stamp of the one before" in source.problems.texts[0]


def test_times_that_move_nowhere_are_refused():
    assert settled_stamps([5, 5, 5], [9, 9, 9])[0] == [5, 5, 5]


def stream(headers: list[int], arrivals: list[int]) -> tuple[list[int], list[str]]:
    said: list[str] = []
    stamps = StreamStamps(said.append)
    return [stamps.settled(header, arrival) for header, arrival in zip(headers, arrivals)], said


@pytest.mark.parametrize("name", USELESS)
def test_a_stream_goes_on_with_the_arrival(name):
    arrivals = [time + 7_000_000 for time in TIMES]
    settled, said = stream(USELESS[name][0], arrivals)
    if name.startswith("one "):  # as a bag that is played in a loop: the stream restarts
        assert said == []
        return
    assert len(said) == 1 and "times of arrival are used instead" in said[0]
    steps = np.diff(settled[22:])
    assert (steps == STEP_NS).all()
    if name in ("never set", "negative"):
        assert settled == arrivals


def test_a_stream_of_half_set_stamps_is_continuous():
    settled, said = stream([time * (place % 2) for place, time in enumerate(TIMES)], [time + 10**6 for time in TIMES])
    assert len(said) == 1 and np.abs(np.diff(settled) - STEP_NS).max() <= 10**6


def test_a_simulation_may_begin_at_zero():
    times = [place * STEP_NS for place in range(FRAMES)]
    settled, said = stream(times, [time + 5 for time in times])
    assert said == [] and settled[1:] == times[1:]


def test_single_repeats_late_images_and_a_loop_are_no_problem():
    times = TIMES[:10] + [TIMES[9]] + TIMES[10:15] + [TIMES[13]] + TIMES[15:]
    arrivals = [START_NS + place * STEP_NS for place in range(2 * len(times) + 200)]
    assert stream(times, arrivals) == (times, [])
    loop = times + times
    assert stream(loop, arrivals) == (loop, [])


def test_an_arrival_that_stands_still_proves_nothing():
    assert stream([5] * 10, [9] * 10) == ([5] * 10, [])


def test_online_frames_of_a_bag_have_moving_stamps(tmp_path):
    bag = write_bag(tmp_path / "bag", stamps=[0] * FRAMES)
    source = ClipSource(bag)
    assert [frame.stamp_ns for frame in source.read()] == TIMES
    assert source.problems.texts == [f"{bag}: image stamps are not set (0 ns): times of arrival are used instead"]
    said: list[str] = []
    with BagReader(bag, said.append) as reader:
        assert [frame.stamp_ns for frame in reader.frames()] == TIMES and len(said) == 1


def test_a_video_begins_at_zero(tmp_path):
    from decaf_ros.io.film import VideoWriter

    with VideoWriter(Path(tmp_path, "clip.webm")) as video:
        for _ in range(4):
            video.write(np.zeros((48, 64, 3), np.uint8), 0)
    source = ClipSource(tmp_path / "clip.webm")
    assert [frame.stamp_ns for frame in source.load()] == [0, 10**9, 2 * 10**9, 3 * 10**9]
    assert source.problems.texts == []
