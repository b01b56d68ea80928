"""Which depth image belongs to a frame."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from decaf_ros.online.depth_matching import DepthMatcher

MS = 1_000_000


def depth(at_ms: int) -> SimpleNamespace:
    """A message with the stamp; the matcher looks at nothing else."""
    return SimpleNamespace(header=SimpleNamespace(stamp=SimpleNamespace(sec=at_ms // 1000, nanosec=at_ms % 1000 * MS)))


def filled(matcher: DepthMatcher, *times_ms: int) -> dict[int, SimpleNamespace]:
    messages = {at_ms: depth(at_ms) for at_ms in times_ms}
    for message in messages.values():
        matcher.put(message)
    return messages


@pytest.mark.parametrize("before", [True, False])
def test_the_exact_stamp_comes_first(before):
    matcher = DepthMatcher()
    sent = filled(matcher, 90, 100) if before else {}
    search = matcher.seek(100 * MS)
    assert search.settled == before
    sent |= filled(matcher, *([101] if before else [90, 100, 101]))
    assert search.settled and search.found(0.0) is sent[100]


def test_the_nearest_within_the_slop_is_used_once_a_later_one_has_come():
    matcher = DepthMatcher()
    search = matcher.seek(100 * MS)
    sent = filled(matcher, 60, 90)
    assert not search.settled and search.found(0.01) is sent[90]
    sent |= filled(matcher, 108)
    assert search.settled and search.found(0.01) is sent[108]
    assert search.found(0.007) is None and search.distance_ns == 8 * MS


def test_without_depth_nothing_is_found():
    search = DepthMatcher().seek(100 * MS)
    assert not search.settled and search.found(10.0) is None


def test_an_ended_search_takes_nothing_more():
    matcher = DepthMatcher()
    search = matcher.seek(100 * MS)
    matcher.end(search)
    filled(matcher, 100)
    assert search.nearest is None


def test_the_depth_of_a_slow_frame_is_kept_while_many_others_come():
    matcher = DepthMatcher()
    search = matcher.seek(100 * MS)
    sent = filled(matcher, *range(100, 5000, 33))
    assert search.found(0.0) is sent[100]
    assert matcher.seek(200 * MS).found(0.05) is None  # the newest are kept only


def test_all_depth_is_kept_for_frames_in_a_queue_and_dropped_behind_them():
    matcher = DepthMatcher(keep_all=True)
    sent = filled(matcher, *range(0, 5000, 25))
    for at_ms in range(0, 5000, 100):
        search = matcher.seek(at_ms * MS)
        assert search.found(0.0) is sent[at_ms]
        matcher.end(search)
    assert matcher.seek(0).found(0.0) is None


@pytest.mark.parametrize("keep_all", [True, False])
def test_time_may_jump_back(keep_all):
    matcher = DepthMatcher(keep_all)
    filled(matcher, 10000, 10033)
    matcher.end(matcher.seek(10033 * MS))
    search = matcher.seek(100 * MS)
    assert not search.settled
    sent = filled(matcher, 100)
    assert search.settled and search.found(0.0) is sent[100]
