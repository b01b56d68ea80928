"""Prefixes: made ahead, in chunks, kept after a failure, and found again in another window."""

from __future__ import annotations

import numpy as np
import pytest
from engine_views import TEXTS, load_tiny, random_frames, record_encoding, record_passes, views

from decaf_ros.config import EngineConfig
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.stages import finish


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_tiny(tiny_mllm_dir)


@pytest.fixture(scope="module")
def frames():
    return random_frames()


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_prepared_view_needs_its_suffixes_only(mllm, frames, kind, monkeypatch):
    some = views(mllm, frames[:4], kind)
    fresh = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS, ReadOptions(2)))
    engine = Engine(mllm, EngineConfig())
    assert not any(engine.are_ready(some, ReadOptions(2)))
    finish(engine.prepare(some, "anything", ReadOptions(2)))
    assert all(engine.are_ready(some, ReadOptions(2)))
    assert not any(engine.are_ready(some, ReadOptions(1))), "its lower layers are not recorded"
    encoded, lengths = record_encoding(monkeypatch, mllm), record_passes(monkeypatch)
    finish(engine.prepare(some, "anything", ReadOptions(2)))
    assert not lengths
    found = finish(engine.ask(some, TEXTS, ReadOptions(2)))
    whole = len(mllm.prompt(some[0].layout, TEXTS[0]).ids)
    assert not encoded and len(lengths) == len(TEXTS) and max(lengths) < whole - int(np.prod(some[0].layout.grid))
    for ours, theirs in zip(found, fresh):
        for one, other in zip(ours, theirs):
            np.testing.assert_allclose(one.map, other.map, atol=1e-7)


def test_preparation_ends_where_the_cache_has_no_room(mllm, frames, monkeypatch):
    some = views(mllm, frames, "frames")
    one = Engine(mllm, EngineConfig(batch_tokens=1))
    finish(one.prepare(some[:1], "anything", ReadOptions(2)))
    engine = Engine(mllm, EngineConfig(batch_tokens=1, prefix_cache_mib=1))
    engine.prefixes.max_bytes = round(2.5 * one.prefixes.held_bytes)
    lengths = record_passes(monkeypatch)
    finish(engine.prepare(some, "anything", ReadOptions(2)))
    assert engine.are_ready(some, ReadOptions(2)) == [True, True, *[False] * (len(some) - 2)]
    assert len(lengths) == 2
    # The window moves on: what left it gives way.
    engine.new_round(some[1:], "anything")
    finish(engine.prepare(some[1:], "anything", ReadOptions(2)))
    assert engine.are_ready(some[:4], ReadOptions(2)) == [False, True, True, False]
    assert len(lengths) == 3


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_chunks_of_a_prefix_change_nothing(mllm, frames, kind, monkeypatch):
    """As on a slow device: every unit has the least size."""
    some = views(mllm, frames[:4], kind)
    options = ReadOptions(1, max_new_tokens=2)
    whole = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS, options))
    engine = Engine(mllm, EngineConfig())
    monkeypatch.setattr("decaf_ros.grounding.pace.STEP_TOKENS", 7)
    engine.pace.unit_ms = 1e-6
    lengths = record_passes(monkeypatch)
    parts = finish(engine.ask(some, TEXTS, options))
    assert len(lengths) > 4 + len(TEXTS)
    for ours, theirs in zip(parts, whole):
        for one, other in zip(ours, theirs):
            assert one.answer == other.answer
            np.testing.assert_allclose(one.map, other.map, atol=1e-7)


def test_a_pass_that_fails_leaves_the_prefix_as_it_was(mllm, frames, monkeypatch):
    engine, some = Engine(mllm, EngineConfig()), views(mllm, frames[:4], "video")
    expected = finish(engine.ask(some, TEXTS[:1], ReadOptions(2)))[0][0].map

    def failing_decode(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("decaf_ros.grounding.prefix.decode", failing_decode)
        with pytest.raises(RuntimeError, match="out of memory"):
            finish(engine.ask(some, TEXTS[1:], ReadOptions(2, max_new_tokens=4)))
    engine.results.drop((some[0].key, TEXTS[0], ReadOptions(2)))
    hits = engine.prefixes.hits
    np.testing.assert_allclose(finish(engine.ask(some, TEXTS[:1], ReadOptions(2)))[0][0].map, expected, atol=1e-7)
    assert engine.prefixes.hits == hits + 1


def test_prefixes_are_found_again_in_another_window(mllm, frames, monkeypatch):
    """Frames of one batch stay together in later windows; equal frames count once."""
    some = views(mllm, (*frames, frames[0]), "frames")
    engine = Engine(mllm, EngineConfig(batch_tokens=3 * len(mllm.prompt(some[0].layout, TEXTS[1]).ids)))
    finish(engine.ask(some[:6], TEXTS[1:], ReadOptions(2)))
    assert [len(key) for key in engine.prefixes] == [3, 3]
    encoded = record_encoding(monkeypatch, mllm)
    found = finish(engine.ask(some[1:], TEXTS[:1], ReadOptions(2)))
    # Two of the first three are wanted and cached, and the last frame equals the first.
    assert sum(count for _, count in encoded) == 3 and len(engine.prefixes) == 3
    fresh = finish(Engine(mllm, EngineConfig()).ask(some[1:], TEXTS[:1], ReadOptions(2)))
    for ours, theirs in zip(found[0], fresh[0]):
        np.testing.assert_allclose(ours.map, theirs.map, atol=1e-7)
        assert ours.map.base is None, "a slice would keep the whole batch's array"
