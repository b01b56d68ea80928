"""Questions that are asked together run the model once over what they have in common: the frames."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scripted import settings

from decaf_ros.config import replace
from decaf_ros.grounding.prefix import Prefix
from decaf_ros.grounding.rollout import rollout_steps
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Frame, Heatmap, Notice, Query, QueryEvent, QueryState

PERIOD_NS = 100_000_000


def picture(number: int) -> Frame:
    image = np.random.default_rng(number).integers(0, 255, (48, 64, 3), np.uint8)
    return Frame(image, (number + 1) * PERIOD_NS, "camera", number)


@pytest.mark.parametrize("before", [0, 4])  # 0: they wait for key frames
def test_three_questions_cost_one_prefix_and_one_rollout(tiny_decaf, monkeypatch, before):
    """The camera goes on while they are grounded."""
    engine, decaf = tiny_decaf.grounder.engine, tiny_decaf
    engine.release()
    made, suffixes, rollouts, outputs = [], [], [], []
    new_prefix, forward_suffix = engine._new_prefix, Prefix.forward_suffix

    def counted_prefix(views, *args):
        made.append([[frame.index for frame in view.frames] for view in views])
        return (yield from new_prefix(views, *args))

    def counted_suffix(*args, **options):
        suffixes.append(args)
        return forward_suffix(*args, **options)

    def counted_rollout(*args):
        rollouts.append(args)
        return (yield from rollout_steps(*args))

    monkeypatch.setattr("decaf_ros.grounding.engine.rollout_steps", counted_rollout)
    monkeypatch.setattr(engine, "_new_prefix", counted_prefix)
    monkeypatch.setattr(Prefix, "forward_suffix", counted_suffix)
    online, numbers = OnlineSegmenter(decaf, outputs.append, live=True), itertools.count()

    def show(count: int) -> None:
        for _ in range(count):
            online.observe(picture(next(numbers)))

    def finish(count: int) -> None:
        """Advances until so many questions are answered, a frame between two units."""
        while sum(isinstance(one, QueryEvent) and one.state.is_answer for one in outputs) < count:
            if not online.advance():
                show(1)
            elif next(units) % 3 == 0:
                show(1)

    units = itertools.count()
    show(before)
    for number in (1, 2, 3):
        online.ask(Query(f"q{number}", f"object {before + number}"))
    show(4 - before)
    finish(1)
    assert [len(views) for views in made] == [1, 4], "the video, and all key frames as one batch"
    finish(3)
    assert (len(made), len(rollouts)) == (2, 2)
    assert len(suffixes) == 3 * (2 * 2 + 1), "of each: object and background, in both branches; presence"
    assert online.buffer.newest.index > 3, "the stream has moved on"
    states = [one.state for one in outputs if isinstance(one, QueryEvent) and one.state.is_answer]
    assert states == [QueryState.TRACKING] * 3


def test_a_camera_out_of_memory_does_not_disturb_the_grounding_of_another(tiny_decaf, monkeypatch):
    """After each unit the other camera's tracker fails, which drops all caches on the device."""
    results = []
    for fails in (False, True):
        tiny_decaf.release()
        turns, outputs, failures = Turns(tiny_decaf), [], []
        wrist = OnlineSegmenter(tiny_decaf, outputs.append, live=True, turns=turns)
        head = OnlineSegmenter(tiny_decaf, failures.append, live=True, turns=turns)
        if fails:
            monkeypatch.setattr(head._follower, "step", _out_of_memory)
        for number in range(4):
            wrist.observe(picture(number))
        wrist.ask(Query("q", "the object"))
        units = 0
        while turns.advance():
            head.observe(picture(100 + units))
            units += 1
        (answer,) = [one for one in outputs if isinstance(one, QueryEvent) and one.state.is_answer]
        assert answer.state is QueryState.TRACKING and units > 10
        assert sum(isinstance(one, Notice) for one in failures) == (units if fails else 0)
        results.append(([one.values for one in outputs if isinstance(one, Heatmap)], wrist._targets.living))
    (expected, known), (found, same) = results
    assert len(found) == len(expected) > 0 and len(same) == len(known)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-4)


def _out_of_memory(*args: object) -> None:
    raise torch.OutOfMemoryError("scripted")


@pytest.fixture(scope="module")
def tiny_decaf(tiny_mllm_dir, tiny_sam2_dir) -> Decaf:
    changes = {
        "mllm.checkpoint": str(tiny_mllm_dir),
        "mllm.local_files_only": True,
        "mllm.device": "cpu",
        "mllm.video_tokens": 16,
        "sam2.checkpoint": str(tiny_sam2_dir),
        "sam2.device": "cpu",
        "grounding.mode": "fast",
        "window.size": 4,
        "window.keyframe_period_s": 0.1,
        "segmentation.max_points": 2,
        "segmentation.fallback": "best",
        "presence.threshold": 0.0,
        "regrounding.policy": "off",
        "queries.mode": "add",
    }
    return Decaf.from_config(replace(settings(), changes))
