"""Work for the next question, before it is asked."""

from __future__ import annotations

import pytest
import torch
from scripted import frame, settings

from decaf_ros.config import replace
from decaf_ros.online.ahead import Ahead
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Query, QueryEvent, QueryState, Window


class Preparing:
    """Stands in for Decaf and its Grounder: a window takes four units of a second."""

    def __init__(self) -> None:
        self.grounder = self
        self.now_s = 0.0
        self.done: list[int] = []
        self.error: Exception | None = None
        self.released = 0

    def prepare(self, window, config, others):
        for _ in range(4):
            self.now_s += 1.0
            if self.error:
                raise self.error
            self.done.append(window.frames[-1].index)
            yield

    def release(self) -> None:
        self.released += 1


def window(last: int) -> Window:
    return Window(tuple(frame(number) for number in range(last + 1)))


def run(ahead: Ahead, preparing: Preparing, share: float, seconds: int) -> list[float]:
    """Times at which a unit ran, with a try every quarter of a second."""
    ran = []
    first, config = window(1), replace(settings(), {"engine.ahead_share": share})
    until_s = preparing.now_s + seconds
    while preparing.now_s < until_s:
        before_s = preparing.now_s
        done = len(preparing.done)
        ahead.advance([first], config)
        if len(preparing.done) > done:
            ran.append(before_s)
        else:
            preparing.now_s += 0.25
    return ran


@pytest.mark.parametrize(
    ("share", "times"), [(1.0, [0, 1, 2, 3]), (0.5, [0, 2, 4, 6]), (0.25, [0, 4, 8, 12]), (0.0, [])]
)
def test_it_keeps_to_its_share_of_the_time(share, times):
    preparing = Preparing()
    assert run(Ahead(preparing, lambda: preparing.now_s), preparing, share, 20) == times


def test_another_window_takes_the_place_of_the_unfinished_one():
    preparing = Preparing()
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 1.0})
    first, second = window(1), window(2)
    assert ahead.advance([first], config) and ahead.advance([first], config)
    while ahead.advance([second], config):
        pass
    assert preparing.done == [1, 1, 2, 2, 2, 2]
    ahead.stop()
    assert ahead.advance([second], config) and len(preparing.done) == 7


def test_a_failure_ends_the_preparation_of_this_window(caplog):
    preparing = Preparing()
    preparing.error = torch.OutOfMemoryError("CUDA out of memory")
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 1.0})
    first = window(1)
    assert ahead.advance([first], config) and not ahead.advance([first], config)
    assert preparing.released == 1 and "CUDA out of memory" in caplog.text
    preparing.error = None
    assert ahead.advance([window(2)], config) and preparing.done == [2]


def test_a_live_window_is_ready_when_the_question_comes(tiny_mllm_dir, tiny_sam2_dir, monkeypatch):
    options = {
        "mllm.checkpoint": str(tiny_mllm_dir),
        "mllm.local_files_only": True,
        "mllm.video_tokens": 16,
        "sam2.checkpoint": str(tiny_sam2_dir),
        "grounding.mode": "fast",
        "engine.ahead_share": 1.0,
        "presence.threshold": 0.0,
        "segmentation.fallback": "best",
        "segmentation.max_points": 2,
    }
    decaf = Decaf.from_config(replace(settings(), options))
    outputs = []
    online = OnlineSegmenter(decaf, outputs.append, live=True)
    assert not online.prepare() and online.ready_share == 0
    for number in range(21):
        online.observe(frame(number, size_hw=(48, 64)))
        while online.prepare():
            pass
    assert online.ready_share == 1
    assert all(isinstance(output, FrameResult) for output in outputs)
    encoded = []
    monkeypatch.setattr(decaf.grounder.mllm, "encode", lambda *_: encoded.append(1))
    online.ask(Query("q1", "the red disc"))
    assert not online.prepare(), "the question comes first"
    while online.advance():
        pass
    (answer,) = [output for output in outputs if isinstance(output, QueryEvent) and output.state.is_answer]
    assert answer.state is QueryState.TRACKING and not encoded
    online.reset("another stream")
    assert not online.prepare() and online.ready_share == 0
