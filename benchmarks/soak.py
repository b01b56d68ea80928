"""Does the real node stay as it is? A looped camera, a question every few seconds, for minutes or days.

    scripts/with_env.sh python benchmarks/soak.py --minutes 10 --page soak.html

Every few seconds: resident memory, threads and open files of the node's process. The last line is JSON. Exit status 1
if memory grows by more than 1 % from the second quarter of the time to the last, if threads or open files grow, if a
target's id is used for the answers of two questions in mode replace, or if a question has no answer, or two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from live_node import QUERIES, Robot, running_node

from decaf_ros.pages.charts import line_chart
from decaf_ros.pages.html import document, heading, table

SAMPLE_S = 2.0
MAX_GROWTH = 0.01
# Other texts beside the table's: never there, empty, long, odd characters.
ODD = ("the green mug", "", "x" * 900, "the mug \u202e\U0001f600 left of the cone", "  ")


class Sample(NamedTuple):
    """at_s: since the start."""

    at_s: float
    mib: float
    threads: int
    files: int


def sample(pid: int, at_s: float) -> Sample:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Sample(at_s, int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), files)


def soak(robot: Robot, pid: int, minutes: float, every_s: float) -> tuple[list[Sample], int]:
    """Samples, and the number of questions asked: the last ones are given time for their answers."""
    chance, start_s = random.Random(0), time.monotonic()
    samples: list[Sample] = []
    texts = itertools.cycle([*QUERIES, *ODD])
    asked, ask_at_s, sample_at_s = 0, 0.0, 0.0
    while (now_s := time.monotonic() - start_s) < 60 * minutes:
        if now_s >= ask_at_s:
            robot.ask_and_go_on(next(texts))
            asked += 1
            # Some come while one before them is grounded.
            ask_at_s = now_s + every_s * chance.choice((0.1, 1.0, 1.9))
        if now_s >= sample_at_s:
            samples.append(sample(pid, now_s))
            sample_at_s = now_s + SAMPLE_S
        time.sleep(0.05)
    until_s = time.monotonic() + 60
    while len(robot.answers) < asked and time.monotonic() < until_s:
        time.sleep(0.1)
    time.sleep(2.0)  # a second answer would come now
    return samples, asked


def judged(robot: Robot, samples: list[Sample], asked: int) -> tuple[dict[str, object], list[str]]:
    """The figures, and what is wrong."""
    quarter = len(samples) // 4
    if quarter < 1:
        raise ValueError(f"expected at least 4 samples, got {len(samples)}: give more minutes")
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    middle = {
        name: [statistics.median(getattr(one, name) for one in part) for part in (early, late)]
        for name in ("mib", "threads", "files")
    }
    growth = middle["mib"][1] / middle["mib"][0] - 1
    several = {query_id: len(answers) for query_id, answers in robot.answers.items() if len(answers) > 1}
    reused = [number for number, queries in robot.meant.items() if len(queries) > 1]
    unanswered = asked - len(robot.answers)
    found: dict[str, object] = {
        "minutes": round(samples[-1].at_s / 60, 2),
        "questions": asked,
        "unanswered": unanswered,
        "answered_twice": len(several),
        "targets": len(robot.meant),
        "ids_reused": len(reused),
        "mib": [round(value, 1) for value in middle["mib"]],
        "growth": round(growth, 4),
        "threads": middle["threads"],
        "files": middle["files"],
    }
    checks = {
        f"memory grew by {growth:.1%}": growth > MAX_GROWTH,
        f"threads grew: {middle['threads']}": middle["threads"][1] > middle["threads"][0],
        f"open files grew: {middle['files']}": middle["files"][1] > middle["files"][0],
        f"{unanswered} of {asked} questions without an answer": unanswered != 0,
        f"questions with several answers: {several}": bool(several),
        f"ids that belong to several questions: {reused}": bool(reused),
    }
    return found, [text for text, is_wrong in checks.items() if is_wrong]


def page(samples: list[Sample], found: dict[str, object]) -> str:
    """Charts over time, in one file."""
    minutes = [one.at_s / 60 for one in samples]
    memory = {"resident memory": [(at, one.mib) for at, one in zip(minutes, samples)]}
    counts = {
        "threads": [(at, float(one.threads)) for at, one in zip(minutes, samples)],
        "open files": [(at, float(one.files)) for at, one in zip(minutes, samples)],
    }
    parts = [
        heading("Soak"),
        table(("figure", "value"), [(name, str(value)) for name, value in found.items()]),
        line_chart(memory, "minutes", "MiB"),
        line_chart(counts, "minutes", "count"),
    ]
    return document("decaf_ros: soak", parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=5.0, help="mean seconds between two questions (%(default)s)")
    parser.add_argument("--page", type=Path, help="write charts over time to this HTML file")
    arguments = parser.parse_args()
    with running_node({"queries": {"mode": "replace"}}) as (robot, pid):
        samples, asked = soak(robot, pid, arguments.minutes, arguments.every)
        found, wrong = judged(robot, samples, asked)
    if arguments.page:
        arguments.page.write_text(page(samples, found), encoding="utf-8")
    print(json.dumps({**found, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
