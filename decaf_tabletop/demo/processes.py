"""The demo's child processes."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ChildError(Exception):
    """A child process ended early or timed out."""


class Child:
    """A process that emits events as JSON lines on standard output. Other output and standard error go to `log`.

    It runs in its own session: Ctrl-C reaches only the demo, which then stops its children in order.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._stream = log.open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stream,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, **command: Any) -> None:
        """Writes a JSON line to the process's standard input. Raises ChildError if the process has ended."""
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(command) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise ChildError(f"{self.name} has ended:{self._last_lines()}") from error

    def check(self) -> None:
        """Raises ChildError if the process has ended."""
        if self._process.poll() is not None:
            self._reader.join(timeout=5)
            raise ChildError(f"{self.name} ended with exit code {self._process.returncode}:{self._last_lines()}")

    def wait_for(self, wanted: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """The next event with all items of `wanted`. Raises ChildError when the process ends or the time is up."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            ended = self._process.poll() is not None
            if ended:
                self._reader.join(timeout=5)
            try:
                event = self.events.get(timeout=0.0 if ended else 0.2)
            except queue.Empty:
                self.check()
                continue
            if wanted.items() <= event.items():
                return event
        raise ChildError(f"{self.name} did not emit {dict(wanted)} within {timeout_s:g} s:{self._last_lines()}")

    def stop(self, timeout_s: float = 15.0) -> int:
        """Sends SIGINT, then SIGKILL after `timeout_s`. Returns the exit code, negative for a signal."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(timeout=5)
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._stream.close()
        return self._process.returncode

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                self.events.put(json.loads(line))
            except ValueError:
                self._stream.write(line)
                self._stream.flush()

    def _last_lines(self, count: int = 15) -> str:
        self._stream.flush()
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(["", *(f"    {line}" for line in lines[-count:]), f"    (log: {self.log})"])


def emit(**event: Any) -> None:
    """In a child: sends an event to the demo."""
    print(json.dumps(event), flush=True)
