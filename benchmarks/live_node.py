"""The real node in a process of its own, with the simulated table's models, and a robot that talks to it over DDS."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import _paths  # noqa: F401
import numpy as np
import rclpy
import yaml
from domain_coordinator import domain_id
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import String

from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import header, image
from decaf_ros.msg import QueryStatus, TrackletArray
from decaf_ros.nodes.message_factory import make_message
from decaf_ros.types import QueryState

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "decaf_tabletop"
QUERIES = ("the purple cone", "the red ball", "the white cube", "the one that was dropped")
HZ, TIMEOUT_S = 10, 60.0


class Answer(NamedTuple):
    """came_s: time.monotonic when it came. targets: their number."""

    came_s: float
    state: QueryState
    targets: int


class Robot:
    """A camera at HZ, questions, and what came back.

    masks: when each image came (time.monotonic). answers: of each query by its id, in the order of coming. meant: the
    queries of each target id.
    """

    def __init__(self, node: Node, images: list[np.ndarray]) -> None:
        self.masks: list[float] = []
        self.answers: dict[str, list[Answer]] = {}
        self.asked: dict[str, str] = {}
        self.meant: dict[int, set[str]] = {}
        self._node = node
        self._images = itertools.cycle(images)
        self._camera = node.create_publisher(Image, "image", 5)
        self._query = node.create_publisher(String, "query", 10)
        latched = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(Image, "masks", lambda message: self.masks.append(time.monotonic()), 20)
        node.create_subscription(QueryStatus, "status", self._take_status, latched)
        node.create_subscription(TrackletArray, "tracklets", self._take_tracklets, 20)
        node.create_timer(1 / HZ, self._show)

    def ask(self, text: str) -> Answer:
        """Asks, and waits for the answer. Raises TimeoutError if none comes."""
        before = set(self.asked)
        self._query.publish(String(data=text))
        wait_for(lambda: set(self.asked) - before, f"a query {text!r}")
        (query_id,) = set(self.asked) - before
        wait_for(lambda: query_id in self.answers, f"an answer to {text!r}")
        return self.answers[query_id][0]

    def ask_and_go_on(self, text: str) -> None:
        """Asks without waiting."""
        self._query.publish(String(data=text))

    def _show(self) -> None:
        stamp_ns = self._node.get_clock().now().nanoseconds
        self._camera.publish(image(make_message, next(self._images), header(make_message, stamp_ns, "camera")))

    def _take_status(self, message: QueryStatus) -> None:
        state = QueryState(message.state)
        self.asked.setdefault(message.query_id, message.query)
        if state.is_answer:
            answer = Answer(time.monotonic(), state, len(message.tracklet_ids))
            self.answers.setdefault(message.query_id, []).append(answer)

    def _take_tracklets(self, message: TrackletArray) -> None:
        for tracklet in message.tracklets:
            self.meant.setdefault(tracklet.id, set()).update(tracklet.query_ids)


def wait_for(condition: Callable[[], object], description: str) -> None:
    """Raises TimeoutError if it does not come true within TIMEOUT_S."""
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until_s:
            raise TimeoutError(f"expected {description} within {TIMEOUT_S:g} s")
        time.sleep(0.002)


@contextlib.contextmanager
def running_node(settings: Mapping[str, object]) -> Iterator[tuple[Robot, int]]:
    """The robot, and the node's process id. settings: parameters beside the table's."""
    with BagReader(TABLE / "demo" / "bags" / "story") as reader:
        images = [frame.image for frame in reader.frames()]
    with domain_id() as domain, tempfile.TemporaryDirectory() as folder:
        params = Path(folder) / "params.yaml"
        params.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
        command = [sys.executable, "-m", "decaf_ros.nodes.segmenter", "--ros-args", "-r", "__ns:=/decaf"]
        command += ["--params-file", str(TABLE / "config" / "tabletop.yaml"), "--params-file", str(params)]
        os.environ.update({"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})
        segmenter = subprocess.Popen(command, cwd=ROOT)
        rclpy.init()
        node = rclpy.create_node("robot", namespace="/decaf")
        robot, executor = Robot(node, images), SingleThreadedExecutor()
        executor.add_node(node)
        spinning = threading.Thread(target=executor.spin)
        spinning.start()
        try:
            wait_for(lambda: len(robot.masks) >= 4 * HZ, "masks")
            yield robot, segmenter.pid
        finally:
            executor.shutdown()
            spinning.join()
            rclpy.shutdown()
            segmenter.send_signal(signal.SIGINT)
            segmenter.wait(30)
