"""The engine against one full pass per prompt, and with its caches on, off and full."""

from __future__ import annotations

import gc
import logging
import weakref

import numpy as np
import pytest
import torch

from benchmarks.literal import literal_rollout
from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, replace
from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.caches import ByteCache
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import forward
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Frame, Window

TEXTS = ["What is meant by the red ball?", "Describe the surroundings of it, and nothing else."]


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    options = {"local_files_only": True, "device": "cpu", "video_tokens": 48, "dtype": "float32"}
    return load_mllm(MllmConfig(str(tiny_mllm_dir), **options))


@pytest.fixture(scope="module")
def frames():
    rng = np.random.default_rng(0)
    return tuple(Frame(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(9))


def views(mllm, frames, kind):
    if kind == "video":
        return [View(mllm.layout("video", len(frames), frames[0].size_hw), frames)]
    layout = mllm.layout("frames", 1, frames[0].size_hw)
    return [View(layout, (frame,)) for frame in frames]


def full_pass(mllm, view, text, method, start_layer):
    """Eq. 1-4 on the attention of one pass over the whole prompt."""
    prompt = mllm.prompt(view.layout, text)
    images = np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])
    inputs = mllm.embed(prompt.ids, prompt.slots, [mllm.encode(view.layout, images)])
    output = forward(mllm.model, inputs, prompt.positions, None, start_layer, wants_token=True)
    row = literal_rollout(output.layers, prompt.visual[None], method)[0]
    return row[prompt.cells].reshape(prompt.grid).numpy()


@pytest.mark.parametrize("kind", ["video", "frames"])
@pytest.mark.parametrize("method", ["v_max", "max", "mean"])
def test_maps_equal_one_full_pass(mllm, frames, kind, method):
    engine = Engine(mllm, EngineConfig())
    some = views(mllm, frames[:5], kind)
    together = finish(engine.ask(some, TEXTS, ReadOptions(2, method, block=7)))
    later = finish(engine.ask(some, ["And this?"], ReadOptions(2, method, block=64)))
    for text, results in zip([*TEXTS, "And this?"], [*together, *later]):
        for view, result in zip(some, results):
            expected = full_pass(mllm, view, text, method, 2)
            assert result.map.shape == view.layout.grid
            assert np.abs(result.map - expected).max() <= 1e-6 and expected.max() > 1e-4


def test_a_lower_start_layer_is_recorded_anew_and_a_higher_one_is_not(mllm, frames, monkeypatch):
    engine = Engine(mllm, EngineConfig())
    some = views(mllm, frames[:2], "video")
    encoded = record_encoding(monkeypatch, mllm)
    for start in (2, 1, 3):
        result = finish(engine.ask(some, TEXTS[:1], ReadOptions(start)))[0][0]
        assert np.abs(result.map - full_pass(mllm, some[0], TEXTS[0], "v_max", start)).max() <= 1e-6
    prefix = engine.prefixes.get((some[0].key,))
    assert (
        prefix.first_layer == 1 and encoded.count(("video", 1)) == 1 + 3
    )  # once by the engine, three times by full_pass


def record_encoding(monkeypatch, mllm):
    """Records every call of the vision tower as (kind, number of units)."""
    calls, encode = [], mllm.encode

    def recording_encode(layout, images):
        calls.append((layout.kind, len(images)))
        return encode(layout, images)

    monkeypatch.setattr(mllm, "encode", recording_encode)
    return calls


def test_nothing_is_computed_past_the_last_layers_queries_and_keys(mllm, frames, monkeypatch):
    calls = []
    layer = mllm.model.get_decoder().layers[-1]
    handle = layer.mlp.register_forward_hook(lambda *_: calls.append(1))
    head = mllm.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    try:
        engine = Engine(mllm, EngineConfig())
        finish(engine.ask(views(mllm, frames[:4], "video"), TEXTS, ReadOptions(2)))
        assert not calls
        finish(engine.ask(views(mllm, frames[:4], "video"), TEXTS, ReadOptions(2, max_new_tokens=1)))
        assert calls
    finally:
        handle.remove(), head.remove()


def test_a_pass_that_ends_early_keeps_no_tensor_alive(mllm, frames):
    (view,) = views(mllm, frames[:4], "video")
    prompt = mllm.prompt(view.layout, TEXTS[0])
    images = np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])
    inputs = mllm.embed(prompt.ids, prompt.slots, [mllm.encode(view.layout, images)])
    tensor = weakref.ref(inputs["inputs_embeds"])
    gc.disable()  # on a GPU it rarely runs in time
    try:
        forward(mllm.model, inputs, prompt.positions, None, 2, wants_token=False)
        del inputs
        assert tensor() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", ["fast", "paper"])
def test_caches_change_nothing(mllm, frames, monkeypatch, mode):
    """Overlapping windows, two queries each: with all caches, without, with room for some prefixes, and by default."""
    config = replace(DecafConfig(), {"grounding.mode": mode, "mllm.max_new_tokens": 8})
    off = EngineConfig(prefix_cache_mib=0, feature_cache_mib=0, map_cache_mib=0)
    tight = EngineConfig(prefix_cache_mib=1, batch_tokens=200)
    grounders = [Grounder(mllm, engine) for engine in (EngineConfig(prefix_cache_mib=64), off, tight, EngineConfig())]
    for window in (Window(frames[:6]), Window(frames[2:8]), Window(frames[3:9])):
        for query in ("the red ball", "what was put down"):
            found = [finish(one.ground(window, query, config, StageClock(STAGES))) for one in grounders]
            for other in found[1:]:
                assert (other.category, other.answers) == (found[0].category, found[0].answers)
                for branch in ("video", "frames"):
                    for name in ("object", "background"):
                        ours, theirs = (getattr(getattr(one.maps, branch), name) for one in (found[0], other))
                        # Not exact: the vision tower's sums depend on the batch size.
                        np.testing.assert_allclose(ours, theirs, atol=1e-8)
                np.testing.assert_allclose(other.maps.fused, found[0].maps.fused, atol=1e-5)
    assert not grounders[1].engine.prefixes.held_bytes and not grounders[1].engine.features.held_bytes
    assert 0 < grounders[2].engine.prefixes.held_bytes <= 2**20 < grounders[0].engine.prefixes.held_bytes


def test_an_overlapping_window_encodes_only_its_new_frames(mllm, frames, monkeypatch):
    grounder = Grounder(mllm)
    config = replace(DecafConfig(), {"grounding.mode": "fast"})
    finish(grounder.ground(Window(frames[:6]), "the red ball", config, StageClock(STAGES)))
    encoded = record_encoding(monkeypatch, mllm)
    finish(grounder.ground(Window(frames[2:8]), "the red ball", config, StageClock(STAGES)))
    assert sorted(encoded) == [("frames", 2), ("video", 1)]
    encoded.clear()
    # Another query reuses the features; a repeated query runs nothing.
    finish(grounder.ground(Window(frames[2:8]), "the blue cube", config, StageClock(STAGES)))
    assert encoded == []
    with record_attention(0) as recording:
        finish(grounder.ground(Window(frames[2:8]), "the blue cube", config, StageClock(STAGES)))
    assert recording.layers == []


def test_equal_images_share_entries_despite_different_stamps(mllm, frames, monkeypatch):
    encoded = record_encoding(monkeypatch, mllm)
    engine = Engine(mllm, EngineConfig())
    again = [Frame(frame.image.copy(), frame.stamp_ns + 10**9) for frame in frames[:2]]
    first = finish(engine.ask(views(mllm, frames[:2], "frames"), TEXTS[:1], ReadOptions(2)))
    second = finish(engine.ask(views(mllm, tuple(again), "frames"), TEXTS[:1], ReadOptions(2)))
    assert len(encoded) == 1 and all((a.map == b.map).all() for a, b in zip(first[0], second[0]))


@pytest.mark.parametrize("units", [1, 2, 4, 8])
def test_an_abandoned_call_leaves_a_working_engine(mllm, frames, units):
    engine = Engine(mllm, EngineConfig(batch_tokens=1))
    some = views(mllm, frames[:3], "frames")
    task = engine.ask(some, TEXTS, ReadOptions(2, max_new_tokens=2))
    for _ in range(units):
        next(task)
    task.close()
    results = finish(engine.ask(some, TEXTS, ReadOptions(2)))
    fresh = finish(Engine(mllm, EngineConfig(batch_tokens=1)).ask(some, TEXTS, ReadOptions(2)))
    for ours, theirs in zip(results, fresh):
        assert all((a.map == b.map).all() for a, b in zip(ours, theirs))


def _counted_passes(monkeypatch):
    """Lengths of the passes through the language model."""
    lengths = []

    def counted(model, inputs, *args, **kwargs):
        lengths.append(inputs["inputs_embeds"].shape[1])
        return forward(model, inputs, *args, **kwargs)

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", counted)
    return lengths


@pytest.mark.parametrize("kind", ["video", "frames"])
def test_a_prepared_view_needs_its_suffixes_only(mllm, frames, kind, monkeypatch):
    some = views(mllm, frames[:4], kind)
    fresh = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS, ReadOptions(2)))
    engine = Engine(mllm, EngineConfig())
    assert not any(engine.are_ready(some, ReadOptions(2)))
    finish(engine.prepare(some, "anything", ReadOptions(2)))
    assert all(engine.are_ready(some, ReadOptions(2)))
    assert not any(engine.are_ready(some, ReadOptions(1))), "its lower layers are not recorded"
    encoded, lengths = record_encoding(monkeypatch, mllm), _counted_passes(monkeypatch)
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
    lengths = _counted_passes(monkeypatch)
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
    sizes = []
    monkeypatch.setattr("decaf_ros.grounding.pace.STEP_TOKENS", 7)
    engine.pace.unit_ms = 1e-6

    def counted(model, inputs, *args, **kwargs):
        sizes.append(inputs["inputs_embeds"].shape[1])
        return forward(model, inputs, *args, **kwargs)

    monkeypatch.setattr("decaf_ros.grounding.prefix.forward", counted)
    parts = finish(engine.ask(some, TEXTS, options))
    assert len(sizes) > 4 + len(TEXTS)
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


def test_an_answer_holds_no_control_token(mllm, frames, monkeypatch):
    """Some control tokens are not special tokens; the next prompt would be refused as if the user had typed them."""
    monkeypatch.setattr(mllm.tokenizer, "decode", lambda *_, **__: "a <|video_pad|>ball")
    # Every answer ends at once.
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", list(range(len(mllm.tokenizer))))
    config = replace(DecafConfig(), {"grounding.mode": "paper"})
    found = finish(Grounder(mllm).ground(Window(frames[:2]), "the red ball", config, StageClock(STAGES)))
    assert found.category == "a ball" and set(found.answers) == {"a ball"}


@pytest.mark.parametrize("configured", [True, False], ids=["generation config", "tokenizer"])
def test_an_answer_is_finished_if_its_end_token_came(mllm, monkeypatch, configured):
    engine = Engine(mllm, EngineConfig())
    inputs = mllm.prompt(None, TEXTS[0]).ids[None]
    tokens = mllm.model.generate(input_ids=inputs, max_new_tokens=5, do_sample=False)[0, inputs.shape[1] :].tolist()
    assert len(set(tokens)) == 5
    end = tokens[3]
    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", end if configured else tokens[4])
    text, own_end = " ".join(mllm.tokenizer.decode(tokens[:3]).split()), mllm.tokenizer.eos_token
    try:
        if not configured:
            mllm.tokenizer.eos_token = mllm.tokenizer.convert_ids_to_tokens(end)
        for limit, finished in ((3, False), (4, True), (128, True)):
            assert finish(engine.answer(TEXTS[0], limit)) == (text, finished)
    finally:
        mllm.tokenizer.eos_token = own_end


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
    assert len(messages) == 2 and f"needs {held[1] // 2**20} MiB; free on cpu" in messages[1]


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
    assert "so some of its prefixes run again" in caplog.text
    np.testing.assert_allclose(found.maps.video.object, expected.maps.video.object, atol=1e-6)


def test_byte_cache_keeps_entries_used_in_the_round():
    cache: ByteCache[str, str] = ByteCache(10)
    assert cache.put("a", "A", 4) and cache.put("b", "B", 4)
    assert not cache.put("c", "C", 4) and cache.get("c") is None  # an oversized round keeps its first part
    cache.new_round()
    assert cache.get("a") == "A"
    assert cache.put("c", "C", 4) and cache.get("b") is None and cache.get("a") == "A"
    assert not cache.put("d", "D", 11) and len(cache) == 2 and cache.held_bytes == 8
    assert cache.put("a", "AA", 6) and cache.get("a") == "AA" and cache.held_bytes == 10
