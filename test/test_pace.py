"""Units of work by measured time."""

from __future__ import annotations

import pytest
import torch

from decaf_ros.grounding import pace
from decaf_ros.grounding.pace import STEP_TOKENS, Pace


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: now[0])
    return now


def work(paced: Pace, clock: list[float], tokens: int, seconds: float, kind: str = "prefix") -> None:
    with paced.measured(kind, tokens):
        clock[0] += seconds


def test_without_a_bound_all_is_one_unit(clock):
    free = Pace(torch.device("cpu"))
    assert free.size("prefix", 100_000) == 100_000
    work(free, clock, 100, 1.0)
    assert free.size("prefix", 100_000) == 100_000


def test_units_follow_what_earlier_ones_took(clock):
    paced = Pace(torch.device("cpu"), unit_ms=50)
    assert paced.size("prefix", 5000) == STEP_TOKENS  # to measure
    assert paced.size("prefix", 10) == 10
    work(paced, clock, STEP_TOKENS, 0.0064)  # 0.1 ms per token
    assert paced.size("prefix", 5000) == 448  # the largest multiple of 64 in 500
    assert paced.size("vision", 5000) == STEP_TOKENS, "another kind of work"
    work(paced, clock, 448, 0.1344)  # 0.3 ms per token
    assert paced.size("prefix", 5000) == 192  # of 250, at the mean of both
    assert paced.size("prefix", 100) == 100
    for _ in range(10):
        work(paced, clock, STEP_TOKENS, 6.4)
    assert paced.size("prefix", 5000) == STEP_TOKENS, "never less"


def test_a_failed_unit_is_not_measured(clock):
    paced = Pace(torch.device("cpu"), unit_ms=50)
    with pytest.raises(RuntimeError), paced.measured("prefix", 1):
        raise RuntimeError("out of memory")
    assert paced.size("prefix", 5000) == STEP_TOKENS and not paced._seconds_per_token
