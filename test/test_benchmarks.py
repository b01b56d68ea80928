"""The JSON in the benchmarks' last line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RATIOS = (
    "rollout_speedup_1700",
    "rollout_speedup_3300",
    "rollout_memory_ratio_1700",
    "rollout_memory_ratio_3300",
    "window_cold_speedup",
    "window_warm_speedup",
    "segment_cold_speedup",
    "second_query_ratio",
    "points64_speedup",
    "propagation4_speedup",
)

pytestmark = pytest.mark.slow


def last_line(script: str, *arguments: str) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(run.stdout.splitlines()[-1])


def test_quick_run_has_equal_results_and_all_ratios():
    found = last_line("run.py", "--quick")
    assert found["quick"] and found["wrong"] == []
    assert all(found[name] > 0 for name in RATIOS)
    assert found["bfloat16_ms"] > 0 and 0.99 < found["bfloat16_correlation"] <= 1


def test_resident_memory_is_flat_over_1000_windows():
    found = last_line("window_memory.py", "--windows", "1000")
    assert found["windows"] == 1000 and abs(found["change"]) < 0.02
    assert 0 < found["prefixes_mib"] <= 8 and 0 < found["features_mib"] <= 1 and 0 < found["looks_mib"] <= 1


def test_the_speed_of_j_and_f():
    found = last_line("metrics.py", "--frames", "20", "--cell", "4")
    assert found["j_frames_per_minute"] > 0 and found["f_frames_per_minute"] > 0
    assert 0.5 < found["mean_j"] < 1 and 0.5 < found["mean_f"] < 1, "pairs that are similar, but not equal"
