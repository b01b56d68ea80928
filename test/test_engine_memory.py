"""Memory of the engine: bounds of its caches, and what happens when the device has no more."""

from __future__ import annotations

import logging
import weakref

import numpy as np
import pytest
import torch
from engine_views import TEXTS, load_tiny, random_frames, views

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.caches import ByteCache
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.mllm import forward
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Window


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_tiny(tiny_mllm_dir)


@pytest.fixture(scope="module")
def frames():
    return random_frames()


def test_out_of_memory_frees_the_cached_prefix(mllm, frames, monkeypatch):
    engine, some = Engine(mllm, EngineConfig()), views(mllm, frames[:4], "video")
    expected = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS, ReadOptions(2)))[1]
    finish(engine.ask(some, TEXTS[:1], ReadOptions(2)))
    prefix = weakref.ref(engine.prefixes.peek((some[0].key,)))
    alive = []

    def fails_first(model, inputs, *args, **kwargs):
        alive.append(prefix() is not None)
        if len(alive) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, *args, **kwargs)

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", fails_first)
    found = finish(engine.ask(some, TEXTS[1:], ReadOptions(2)))[0]
    assert alive == [True, False, False]
    np.testing.assert_allclose(found[0].map, expected[0].map, atol=1e-7)


def test_out_of_memory_clears_the_caches_but_answers(mllm, frames, monkeypatch):
    engine, some = Engine(mllm, EngineConfig()), views(mllm, frames[:4], "frames")
    expected = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS, ReadOptions(2)))
    finish(engine.ask(some[:2], TEXTS[:1], ReadOptions(2)))
    sizes = []

    def with_room_for_one(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["inputs_embeds"]))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, *args, **kwargs)

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", with_room_for_one)
    found = finish(engine.ask(some, TEXTS, ReadOptions(2)))
    assert max(sizes) > 1 and len(found[0]) == 4
    # The retry caches nothing: the next view may need the memory.
    assert not engine.prefixes.held_bytes and not engine.features.held_bytes
    for ours, theirs in zip(found, expected):
        assert all(np.allclose(a.map, b.map, atol=1e-7) for a, b in zip(ours, theirs))

    def with_room_for_none(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", with_room_for_none)
    with pytest.raises(torch.OutOfMemoryError):
        finish(engine.ask(some[:1], ["something new"], ReadOptions(2)))


def test_the_prefix_cache_follows_the_window(mllm, frames, caplog):
    """Its default size holds every prefix of a window, of which later groundings then run none."""
    caplog.set_level(logging.INFO)
    grounder, config = Grounder(mllm), replace(DecafConfig(), {"grounding.mode": "fast"})
    held = []
    for count in (4, 9, 4):
        finish(grounder.ground(Window(frames[:count]), "the red ball", config, StageClock(STAGES)))
        held.append(grounder.engine.prefixes.held_bytes)
    assert 0 < held[0] < held[1] == held[2] <= grounder.engine.prefixes.max_bytes < 1.3 * held[1]
    messages = [record.getMessage() for record in caplog.records if "prefix cache" in record.getMessage()]
    assert len(messages) == 2 and f"need {held[1] // 2**20} MiB; free on cpu" in messages[1]


def test_the_prefix_cache_leaves_half_of_the_free_memory(mllm, frames, monkeypatch, caplog):
    window, config = Window(frames), replace(DecafConfig(), {"grounding.mode": "fast"})
    whole = Grounder(mllm)
    expected = finish(whole.ground(window, "the red ball", config, StageClock(STAGES)))
    size = whole.engine.prefixes.held_bytes
    monkeypatch.setattr("decaf_ros.grounding.caches.free_bytes", lambda device: size)
    caplog.clear()
    short = Grounder(mllm, EngineConfig(batch_tokens=1))
    found = finish(short.ground(window, "the red ball", config, StageClock(STAGES)))
    assert 0 < short.engine.prefixes.held_bytes <= short.engine.prefixes.max_bytes < 0.8 * size
    assert "so some of their prefixes run again" in caplog.text
    np.testing.assert_allclose(found.maps.video.object, expected.maps.video.object, atol=1e-6)


def test_what_no_window_can_use_any_more_is_dropped(mllm, frames):
    """A frame branch of two batches, and the video: the window moves on by three frames."""
    engine = Engine(mllm, EngineConfig(prefix_cache_mib=4096, batch_tokens=4 * 64))
    alone, video = views(mllm, frames[:6], "frames"), views(mllm, frames[:6], "video")
    for some in (alone, video):
        finish(engine.ask(some, TEXTS[:1], ReadOptions(2)))
    prefixes = list(engine.prefixes)
    engine.keep_only(())
    assert list(engine.prefixes) == prefixes, "the grounding that used them may go on"
    engine.new_round([], TEXTS[0])
    engine.keep_only(frames[:6])
    assert list(engine.prefixes) == prefixes
    engine.keep_only(frames[3:])
    kept = [key for key in prefixes if 2 * sum(view.key in key for view in alone[3:]) >= len(key)]
    assert list(engine.prefixes) == kept and 0 < len(kept) < len(prefixes)
    digests = {frame.digest for frame in frames[3:]}
    assert len(engine.features) and all(digests.issuperset(key[-1]) for key in engine.features)
    engine.keep_only(())
    assert not engine.prefixes.held_bytes and not engine.features.held_bytes


def test_byte_cache_keeps_entries_used_in_the_round():
    cache: ByteCache[str, str] = ByteCache(10)
    assert cache.put("a", "A", 4) and cache.put("b", "B", 4)
    assert not cache.put("c", "C", 4) and cache.get("c") is None  # an oversized round keeps its first part
    cache.new_round()
    assert cache.get("a") == "A"
    assert cache.put("c", "C", 4) and cache.get("b") is None and cache.get("a") == "A"
    assert not cache.put("d", "D", 11) and len(cache) == 2 and cache.held_bytes == 8
    assert cache.put("a", "AA", 6) and cache.get("a") == "AA" and cache.held_bytes == 10
