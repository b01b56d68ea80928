"""Work for the next question, before it is asked."""

from __future__ import annotations

import pytest
import torch
from scripted import frame, settings

from decaf_ros.config import EngineConfig, replace
from decaf_ros.grounding.engine import Engine
from decaf_ros.online.ahead import Ahead
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Query, QueryEvent, QueryState, Window


class Preparing:
    """Stands in for Decaf: a window takes four units of a second."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.done: list[int] = []
        self.others: list[list[int]] = []
        self.error: Exception | None = None
        self.released = 0
        self.outlasts = False

    def prepare(self, window, others):
        self.others.append([one.frames[-1].index for one in others])
        for _ in range(4):
            self.now_s += 1.0
            if self.error:
                raise self.error
            self.done.append(window.frames[-1].index)
            yield window.frames[1:] if self.outlasts else ()

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


def test_work_in_hand_goes_on_while_its_frames_stay_in_the_window():
    preparing = Preparing()
    preparing.outlasts = True
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 1.0})
    frames = window(5).frames
    for first in (0, 0, 1, 2):
        assert ahead.advance([Window(frames[first : first + 3])], config)
    assert preparing.done == [2, 2, 2, 4], "of no use without frame 1: begun anew"


def test_streams_take_turns_and_share_the_time():
    preparing = Preparing()
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 0.5})
    windows = [None, window(1), window(2)]
    while preparing.now_s < 40:
        if not ahead.advance(windows, config):
            preparing.now_s += 0.25
    assert preparing.done == [1] * 4 + [2] * 4, "each is finished, and not prepared again"
    assert preparing.others == [[2], [1]], "nothing that is ready for the other one is dropped"
    began_s, preparing.done = preparing.now_s, []
    windows = [None, window(3), window(4)]
    while len(preparing.done) < 8:
        if not ahead.advance(windows, config):
            preparing.now_s += 0.25
    assert preparing.now_s - began_s == 15, "eight units of a second, at half of the time, from the first to the last"


def test_a_window_that_moves_on_leaves_the_turn_to_the_next_stream():
    preparing = Preparing()
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 1.0})
    fast, slow = window(1), window(9)
    for last in range(2, 8):  # a key frame after every second unit
        assert ahead.advance([slow, fast], config) and ahead.advance([slow, fast], config)
        fast = window(last)
    assert preparing.done[:6] == [1, 1, 9, 9, 9, 9] and set(preparing.done[6:]) <= {3, 4, 5, 6}


def test_a_failure_ends_the_preparation_of_this_window(caplog):
    preparing = Preparing()
    preparing.error = torch.OutOfMemoryError("CUDA out of memory")
    ahead, config = Ahead(preparing, lambda: preparing.now_s), replace(settings(), {"engine.ahead_share": 1.0})
    first = window(1)
    assert ahead.advance([first], config) and not ahead.advance([first], config)
    assert preparing.released == 1 and "CUDA out of memory" in caplog.text
    preparing.error = None
    assert not ahead.advance([window(2)], config), "not at once again"
    preparing.now_s += 60
    assert ahead.advance([window(2)], config) and preparing.done == [2]


@pytest.fixture
def decaf(tiny_mllm_dir, tiny_sam2_dir) -> Decaf:
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
    return Decaf.from_config(replace(settings(), options))


def test_the_windows_of_two_cameras_are_ready(decaf):
    """The automatic size of the prefix cache is for both, also if one of them is silent."""
    decaf.grounder.engine.streams = 2
    turns = Turns(decaf)
    online = [OnlineSegmenter(decaf, lambda output: None, live=True, turns=turns) for _ in range(2)]

    def prepare() -> None:
        while turns.prepare():
            pass

    for number in range(21):
        for place, each in enumerate(online):
            each.observe(frame(100 * place + number, size_hw=(48, 64)))
            prepare()
    assert [each.ready_share for each in online] == [1, 1]
    for number in range(21, 61):
        online[0].observe(frame(number, size_hw=(48, 64)))
        prepare()
    assert [each.ready_share for each in online] == [1, 1]


def test_a_stream_keeps_only_what_its_windows_can_use(decaf):
    """Also with caches that have room for more, and with a question that keeps an old key frame."""
    engine = decaf.grounder.engine = Engine(decaf.grounder.mllm, EngineConfig(prefix_cache_mib=1024))
    online, sizes = OnlineSegmenter(decaf, lambda output: None, live=True), []
    for number in range(40):
        online.observe(frame(number, hz=2.0, size_hw=(48, 64)))
        if number == 8:
            online.ask(Query("q1", "the red disc"))
        while online.advance() or online.prepare():
            pass
        sizes.append(engine.prefixes.held_bytes + engine.features.held_bytes)
    assert 0 < max(sizes[20:]) <= 1.2 * max(sizes[:20])


def test_a_live_window_is_ready_when_the_question_comes(decaf, monkeypatch):
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
    key_images, encode = [key.image for key in online.window.frames], decaf.sam2._encode

    def encode_others(image):
        assert not any(image is one for one in key_images)
        return encode(image)

    monkeypatch.setattr(decaf.sam2, "_encode", encode_others)
    online.ask(Query("q1", "the red disc"))
    assert not online.prepare(), "the question comes first"
    while online.advance():
        pass
    (answer,) = [output for output in outputs if isinstance(output, QueryEvent) and output.state.is_answer]
    assert answer.state is QueryState.TRACKING and not encoded
    online.reset("another stream")
    assert not online.prepare() and online.ready_share == 0
