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
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import _paths  # noqa: F401
import numpy as np
import rclpy
import yaml
from domain_coordinator import domain_id
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import String

from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import header, image
from decaf_ros.msg import QueryStatus
from decaf_ros.nodes.message_factory import make_message
from decaf_ros.types import QueryState

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "decaf_tabletop"
QUERIES = ("the purple cone", "the red ball", "the white cube", "the one that was dropped")
HZ, QUIET_S, TIMEOUT_S = 10, 2.0, 60.0


class Robot:
    """The camera, and when the masks and the answers came (time.monotonic), with state and targets."""

    def __init__(self, node: Node, images: list[np.ndarray]) -> None:
        self.masks: list[float] = []
        self.answers: dict[str, tuple[float, QueryState, int]] = {}
        self._node = node
        self._images = itertools.cycle(images)
        self._camera = node.create_publisher(Image, "image", 5)
        self._query = node.create_publisher(String, "query", 10)
        node.create_subscription(Image, "masks", lambda message: self.masks.append(time.monotonic()), 20)
        node.create_subscription(QueryStatus, "status", self._take_status, 20)
        node.create_timer(1 / HZ, self._show)

    def ask(self, text: str) -> tuple[float, float]:
        """Asks, and waits for the answer. Returns when it asked, and when the mask after the answer came."""
        self.answers.pop(text, None)
        asked_s = time.monotonic()
        self._query.publish(String(data=text))
        wait_for(lambda: text in self.answers, f"an answer to {text!r}")
        answered_s, state, _ = self.answers[text]
        if state not in (QueryState.TRACKING, QueryState.NOT_FOUND):
            raise RuntimeError(f"{text!r}: expected an answer, got {state.name}")
        wait_for(lambda: self.masks[-1] > answered_s, "a mask after the answer")
        return asked_s, self.masks[-1]

    def largest_gap(self, from_s: float, until_s: float) -> float:
        """Seconds between two masks one after the other, of which the second came within this time."""
        masks = np.array(self.masks)
        gaps = np.diff(masks)[(masks[1:] >= from_s) & (masks[1:] <= until_s)]
        if not len(gaps):
            raise RuntimeError(f"expected masks at {HZ} Hz, got none for {until_s - from_s:.1f} s")
        return float(gaps.max())

    def _show(self) -> None:
        stamp_ns = self._node.get_clock().now().nanoseconds
        self._camera.publish(image(make_message, next(self._images), header(make_message, stamp_ns, "camera")))

    def _take_status(self, message: QueryStatus) -> None:
        if (state := QueryState(message.state)).is_answer and state is not QueryState.SUPERSEDED:
            self.answers[message.query] = time.monotonic(), state, len(message.tracklet_ids)


def wait_for(condition, description: str) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until_s:
            raise TimeoutError(f"expected {description} within {TIMEOUT_S:g} s")
        time.sleep(0.002)


def measure(robot: Robot, questions: int) -> dict[str, object]:
    """Asks so many questions one after the other."""
    wait_for(lambda: len(robot.masks) >= 4 * HZ, "masks")
    seconds, busy, quiet, targets = [], [], [], []
    for text in itertools.islice(itertools.cycle(QUERIES), questions):
        time.sleep(QUIET_S + 0.5)
        asked_s, until_s = robot.ask(text)
        answered_s, _, count = robot.answers[text]
        seconds.append(answered_s - asked_s)
        targets.append(count)
        busy.append(robot.largest_gap(asked_s, until_s))
        quiet.append(robot.largest_gap(asked_s - QUIET_S, asked_s))

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
    with BagReader(TABLE / "demo" / "bags" / "story") as reader:
        images = [frame.image for frame in reader.frames()]
    settings = {"engine": {"ahead_share": arguments.ahead_share}, "regrounding": {"policy": "off"}}
    with domain_id() as domain, tempfile.TemporaryDirectory() as folder:
        params = Path(folder) / "params.yaml"
        params.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
        command = [sys.executable, "-m", "decaf_ros.nodes.segmenter", "--ros-args", "-r", "__ns:=/decaf"]
        command += ["--params-file", str(TABLE / "config" / "tabletop.yaml"), "--params-file", str(params)]
        environment = {"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        os.environ.update(environment)
        segmenter = subprocess.Popen(command, cwd=ROOT)
        rclpy.init()
        node = rclpy.create_node("robot", namespace="/decaf")
        robot, executor = Robot(node, images), SingleThreadedExecutor()
        executor.add_node(node)
        spinning = threading.Thread(target=executor.spin)
        spinning.start()
        try:
            print(json.dumps({"ahead_share": arguments.ahead_share, **measure(robot, arguments.questions)}))
        finally:
            executor.shutdown()
            spinning.join()
            rclpy.shutdown()
            segmenter.send_signal(signal.SIGINT)
            segmenter.wait(30)


if __name__ == "__main__":
    main()
