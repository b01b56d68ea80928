"""Frame buffer: bounds and the key-frame clock."""

from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import WindowConfig
from decaf_ros.online.window import FrameBuffer
from decaf_ros.types import Frame


def _frame(stamp_s: float, size_hw: tuple[int, int] = (4, 6)) -> Frame:
    return Frame(np.zeros((*size_hw, 3), np.uint8), round(stamp_s * 1e9))


def _key_stamps(stamps_s: list[float], **config) -> list[float]:
    buffer = FrameBuffer()
    return [stamp for stamp in stamps_s if buffer.push(_frame(stamp), WindowConfig(**config))]


def test_key_frames_keep_the_phase_of_the_clock():
    # 30 Hz with jitter: the first frame at or after each half second, without drift.
    jitter = np.random.default_rng(0).uniform(0, 0.02, 300)
    stamps = [10 + number / 30 + jitter[number] * (number > 0) for number in range(300)]
    keys = _key_stamps(stamps, keyframe_period_s=0.5)
    assert keys == [next(stamp for stamp in stamps if stamp >= round(10 + tick * 0.5, 9)) for tick in range(len(keys))]
    assert len(keys) == 20


def test_a_gap_restarts_the_clock():
    assert _key_stamps([0.0, 0.5, 0.7, 2.3, 2.5, 2.8, 3.3], keyframe_period_s=0.5) == [0.0, 0.5, 2.3, 2.8, 3.3]


def test_a_delay_below_a_period_keeps_the_phase():
    assert _key_stamps([0.0, 0.9, 1.0, 1.5], keyframe_period_s=0.5) == [0.0, 0.9, 1.0, 1.5]


def test_equal_stamps_are_never_key_frames():
    assert _key_stamps([1.0, 1.0, 1.1, 1.1], keyframe_period_s=0.0) == [1.0, 1.1]
    buffer = FrameBuffer()
    assert [buffer.push(_frame(0.0), WindowConfig()) for _ in range(3)] == [True, False, False]
    assert (len(buffer), buffer.keyframe_count) == (3, 1)


def test_period_may_change_while_running():
    buffer = FrameBuffer()
    slow, fast = WindowConfig(keyframe_period_s=1.0), WindowConfig(keyframe_period_s=0.2)
    assert buffer.push(_frame(0.0), slow)
    assert not buffer.push(_frame(0.3), slow)
    assert buffer.push(_frame(0.4), fast)


def test_the_window_has_the_last_key_frames():
    buffer = FrameBuffer()
    with pytest.raises(ValueError, match="at least one frame"):
        buffer.window()
    for number in range(8):
        buffer.push(_frame(number / 2), WindowConfig(size=3, keyframe_period_s=1.0, min_frames=1))
    assert [frame.stamp_ns / 1e9 for frame in buffer.window().frames] == [1.0, 2.0, 3.0]


def test_bounded_in_frames_but_key_frames_stay():
    buffer = FrameBuffer()
    for number in range(40):
        buffer.push(_frame(number / 10), WindowConfig(size=4, buffer_frames=5, keyframe_period_s=1.0))
    assert len(buffer) == 5
    assert [frame.stamp_ns for frame in buffer.after(_frame(0))] == [round(number * 1e8) for number in range(35, 40)]
    assert [frame.stamp_ns / 1e9 for frame in buffer.window().frames] == [0.0, 1.0, 2.0, 3.0]


def test_bounded_in_bytes_but_the_newest_stays():
    buffer = FrameBuffer()
    half_mib = (512, 341)  # 523,776 bytes
    for number in range(5):
        buffer.push(_frame(number, half_mib), WindowConfig(buffer_mib=1.5, min_frames=1))
    assert (len(buffer), buffer.nbytes) == (3, 3 * 523_776)
    large = FrameBuffer()
    for number in range(2):
        large.push(_frame(number, (1024, 1024)), WindowConfig(buffer_mib=1.0))
    assert len(large) == 1 and large.newest.stamp_ns == 1_000_000_000


def test_key_frames_count_against_the_bytes():
    half_mib, buffer = (512, 341), FrameBuffer()
    for number in range(40):
        buffer.push(_frame(number / 10, half_mib), WindowConfig(buffer_mib=3.5, size=4, min_frames=2))
    # Four key frames, and the newest frames that still fit.
    assert (buffer.keyframe_count, len(buffer)) == (4, 3)
    for number in range(40, 80):
        buffer.push(_frame(number / 10, half_mib), WindowConfig(buffer_mib=1.0, size=4, min_frames=2))
    assert (buffer.keyframe_count, len(buffer)) == (2, 1)


def test_frames_after():
    buffer, frames = FrameBuffer(), [_frame(1.0) for _ in range(4)]
    for frame in frames:
        buffer.push(frame, WindowConfig())
    assert buffer.after(frames[1]) == frames[2:]
    assert buffer.after(frames[3]) == []


def test_a_broken_stream_raises_with_the_reason():
    buffer = FrameBuffer()
    assert buffer.break_before(_frame(5.0), WindowConfig()) == ""
    buffer.push(_frame(5.0), WindowConfig())
    with pytest.raises(ValueError, match="image size changed from 6x4 to 9x8"):
        buffer.push(_frame(6.0, (8, 9)), WindowConfig())
    with pytest.raises(ValueError, match="jumped back by 0.500 s"):
        buffer.push(_frame(4.5), WindowConfig())
    buffer.clear()
    assert buffer.push(_frame(4.5, (8, 9)), WindowConfig())
    assert buffer.nbytes == 8 * 9 * 3


def test_a_late_frame_is_accepted_but_is_no_key_frame():
    buffer, config = FrameBuffer(), WindowConfig(keyframe_period_s=0.1, jump_back_s=0.2)
    assert [buffer.push(_frame(stamp), config) for stamp in (5.0, 5.2, 5.1, 5.3)] == [True, True, False, True]
    assert len(buffer) == 4 and buffer.keyframe_count == 3
    with pytest.raises(ValueError, match="jumped back by 0.200 s"):
        buffer.push(_frame(5.1), config)
