from __future__ import annotations

import numpy as np
import pytest

from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, replace
from decaf_ros.grounding.grounder import STAGES, Grounder, category_of
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Answer
from decaf_ros.grounding.prefix import Prefix
from decaf_ros.grounding.prompts import background_prompt, choice_prompt, object_prompt
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Frame, Window


@pytest.fixture(scope="module")
def mllm(tiny_mllm_dir):
    return load_mllm(MllmConfig(checkpoint=str(tiny_mllm_dir), local_files_only=True, video_tokens=48, dtype="float32"))


@pytest.fixture(scope="module")
def grounder(mllm):
    return Grounder(mllm)


@pytest.fixture(scope="module")
def window():
    rng = np.random.default_rng(0)
    return Window(tuple(Frame(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8), i + 1, "cam", i) for i in range(5)))


def ground(grounder, window, query="The red ball", **changes):
    progress = []
    clock = StageClock(STAGES, lambda stage, fraction: progress.append((stage, fraction)))
    return finish(grounder.ground(window, query, _config(**changes), clock)), progress


def _config(**changes):
    """This random model ends no answer, so a low limit of tokens saves time."""
    changes = {"mllm__max_new_tokens": 4} | changes
    return replace(DecafConfig(), {name.replace("__", "."): value for name, value in changes.items()})


def test_paper_mode_decodes_a_category_and_maps_have_the_grids(grounder, window):
    result, progress = ground(grounder, window)
    assert result.maps.video.object.shape == (3, 3, 5)
    assert result.maps.frames.object.shape == (5, 6, 10)
    assert result.maps.fused.shape == (5, 6, 10)
    assert result.maps.fused.min() == 0 and result.maps.fused.max() == 1
    assert len(result.answers) == 1 + 5 and all(result.answers)
    assert [stage for stage, _ in progress if stage != "frames_object" and stage != "frames_background"] == [
        stage for stage in STAGES if stage not in ("frames_object", "frames_background")
    ]
    assert all(earlier <= later for (_, earlier), (_, later) in zip(progress, progress[1:]))


def test_fast_mode_decodes_nothing(grounder, window):
    result, progress = ground(grounder, window, grounding__mode="fast")
    assert result.category == "" and result.answers == ()
    assert "category" not in {stage for stage, _ in progress}


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_the_question_is_one_more_suffix_and_changes_nothing_else(mllm, window, monkeypatch, mode):
    encoded = []
    monkeypatch.setattr(mllm, "encode", lambda *args, encode=mllm.encode: encoded.append(1) or encode(*args))
    results, progress, calls = {}, {}, {}
    for ask in (True, False):
        encoded.clear()
        results[ask], progress[ask] = ground(Grounder(mllm), window, grounding__mode=mode, presence__ask=ask)
        calls[ask] = len(encoded)
    assert calls[True] == calls[False]
    assert 0 < results[True].asked < 1 and results[False].asked is None
    np.testing.assert_array_equal(results[True].maps.fused, results[False].maps.fused)
    assert results[True].category == results[False].category
    stages = {ask: [stage for stage, _ in progress[ask]] for ask in progress}
    assert [stage for stage in stages[True] if stage != "questions"] == stages[False]


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_questions_asked_together_get_their_own_answers(mllm, window, monkeypatch, mode):
    queries, config = ["the red ball", "a blue cube"], _config(grounding__mode=mode)
    alone = [finish(Grounder(mllm).ground(window, query, config, StageClock(STAGES))) for query in queries]
    suffixes, forward_suffix = [], Prefix.forward_suffix

    def counted(self, mllm, prompt, *options, **named):
        suffixes.append(prompt)
        return forward_suffix(self, mllm, prompt, *options, **named)

    monkeypatch.setattr(Prefix, "forward_suffix", counted)
    shared, counts = Grounder(mllm), []
    for query, expected in zip(queries, alone):
        found = finish(shared.ground(window, query, config, StageClock(STAGES), lambda: queries))
        counts.append(len(suffixes))
        assert (found.category, found.answers) == (expected.category, expected.answers)
        assert np.abs(found.maps.fused - expected.maps.fused).max() <= 1e-4
        for ours, theirs in ((found.maps.video, expected.maps.video), (found.maps.frames, expected.maps.frames)):
            assert np.abs(ours.object - theirs.object).max() <= 1e-6
            assert np.abs(ours.background - theirs.background).max() <= 1e-6
        assert found.asked == pytest.approx(expected.asked, abs=1e-5)
    # Video and frames: in mode `paper` two objects, then a background each; in mode `fast` all in the first. Presence.
    assert counts == ([7, 7 + 3] if mode == "paper" else [9, 9 + 1])


def test_without_the_video_branch_every_frame_is_asked(grounder, window, monkeypatch):
    asked = []

    def margins(views, text, options):
        asked.append((len(views), text))
        yield
        return [-2.0, 1.0, -1.0, 0.0, -3.0][: len(views)]

    monkeypatch.setattr(grounder.engine, "yes_margins", margins)
    frames, _ = ground(grounder, window, grounding__branches="frames")
    assert frames.asked == pytest.approx(1 / (1 + np.exp(-1)))
    video, _ = ground(grounder, window, grounding__branches="video")
    assert video.asked == pytest.approx(1 / (1 + np.exp(2)))
    assert [count for count, _ in asked] == [5, 1]
    assert "in the image" in asked[0][1] and "in the video" in asked[1][1] and "the red ball." in asked[0][1]


@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_the_number_is_asked_of_the_words_alone(mllm, window, monkeypatch, mode):
    grounder = Grounder(mllm)
    asked = []

    def margin(text, answer, other):
        asked.append((text, answer, other))
        return 0.5 if "balls" in text else -0.5

    monkeypatch.setattr(grounder.engine, "margin", margin)
    options = {"grounding__mode": mode, "grounding__number": "ask"}
    assert ground(grounder, window, "The red BALLS", **options)[0].means_several is True
    assert ground(grounder, window, "The red ball", **options)[0].means_several is False
    assert [(answer, other) for _, answer, other in asked] == [("several", "one")] * 2
    assert asked[0][0].startswith("the red balls.\n") and asked[0][0].endswith("one or several.")
    for number, expected in (("any", None), ("one", False), ("several", True)):
        assert ground(grounder, window, grounding__number=number)[0].means_several is expected
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("choice", "candidates", "category"),
    [
        (("Mug.", True), [("cup", True)], "Mug"),
        (("The object is the", False), [("cup", True), ("mug.", True), ("mug", True), ("a, b and", False)], "mug"),
        (("The object is the", False), [("cup", True), ("mug", True)], "cup"),
        (("", True), [("", True), ("a, b and", False), ("a, b and", False), ("mug", True)], "mug"),
        (("The object is the", False), [("a, b and", False), ("", True)], ""),
    ],
)
def test_an_answer_that_was_cut_off_is_no_category(choice, candidates, category):
    assert category_of(Answer(*choice), [Answer(*candidate) for candidate in candidates]) == category


def test_without_a_category_the_background_prompt_names_the_query(grounder, window):
    cut, _ = ground(grounder, window)
    named, _ = ground(grounder, window, grounding__background_prompt="v3")
    assert cut.category == "" and all(cut.answers)
    np.testing.assert_array_equal(cut.maps.video.background, named.maps.video.background)


def test_the_most_frequent_candidate_takes_the_place_of_a_choice_that_was_cut_off(mllm, window, monkeypatch):
    """The real model's candidates end at the first token, its choice does not."""
    grounder, ends = Grounder(mllm), list(range(len(mllm.tokenizer)))
    monkeypatch.setattr(mllm.tokenizer, "decode", lambda *_, **__: "Ball.")

    def answer(text, max_new_tokens, answer=grounder.engine.answer):
        with monkeypatch.context() as patch:
            patch.setattr(mllm.model.generation_config, "eos_token_id", mllm.tokenizer.eos_token_id)
            found = yield from answer(text, max_new_tokens)
        assert not found.finished
        return found

    monkeypatch.setattr(mllm.model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(grounder.engine, "answer", answer)
    result, _ = ground(grounder, window)
    assert result.category == "ball" and set(result.answers) == {"ball."}


@pytest.mark.parametrize(("wording", "category"), [("paper", "Red Ball"), ("published", "red ball.")])
def test_every_prompt_has_the_configured_wording(grounder, window, monkeypatch, wording, category):
    """The real model answers; its candidates and its choice are then replaced."""
    asked, ask, answer = [], grounder.engine.ask, grounder.engine.answer

    def spy(views, texts, *options):
        asked.extend(texts)
        answers = yield from ask(views, texts, *options)
        return [[result._replace(answer="A Ball", finished=True) for result in results] for results in answers]

    def choose(text, max_new_tokens):
        asked.append(text)
        assert (yield from answer(text, max_new_tokens)).text
        return Answer("Red Ball.", True)

    monkeypatch.setattr(grounder.engine, "ask", spy)
    monkeypatch.setattr(grounder.engine, "answer", choose)
    query = "The red ball"
    result, _ = ground(grounder, window, query, grounding__wording=wording)
    assert result.category == category
    about = object_prompt(query, "original", wording)
    choice = choice_prompt(query, ("a ball",) * 6, "original", wording)
    background = background_prompt(query, category, "original", wording)
    assert asked == [about, about, choice, background, background]
    asked.clear()
    ground(grounder, window, query, grounding__wording=wording, grounding__mode="fast")
    assert asked == [about, background_prompt(query, "", "v3", wording)] * 2


def test_the_query_matters(grounder, window):
    first, _ = ground(grounder, window, "the red ball")
    second, _ = ground(grounder, window, "what was just put down?")
    assert np.abs(first.maps.video.object - second.maps.video.object).max() > 0


def test_batch_size_changes_nothing(mllm, window):
    one_by_one, _ = ground(Grounder(mllm, EngineConfig(batch_tokens=1)), window)
    all_at_once, _ = ground(Grounder(mllm, EngineConfig(batch_tokens=6400)), window)
    np.testing.assert_allclose(one_by_one.maps.frames.object, all_at_once.maps.frames.object, atol=1e-6)
    assert one_by_one.answers == all_at_once.answers


def test_ablations(grounder, window):
    video, _ = ground(grounder, window, grounding__branches="video")
    assert video.maps.frames is None and video.maps.fused.shape == (5, 3, 5) and len(video.answers) == 1
    frames, _ = ground(grounder, window, grounding__branches="frames")
    assert frames.maps.video is None and len(frames.answers) == 5
    plain, _ = ground(grounder, window, grounding__contrast=False)
    assert plain.maps.video.background.max() == 0
    layers = {start: ground(grounder, window, grounding__start_layer=start)[0] for start in (-1, 0, 2)}
    np.testing.assert_array_equal(layers[-1].maps.video.object, layers[2].maps.video.object)
    assert np.abs(layers[0].maps.video.object - layers[2].maps.video.object).max() > 0


def test_every_prompt_variant_runs(grounder, window, monkeypatch):
    def answer(*_):
        yield
        return Answer("ball", True)

    monkeypatch.setattr(grounder.engine, "answer", answer)
    maps = []
    for variant in ("original", "v1", "v2", "v3"):
        changes = {f"grounding__{kind}_prompt": variant for kind in ("object", "background", "choice")}
        maps.append(ground(grounder, window, **changes)[0].maps.video)
    for first, second in zip(maps, maps[1:]):
        assert np.abs(first.object - second.object).max() > 0
        assert np.abs(first.background - second.background).max() > 0


def test_a_missing_start_layer_raises(grounder, window):
    with pytest.raises(ValueError, match="grounding.start_layer: expected a layer below 4, got 9"):
        ground(grounder, window, grounding__start_layer=9)


def test_a_listener_may_abort(grounder, window):
    def abort(stage, fraction):
        if stage == "frames_object":
            raise InterruptedError(stage)

    with pytest.raises(InterruptedError):
        finish(grounder.ground(window, "it", DecafConfig(), StageClock(STAGES, abort)))
