"""The node follows targets on a CUDA stream that overtakes the grounding's; between two units no stream is set."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from decaf_ros.devices import foreground, in_background
from decaf_ros.pipeline import Decaf
from decaf_ros.stages import finish
from decaf_ros.types import Frame, Window


class Device:
    """Stands for torch.cuda on a machine without a GPU: notes which stream is set."""

    def __init__(self, monkeypatch) -> None:
        self.streams, self.calls = ["own"], []
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "default")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority: f"priority {priority}")
        monkeypatch.setattr(torch.cuda, "synchronize", self.calls.append)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)

    @contextmanager
    def stream(self, stream):
        self.streams.append(stream)
        yield
        self.streams.pop()

    def task(self, units):
        """Notes the stream of each unit, and of what it does when it is closed."""
        try:
            for unit in range(units):
                self.calls.append(self.streams[-1])
                yield unit
            return "done"
        finally:
            self.calls.append(f"closed on {self.streams[-1]}")


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


@pytest.mark.parametrize("kind, stream", [("cuda", "default"), ("cpu", "own")])
def test_each_unit_runs_on_the_default_stream_of_a_gpu(device, kind, stream):
    task, units = in_background(device.task(3), torch.device(kind)), []
    with pytest.raises(StopIteration) as end:
        while True:
            units.append(next(task))
            assert device.streams == ["own"], "between two units"
    assert units == [0, 1, 2] and end.value.value == "done"
    assert device.calls == [*[stream] * 3, f"closed on {stream}"]


@pytest.mark.parametrize("kind, stream", [("cuda", "default"), ("cpu", "own")])
def test_a_task_is_abandoned_and_its_error_passed_on(device, kind, stream):
    task = in_background(device.task(3), torch.device(kind))
    next(task)
    task.close()
    assert device.calls == [stream, f"closed on {stream}"] and device.streams == ["own"]

    def failing():
        yield
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError, match="full"):
        finish(in_background(failing(), torch.device(kind)))


def test_the_foreground_has_priority_and_waits_for_what_was_queued_before(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    assert foreground(torch.device("cuda")) == "priority -1" and device.calls == [torch.device("cuda")]
    with foreground(torch.device("cpu")):
        assert len(device.calls) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_results_are_those_of_one_stream(tiny_mllm_dir, tiny_sam2_dir):
    from scripted import settings

    from decaf_ros.config import replace

    changes = {"mllm.checkpoint": str(tiny_mllm_dir), "sam2.checkpoint": str(tiny_sam2_dir)}
    config = replace(settings(), {**changes, "mllm.local_files_only": True, "presence.threshold": 0.0})
    decaf = Decaf.from_config(config)
    setting = foreground(decaf.sam2.device)
    for seed in range(10):
        noise = np.random.default_rng(seed)
        frames = [Frame(noise.integers(0, 256, (48, 64, 3), np.uint8), 1 + i, "", i) for i in range(4)]
        window = Window(tuple(frames))
        expected = decaf.segment(window, "the red ball")
        decaf.release()
        decaf.sam2.forget()
        with setting:
            found = decaf.segment(window, "the red ball")
        assert len(found.tracklets) == len(expected.tracklets)
        assert np.abs(found.grounding.maps.fused - expected.grounding.maps.fused).max() <= 1e-4
