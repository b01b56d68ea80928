"""Gaps between published masks while the real node grounds questions, and while it does not.

    scripts/with_env.sh python benchmarks/gaps.py --questions 24

A camera at 10 Hz, the simulated table's models, one question after the other. For each question: the largest gap
between two masks from its coming to its answer and the next mask, and the largest one in the two seconds before it. The
last line is JSON, in seconds; the first question also warms the models up.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time

import numpy as np
from live_node import HZ, QUERIES, Robot, running_node, wait_for

from decaf_ros.types import QueryState

QUIET_S = 2.0


def largest_gap(robot: Robot, from_s: float, until_s: float) -> float:
    """Seconds between two masks one after the other, of which the second came within this time."""
    masks = np.array(robot.masks)
    gaps = np.diff(masks)[(masks[1:] >= from_s) & (masks[1:] <= until_s)]
    if not len(gaps):
        raise RuntimeError(f"expected masks at {HZ} Hz, got none for {until_s - from_s:.1f} s")
    return float(gaps.max())


def measure(robot: Robot, questions: int) -> dict[str, object]:
    """Asks so many questions one after the other."""
    seconds, busy, quiet, targets = [], [], [], []
    for text in itertools.islice(itertools.cycle(QUERIES), questions):
        time.sleep(QUIET_S + 0.5)
        asked_s = time.monotonic()
        answered_s, state, count = robot.ask(text)
        if state not in (QueryState.TRACKING, QueryState.NOT_FOUND):
            raise RuntimeError(f"{text!r}: expected an answer, got {state.name}")
        wait_for(lambda answered_s=answered_s: robot.masks[-1] > answered_s, "a mask after the answer")
        seconds.append(answered_s - asked_s)
        targets.append(count)
        busy.append(largest_gap(robot, asked_s, robot.masks[-1]))
        quiet.append(largest_gap(robot, asked_s - QUIET_S, asked_s))

    def figures(values: list[float]) -> dict[str, object]:
        each = [round(value, 3) for value in values]
        return {"median": round(statistics.median(values), 3), "most": max(each), "each": each}

    return {
        "questions": questions,
        "targets": targets,
        "answer_s": figures(seconds),
        "gap_s": figures(busy),
        "quiet_gap_s": figures(quiet),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--ahead-share", type=float, default=-1.0, help="engine.ahead_share (%(default)s)")
    arguments = parser.parse_args()
    settings = {"engine": {"ahead_share": arguments.ahead_share}, "regrounding": {"policy": "off"}}
    with running_node(settings) as (robot, _):
        print(json.dumps({"ahead_share": arguments.ahead_share, **measure(robot, arguments.questions)}))


if __name__ == "__main__":
    main()
