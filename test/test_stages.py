from __future__ import annotations

import time

import pytest

from decaf_ros.stages import StageClock, finish


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


def test_time_between_two_units_is_not_counted():
    def work():
        time.sleep(0.02)
        yield
        time.sleep(0.02)
        return "result"

    clock = StageClock(("look", "cut"))
    task = clock.run("look", work())
    next(task)
    time.sleep(0.1)
    with pytest.raises(StopIteration) as end:
        next(task)
    ((_, look_ms),) = clock.stage_ms
    assert end.value.value == "result" and 40 <= look_ms < 100


def test_an_abandoned_stage_abandons_its_work():
    closed = []

    def work():
        try:
            yield
        finally:
            closed.append(True)

    clock = StageClock(("look",))
    task = clock.run("look", work())
    next(task)
    task.close()
    assert closed and clock.stage_ms[0][0] == "look"


def test_finish_runs_to_the_end():
    seen = []

    def work():
        for number in range(3):
            seen.append(number)
            yield
        return len(seen)

    assert finish(work()) == 3 and seen == [0, 1, 2]


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="expected one of look, got 'cut'"):
        StageClock(("look",)).start("cut")
