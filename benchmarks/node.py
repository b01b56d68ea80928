"""The real node under a camera's load: latency from stamp to mask, CPU time of a frame, loss; beside a bare relay.

    scripts/with_env.sh python benchmarks/node.py --seconds 20

Images of 1280 x 720 at 30 Hz, raw and JPEG, from this process to the node's, without a query and with a target. The
relay is a node that answers each image at once with an empty mask: what the middleware and the messages cost. Then the
rate doubles until frames are dropped. The last line is JSON.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import _paths  # noqa: F401
import cv2
import numpy as np
import rclpy
import yaml
from domain_coordinator import domain_id
from live_node import ROOT, TABLE, wait_for
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import header, image
from decaf_ros.msg import QueryStatus
from decaf_ros.nodes.message_factory import make_message
from decaf_ros.types import QueryState

SIZE_HW, HZ, MOST_HZ = (720, 1280), 30.0, 240.0
QUERY = "the purple cone"
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


class Load:
    """A camera, and for each image that came back its stamp and its latency in seconds."""

    def __init__(self, node: Node, messages: list[Image | CompressedImage], compressed: bool) -> None:
        self.sent: list[int] = []
        self.latency_s: dict[int, float] = {}
        self.is_answered = False
        self._node, self._messages = node, messages
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self._camera = node.create_publisher(kind, topic, BEST_EFFORT)
        self._query = node.create_publisher(String, "query", 10)
        node.create_subscription(Image, "masks", self._take, 100)
        node.create_subscription(QueryStatus, "status", self._take_status, 100)

    def ask(self) -> None:
        self._query.publish(String(data=QUERY))

    def run(self, seconds: float, hz: float) -> None:
        """Sends images at this rate, from the calling thread."""
        start_s, number = time.monotonic(), 0
        while (due_s := number / hz) < seconds:
            time.sleep(max(0.0, start_s + due_s - time.monotonic()))
            message = self._messages[number % len(self._messages)]
            stamp_ns = time.time_ns()
            message.header = header(make_message, stamp_ns, "camera")
            self.sent.append(stamp_ns)
            self._camera.publish(message)
            number += 1

    def _take(self, message: Image) -> None:
        stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.latency_s[stamp_ns] = (time.time_ns() - stamp_ns) / 1e9

    def _take_status(self, message: QueryStatus) -> None:
        if QueryState(message.state).is_answer:
            self.is_answered = True


class Relay(Node):
    """Answers each image at once with an empty mask."""

    def __init__(self, compressed: bool) -> None:
        super().__init__("relay", namespace="/decaf")
        self._mask = array.array("B", bytes(SIZE_HW[0] * SIZE_HW[1]))
        self._masks = self.create_publisher(Image, "masks", 5)
        kind, topic = (CompressedImage, "image/compressed") if compressed else (Image, "image")
        self.create_subscription(kind, topic, self._answer, QoSProfile(depth=1, reliability=BEST_EFFORT.reliability))

    def _answer(self, message: Image | CompressedImage) -> None:
        mask = Image(header=message.header, height=SIZE_HW[0], width=SIZE_HW[1], encoding="mono8", step=SIZE_HW[1])
        mask.data = self._mask
        self._masks.publish(mask)


def camera_messages(compressed: bool) -> list[Image | CompressedImage]:
    """A few seconds of the demo's bag, enlarged."""
    with BagReader(TABLE / "demo" / "bags" / "story") as reader:
        images = [cv2.resize(frame.image, SIZE_HW[::-1]) for frame, _ in zip(reader.frames(), range(40))]
    if not compressed:
        return [image(make_message, pixels, header(make_message, 0, "camera")) for pixels in images]
    encoded = (cv2.imencode(".jpg", pixels[..., ::-1])[1] for pixels in images)
    return [CompressedImage(format="jpeg", data=array.array("B", data.tobytes())) for data in encoded]


@contextlib.contextmanager
def process(command: list[str]) -> Iterator[int]:
    running = subprocess.Popen(command, cwd=ROOT)
    try:
        yield running.pid
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)


def cpu_s(pid: int) -> float:
    """CPU time of a process, of all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(load: Load, pid: int, seconds: float, hz: float) -> dict[str, float]:
    load.sent.clear()
    load.latency_s.clear()
    before = cpu_s(pid)
    load.run(seconds, hz)
    used_s = cpu_s(pid) - before
    time.sleep(0.5)
    latency_ms = 1e3 * np.array([load.latency_s[stamp] for stamp in load.sent if stamp in load.latency_s])
    if not len(latency_ms):
        raise RuntimeError(f"expected masks at {hz:g} Hz, got none")
    return {
        "hz": hz,
        "p50_ms": round(float(np.percentile(latency_ms, 50)), 2),
        "p95_ms": round(float(np.percentile(latency_ms, 95)), 2),
        "cpu_ms_a_frame": round(1e3 * used_s / len(latency_ms), 2),
        "loss": round(1 - len(latency_ms) / len(load.sent), 4),
    }


def measure_transport(compressed: bool, seconds: float, params: Path) -> dict[str, Mapping[str, float]]:
    """The relay; the node without a query, with a target; the node without a query at rising rates."""
    node = rclpy.create_node("robot", namespace="/decaf")
    load, executor = Load(node, camera_messages(compressed), compressed), SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    settings = {"node": {"image_transport": "compressed" if compressed else "raw"}, "queries": {"mode": "replace"}}
    params.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}))
    segmenter = [sys.executable, "-m", "decaf_ros.nodes.segmenter", "--ros-args", "-r", "__ns:=/decaf"]
    segmenter += ["--params-file", str(TABLE / "config" / "tabletop.yaml"), "--params-file", str(params)]
    rows: dict[str, Mapping[str, float]] = {}
    try:
        with process([sys.executable, __file__, "--relay", "compressed" if compressed else "raw"]) as pid:
            _begin(load)
            rows["relay"] = measure(load, pid, seconds, HZ)
        with process(segmenter) as pid:
            _begin(load)
            rows["no query"] = measure(load, pid, seconds, HZ)
            hz = 2 * HZ
            while hz <= MOST_HZ:
                rows[f"no query, {hz:g} Hz"] = row = measure(load, pid, seconds / 2, hz)
                if row["loss"] > 0.01:
                    break
                hz *= 2
            load.ask()
            while not load.is_answered:
                load.run(0.5, 10.0)
            rows["a target"] = measure(load, pid, seconds, HZ)
    finally:
        executor.shutdown()
        spinning.join()
        node.destroy_node()
    return rows


def _begin(load: Load) -> None:
    """Waits until images are answered."""
    load.latency_s.clear()

    def answered() -> bool:
        load.run(0.2, 10.0)
        return len(load.latency_s) > 3

    wait_for(answered, "masks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--relay", choices=("raw", "compressed"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.relay:
        rclpy.init()
        with contextlib.suppress(ExternalShutdownException, KeyboardInterrupt):
            rclpy.spin(Relay(arguments.relay == "compressed"))
        return
    result = {}
    with domain_id() as domain, tempfile.TemporaryDirectory() as folder:
        os.environ.update({"ROS_DOMAIN_ID": str(domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"})
        # As the launch file: without it most large images are lost.
        os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(ROOT / "config" / "fastdds_large_shm.xml")
        rclpy.init()
        for transport in ("raw", "compressed"):
            rows = measure_transport(transport == "compressed", arguments.seconds, Path(folder) / "params.yaml")
            result[transport] = rows
            print(f"\n{transport}, {SIZE_HW[1]} x {SIZE_HW[0]}")
            for name, row in rows.items():
                print(f"  {name:<20}" + "".join(f"{key} {value:<10}" for key, value in row.items()))
        rclpy.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
