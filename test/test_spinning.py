"""Processes that run a small real node: signals, errors in callbacks, and a callback that blocks."""
# ruff: noqa: E402

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
domain_coordinator = pytest.importorskip("domain_coordinator")

pytestmark = pytest.mark.ros

ROOT = Path(__file__).parent.parent
NODE = """
import sys, time
from rclpy.node import Node
from decaf_ros.nodes import spinning

class Small(Node):
    busy = False
    is_stuck = False

    def __init__(self):
        super().__init__("small")
        if "{mode}" == "unmakeable":
            raise ValueError("window.size: expected less")
        self.ticks = 0
        self.create_timer(3600 if "{mode}" == "idle" else 0.05, self.tick)

    def autostart(self):
        print("autostart", flush=True)
        if "{mode}" == "broken":
            raise RuntimeError("an autostart that raises")
        if "{mode}" == "stuck":
            time.sleep(30)

    def tick(self):
        self.ticks += 1
        if self.ticks == 1 and "{mode}" == "raising":
            raise RuntimeError("a callback that raises")
        if self.ticks == 3:
            print("ticking", flush=True)

    def stop(self):
        print("stop", flush=True)

spinning.STOP_S = 0.5
code = spinning.run_node(Small)
print("code", code, flush=True)
sys.exit(code)
"""


@pytest.fixture
def start(monkeypatch):
    """Starts the process in a mode. Kills it at the end of the test."""
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    processes = []
    with domain_coordinator.domain_id() as domain_id:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain_id))

        def start_process(mode: str) -> subprocess.Popen:
            command = [sys.executable, "-c", NODE.replace("{mode}", mode)]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=ROOT))
            return processes[-1]

        yield start_process
        for process in processes:
            process.kill()


def _read_until(process: subprocess.Popen, line: str) -> None:
    while (read := process.stdout.readline()) and read.strip() != line:
        pass
    assert read, f"the process ended without {line!r}"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(start, number):
    process = start("plain")
    _read_until(process, "ticking")
    process.send_signal(number)
    rest, _ = process.communicate(timeout=10)
    assert (process.returncode, rest) == (0, "stop\ncode 0\n")


def test_a_callback_that_raises_is_logged_and_the_node_goes_on(start):
    process = start("raising")
    seen = []
    while not seen or seen[-1] != "ticking\n":
        seen.append(process.stdout.readline())
    assert sum("RuntimeError: a callback that raises" in line for line in seen) == 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0


def test_a_signal_ends_an_idle_node(start):
    process = start("idle")
    _read_until(process, "autostart")
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _read_until(process, "stop")
    assert time.monotonic() - began < 1
    assert process.wait(timeout=10) == 0


def test_a_failed_thread_ends_the_process_with_an_exit_code(start):
    rest, _ = start("broken").communicate(timeout=10)
    assert "RuntimeError: an autostart that raises" in rest
    assert rest.endswith("stop\ncode 1\n")


def test_a_blocking_callback_does_not_keep_the_process_alive(start):
    process = start("stuck")
    _read_until(process, "autostart")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=10)
    assert process.returncode == 1 and time.monotonic() - began < 5
    assert "still busy" in rest


def test_a_node_that_cannot_be_made_is_logged_in_one_line(start):
    rest, _ = start("unmakeable").communicate(timeout=10)
    assert "window.size: expected less" in rest and "code 1" in rest and "Traceback" not in rest
