"""The engine against one full pass per prompt, and with its caches on, off and tight; its answers."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from engine_views import TEXTS, load_tiny, random_frames, record_encoding, views

from benchmarks.literal import literal_rollout
from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.attention_tap import record_attention
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.mllm import forward
from decaf_ros.grounding.rollout import rollout_steps
from decaf_ros.grounding.views import ReadOptions
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Frame, Window


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_tiny(tiny_mllm_dir)


@pytest.fixture(scope="module")
def frames():
    return random_frames()


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


@pytest.mark.parametrize("tokens", [0, 3])
def test_texts_of_later_questions_share_the_rollout(mllm, frames, monkeypatch, tokens):
    """They change no result, and cost nothing later. Some are cached already, or for one of the views."""
    options = ReadOptions(2, block=7, max_new_tokens=tokens)
    passes, some = [], views(mllm, frames[:4], "frames")
    monkeypatch.setattr("decaf_ros.grounding.engine.rollout_steps", _counted(rollout_steps, passes))
    alone = [finish(Engine(mllm, EngineConfig()).ask(some, [text], options))[0] for text in TEXTS]
    engine = Engine(mllm, EngineConfig())
    finish(engine.ask(some[:1], TEXTS[1:], options))
    del passes[:]
    (first,) = finish(engine.ask(some, TEXTS[:1], options, lambda: [*TEXTS, *TEXTS]))
    count = len(passes)
    assert count > 0
    later = finish(engine.ask(some, TEXTS[1:], options))
    assert len(passes) == count, "no later text needs a rollout"
    finish(engine.ask(some, ["And this?"], options, lambda: TEXTS))
    assert [len(suffixes) for _, suffixes, *_ in passes[count:]] == [1] * (len(passes) - count)
    for ours, theirs in zip([first, *later], alone):
        for one, other in zip(ours, theirs):
            assert (one.answer, one.finished) == (other.answer, other.finished)
            assert np.abs(one.map - other.map).max() <= 1e-6 and other.map.max() > 1e-4


def test_a_later_question_that_no_prompt_can_hold_does_not_harm_this_one(mllm, frames):
    some, options = views(mllm, frames[:2], "frames"), ReadOptions(2)
    engine, bad = Engine(mllm, EngineConfig()), f"the mug {mllm.tokenizer.eos_token}"
    with pytest.raises(ValueError, match="control token"):
        finish(engine.ask(some, [bad], options))
    found = finish(engine.ask(some, TEXTS[:1], options, lambda: [bad, TEXTS[1]]))
    alone = finish(Engine(mllm, EngineConfig()).ask(some, TEXTS[:1], options))
    assert all(np.abs(one.map - other.map).max() <= 1e-6 for one, other in zip(found[0], alone[0]))
    assert engine.results.peek((some[0].key, TEXTS[1], options)) is not None


def test_short_of_memory_a_question_is_alone(mllm, frames, monkeypatch):
    calls = []

    def rollout(*args):
        calls.append(len(args[1]))
        if len(args[1]) > 1:
            raise torch.OutOfMemoryError("scripted")
        return (yield from rollout_steps(*args))

    monkeypatch.setattr("decaf_ros.grounding.engine.rollout_steps", rollout)
    found = finish(
        Engine(mllm, EngineConfig()).ask(views(mllm, frames[:2], "frames"), TEXTS[:1], ReadOptions(2), lambda: TEXTS)
    )
    assert len(found) == 1 and len(found[0]) == 2 and calls == [len(TEXTS), 1, 1]


def _counted(work, calls):
    def counted(*args):
        calls.append(args)
        return (yield from work(*args))

    return counted


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
