"""`decaf reproduce --engine ray` on a cluster of this machine, against the local engine. Ray is not in .venv: run
`make test-ray`."""

from __future__ import annotations

import os
import signal

import pytest
from test_reproduce import check_same, data, entries, given, models, on_davis, undisturbed

from decaf_ros.cli.main import main
from decaf_ros.evaluation.tables import ray_pool

if not os.environ.get("DECAF_REQUIRE_RAY"):
    pytest.importorskip("ray")
pytestmark = pytest.mark.slow
__all__ = ["data", "given", "models", "undisturbed"]  # fixtures


class KillingPool(ray_pool.RayPool):
    """Kills one of its two workers, with the second sample that it has got."""

    starts: list[int] = []
    sent: list[int] = []
    killed: list[int] = []

    def start(self):
        self.starts.append(super().start())
        return self.starts[-1]

    def send(self, worker, sample):
        victim = not self.killed and self.sent.count(worker) == 1
        process = self._ray.get(self._workers[worker].process_id.remote()) if victim else 0
        super().send(worker, sample)
        self.sent.append(worker)
        if victim:
            self.killed.append(worker)
            os.kill(process, signal.SIGKILL)


def test_a_killed_worker_of_ray_changes_no_figure(given, data, undisturbed, monkeypatch):
    monkeypatch.setattr(ray_pool, "RayPool", KillingPool)
    assert main(on_davis(given, data, "out", "--engine", "ray", "--workers", "2")) == 0
    assert len(KillingPool.killed) == 1 and len(KillingPool.starts) == 3, "a third worker takes its place"
    check_same("out", undisturbed)
    found = entries("out")
    assert sum(entry["deaths"] for entry in found.values()) == 1
    assert sum(entry["attempts"] for entry in found.values()) == len(found) + 1


def test_actors_without_room_get_no_samples(given, data, undisturbed, capsys):
    """Ray has CPUs for some of them only."""
    workers = str(os.cpu_count() + 2)
    assert main(on_davis(given, data, "out", "--engine", "ray", "--workers", workers)) == 0
    check_same("out", undisturbed)
    capsys.readouterr()
    assert main(on_davis(given, data, "more", "--engine", "ray", "--workers", "1", "--threads", "999")) == 1
    assert "--threads 999: expected a machine of the cluster with as many CPUs" in capsys.readouterr().err
