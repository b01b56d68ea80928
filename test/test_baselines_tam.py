"""TAM by hand, and on a tiny model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from decaf_ros.config import DecafConfig, MllmConfig, replace
from decaf_ros.evaluation.baselines import tam
from decaf_ros.evaluation.baselines.method import Judged, Models
from decaf_ros.evaluation.baselines.registry import MethodSpec, make_method
from decaf_ros.evaluation.baselines.tam_maps import activations, explained, rank_gaussian_filter, without_interference
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.pipeline import STAGES
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Frame, Window


def test_activation_is_the_part_of_the_logit_that_each_state_gives():
    states = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
    rows = torch.tensor([[2.0, 1.0], [0.0, 5.0]])
    assert activations(states, rows).tolist() == [[2.0, 2.0, 5.0], [0.0, 10.0, 0.0]]


def test_interference_is_subtracted_at_the_scale_that_fits_best():
    """Earlier tokens with relevance 3 and 1: interference (3 (4, 0, 0, 0) + (0, 4, 0, 0)) / 4 = (3, 1, 0, 0). The best
    scale for (7, 1, 5, 0) is (7 x 3 + 1 x 1) / (3 x 3 + 1 x 1) = 2.2, which leaves (0.4, -1.2, 5, 0)."""
    earlier = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 4.0, 0.0, 0.0]])
    left = without_interference(torch.tensor([7.0, 1.0, 5.0, 0.0]), earlier, torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(left, torch.tensor([0.4, 0.0, 5.0, 0.0]))


@pytest.mark.parametrize(("earlier", "relevance"), [([], []), ([[1.0, 2.0]], [0.0]), ([[0.0, 0.0]], [1.0])])
def test_without_relevant_earlier_tokens_nothing_is_subtracted(earlier, relevance):
    activation = torch.tensor([1.0, 3.0])
    before = torch.tensor(earlier).reshape(-1, 2)
    assert without_interference(activation, before, torch.tensor(relevance)).tolist() == [1.0, 3.0]


def test_earlier_tokens_count_and_equal_ones_do_not():
    """Token 2 equals token 0 and is explained by token 1 alone, of which 6 x 2 / (2 x 2) = 3 are subtracted."""
    seen = torch.tensor([[6.0, 1.0], [2.0, 0.0], [6.0, 1.0], [9.0, 9.0]])
    heard = torch.tensor([[9.0] * 4, [9.0] * 4, [5.0, 1.0, 8.0, 7.0], [9.0] * 4])
    assert explained(2, torch.tensor([8, 5, 8, 5]), seen, heard).tolist() == [0.0, 1.0]
    # For the first one there is none.
    assert explained(0, torch.tensor([8, 5, 8, 5]), seen, heard).tolist() == [6.0, 1.0]


def test_filter_weighs_ranks_by_the_coefficient_of_variation():
    """The centre of a 3 x 3 map: eight cells of 1 and one of 10. Mean 2, deviation sqrt(8), coefficient sqrt(2): the
    weight of the outlier, four ranks from the median, is exp(-16 / 4), against 1 + 2 (exp(-1/4) + exp(-1) +
    exp(-9/4)) + exp(-4) of the others."""
    grid = torch.ones(1, 3, 3)
    grid[0, 0, 2] = 10.0
    outlier = math.exp(-4)
    others = 1 + 2 * (math.exp(-0.25) + math.exp(-1) + math.exp(-2.25)) + math.exp(-4)
    expected = (others + 10 * outlier) / (others + outlier)
    assert rank_gaussian_filter(grid)[0, 1, 1].item() == pytest.approx(expected, rel=1e-5)


def test_filter_removes_a_single_cell_and_keeps_areas():
    grid = torch.zeros(2, 5, 6)
    grid[0, 2, 2] = 1.0
    grid[1, 1:5, 1:5] = 1.0
    filtered = rank_gaussian_filter(grid)
    assert filtered[0].max() < 0.1
    torch.testing.assert_close(filtered[1, 2:4, 2:4], torch.ones(2, 2))
    assert (filtered[1, :, 5] < 0.5).all() and torch.isfinite(filtered).all()
    torch.testing.assert_close(rank_gaussian_filter(torch.ones(1, 2, 3)), torch.ones(1, 2, 3))


@pytest.fixture(scope="module")
def models(tiny_mllm_dir):
    config = MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32")
    return Models(load_mllm(config), None)


@pytest.fixture(scope="module")
def window():
    rng = np.random.default_rng(0)
    return Window(tuple(Frame(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(4)))


CONFIG = replace(DecafConfig(), {"mllm.max_new_tokens": 3})


def ground(method, window):
    return finish(method.grounder.ground(window, "a dog", CONFIG, StageClock(STAGES)))


def test_maps_equal_those_of_one_pass_over_prompt_and_answer(models, window, monkeypatch):
    """The states come from several passes over a cache. Here: one pass without, and the formula written out."""
    seen = {}
    read, decode = tam.answer_maps, tam.decode_ids

    def answer_maps(mllm, prompt, features, count):
        seen["prompt"], seen["features"] = prompt, features
        seen["result"] = yield from read(mllm, prompt, features, count)
        return seen["result"]

    def decode_ids(*args):
        seen["answers"] = yield from decode(*args)
        return seen["answers"]

    monkeypatch.setattr(tam, "answer_maps", answer_maps)
    monkeypatch.setattr(tam, "decode_ids", decode_ids)
    grounding = ground(make_method(models, CONFIG, MethodSpec("tam")), window)
    (_, maps), ((answer, _),) = seen["result"], seen["answers"]
    assert len(maps) == len(answer) == 3 and grounding.answers == (grounding.category,)
    fused = np.repeat((maps[0] - maps[0].min()) / np.ptp(maps[0]), 2, axis=0)
    np.testing.assert_allclose(grounding.maps.fused, fused, rtol=1e-5)

    prompt, model = seen["prompt"], models.mllm.model
    with torch.no_grad():
        inputs = models.mllm.embed(prompt.ids.clone(), prompt.slots, [seen["features"]])["inputs_embeds"].clone()
        inputs = torch.cat([inputs, model.get_input_embeddings()(torch.tensor([answer]))], dim=1)
        after = int(prompt.positions.max()) + torch.arange(1, 4)
        positions = torch.cat([prompt.positions, after.expand(3, -1)], dim=1)[:, None]
        states = model.get_decoder()(inputs_embeds=inputs, position_ids=positions).last_hidden_state[0]
        head = model.get_output_embeddings().weight
        ids = [*prompt.ids.tolist(), *answer]
        control = set(models.mllm.tokenizer.get_added_vocab().values())
        for place, found in enumerate(maps, len(prompt.ids)):
            assert ids[place] == int((head @ states[place - 1]).argmax())
            spoken = range(int(prompt.cells.max()) + 1, place)
            before = [one for one in spoken if ids[one] not in control | {ids[place]}]
            relevance = (states[before] @ head[ids[place]]).clamp(min=0)
            others = (states[prompt.cells] @ head[[ids[one] for one in before]].T).clamp(min=0)
            interference = others @ relevance / relevance.sum()
            activation = (states[prompt.cells] @ head[ids[place]]).clamp(min=0)
            scale = (activation * interference).sum() / (interference**2).sum()
            left = (activation - scale * interference).clamp(min=0).reshape(prompt.grid)
            np.testing.assert_allclose(found, rank_gaussian_filter(left).numpy(), rtol=1e-3, atol=1e-3)


def test_the_best_token_is_chosen_by_the_truth_and_only_by_it(models, window):
    best = make_method(models, CONFIG, MethodSpec("tam-best"))
    assert isinstance(best, Judged) and not isinstance(make_method(models, CONFIG, MethodSpec("tam")), Judged)
    with pytest.raises(ValueError, match="tam-best: expected the truth"):
        ground(best, window)
    seen = []
    best.judge(lambda fused: float(seen.append(fused) or len(seen) == 3))
    assert (ground(best, window).maps.fused == seen[2]).all()
    assert len(seen) == 3 and (seen[2] != seen[0]).any()


def test_a_model_without_a_matrix_of_words_is_told(models, window, monkeypatch):
    monkeypatch.setattr(models.mllm.model, "get_output_embeddings", lambda: torch.nn.Identity())
    with pytest.raises(ValueError, match="tam: expected an output layer with a matrix of weights, got Identity"):
        ground(make_method(models, CONFIG, MethodSpec("tam")), window)


def test_an_answer_without_words_has_an_empty_map(models, window, monkeypatch):
    def decode_ids(*_):
        yield
        return [([], True)]

    monkeypatch.setattr(tam, "decode_ids", decode_ids)
    found = ground(make_method(models, CONFIG, MethodSpec("tam")), window)
    assert found.category == "" and found.maps.fused.shape[0] == 4 and not found.maps.fused.any()


def test_a_baseline_always_answers(models):
    config = replace(CONFIG, {"presence.threshold": 0.9, "segmentation.fallback": "none"})
    baseline = make_method(models, config, MethodSpec("tam")).config
    assert (baseline.presence.threshold, baseline.segmentation.fallback) == (0.0, "best")
    assert make_method(models, config, MethodSpec()).config == config


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="expected one of decaf, rollout-mean, .*, got 'tams'"):
        MethodSpec("tams")
