from __future__ import annotations

import time

import pytest

from decaf_ros.stages import StageClock


def test_fractions_and_times():
    seen = []
    clock = StageClock(("look", "cut"), lambda stage, fraction: seen.append((stage, fraction)))
    clock.start("look")
    time.sleep(0.02)
    clock.start("look")
    clock.start("cut")
    clock.pause()
    assert seen == [("look", 0.0), ("look", 0.0), ("cut", 0.5)]
    (look, look_ms), (cut, _) = clock.stage_ms
    assert (look, cut) == ("look", "cut") and look_ms >= 20


def test_time_in_the_callback_is_not_counted():
    clock = StageClock(("look",), lambda *_: time.sleep(0.05))
    clock.start("look")
    clock.pause()
    assert clock.stage_ms[0][1] < 40


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="expected one of look, got 'cut'"):
        StageClock(("look",)).start("cut")
