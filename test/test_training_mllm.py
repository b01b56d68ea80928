"""The MLLM's training data: true, and encoded exactly as by the adapter; and its vocabulary."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from training_scene import H, W, examples, packs, rolling_ball, sampler_of
from transformers import Qwen2TokenizerFast

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, smooth
from decaf_ros.grounding.loading import load_mllm
from decaf_tabletop.training.chat import CHAT_TEMPLATE
from decaf_tabletop.training.mllm_batches import Pack, Writer
from decaf_tabletop.training.mllm_examples import (
    FALLING_WEIGHT,
    FRAME_GRID,
    HARD_WEIGHT,
    MOVING_WEIGHT,
    NUMBER_SHARE,
    VIDEO_GRID,
    ExampleSampler,
    motion_weights,
    video_visual,
)
from decaf_tabletop.training.mllm_model import (
    ANSWERS,
    new_model,
    new_tokenizer,
    start_from,
    write_checkpoint,
)
from decaf_tabletop.training.mllm_tower import TowerTrainer, scenes
from decaf_tabletop.training.mllm_words import (
    FACT_NORM,
    GROUPS,
    NEIGHBOUR_NORM,
    NEIGHBOURS,
    OFFSETS,
    fact_vectors,
    object_facts,
    token_owners,
)
from decaf_tabletop.world.clip import CATEGORIES, COLORS, Expression, TabletopClip
from decaf_tabletop.world.expressions import MOVERS, STILL


@pytest.fixture(scope="module")
def clip() -> TabletopClip:
    return rolling_ball()


@pytest.fixture(scope="module")
def sampler(clip: TabletopClip) -> ExampleSampler:
    return sampler_of(clip)


def test_every_answer_is_one_token():
    tokenizer = new_tokenizer()
    for word in ANSWERS:
        assert len(tokenizer(word)["input_ids"]) == len(tokenizer(f" {word}")["input_ids"]) == 1


def test_fact_vectors_are_orthogonal():
    vectors = fact_vectors()
    lengths = torch.tensor([FACT_NORM] * OFFSETS["neighbours"] + [NEIGHBOUR_NORM] * len(NEIGHBOURS))
    assert torch.allclose(vectors @ vectors.T, torch.diag(lengths**2), atol=1e-4)


def test_tokens_belong_to_the_object_that_covers_them(clip: TabletopClip):
    owners = token_owners(clip.labels[:1], 2, (6, 8))
    assert set(owners[4, 1:2]) == {1} and (owners[1:3, 3:5] == 2).all() and owners[0, 0] == 0
    speck = np.zeros((1, H, W), np.uint8)
    speck[0, 10:20, 10:20] = 1
    assert (token_owners(speck, 1, (6, 8)) == 1).sum() == 1, "what can be seen at all has a token"


def test_object_facts_are_true(clip: TabletopClip):
    facts = object_facts(clip, 0, 2)
    facts_by_group = {
        group: [GROUPS[group][place] for place in facts[:, OFFSETS[group] :][:, : len(GROUPS[group])].argmax(1)]
        for group in ("category", "color", "size", "motion")
    }
    assert facts_by_group == {
        "category": ["ball", "cube"], "color": ["red", "blue"], "size": ["small", "large"], "motion": ["right", "still"]
    }  # fmt: skip
    neighbours = facts[:, OFFSETS["neighbours"] :]
    assert [[NEIGHBOURS[place] for place in np.flatnonzero(row == 1)] for row in neighbours] == [
        ["cube right", "cube behind"],
        ["ball left", "ball front"],
    ]


def test_motion_and_falls_have_a_higher_sampling_weight(clip: TabletopClip):
    video = video_visual(clip)
    assert (motion_weights(video) == MOVING_WEIGHT).all()
    still, fell = (OFFSETS["motion"] + GROUPS["motion"].index(name) for name in ("still", "fell"))
    video.facts[0, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(GROUPS["motion"])] = 0
    video.facts[1] = video.facts[0]
    video.facts[0, 1, still] = video.facts[1, 1, fell] = 1
    assert motion_weights(video).tolist() == [1.0, FALLING_WEIGHT, *[MOVING_WEIGHT] * 6]
    # Invisible objects do not count.
    video.owners[video.owners == 1] = 0
    assert (motion_weights(video) == 1).all()


def test_examples_are_true(sampler: ExampleSampler):
    covered = set()
    for example in examples(sampler):
        covered.add(example.name)
        owners = None if example.owners is None else example.owners.reshape(-1)
        text = example.text.split("\n")[0] if "What is the main" in example.text else None
        if example.kind == "background":
            # Targets: objects of the categories it does not exclude; the background if it names none.
            (excluded,) = re.findall(r"excluding any (\w+)", example.text) or [""]
            others = {"ball": {2}, "cube": {1}}.get(excluded, {0})
            assert example.answer == "wood" and set(owners[example.focus > 0]) == others, example.text
            assert example.has_targets == (others != {0})
            covered.add(f"background excludes {excluded}")
        elif example.kind == "absent" and example.visual:
            assert example.answer == "none" and (owners[example.focus > 0] == 0).all()
        elif example.name in ("motion", "temporal"):
            at_rest = "did not move" in example.text or "stays still" in example.text
            assert (example.answer, set(owners[example.focus > 0])) == (("cube", {2}) if at_rest else ("ball", {1}))
        elif example.name in ("motion frame", "temporal frame"):
            # Targets: objects of the category the background question names; both if it names none.
            at_rest = "did not move" in example.text or "stays still" in example.text
            focused = set(owners[example.focus > 0])
            assert example.answer == "object" and focused in ({2} if at_rest else {1}, {1, 2})
            covered.add(f"{example.name} at {len(focused)}")
        elif example.kind in ("explicit", "attribute", "size") and text:
            is_ball = any(word in text for word in ("red", "small", "ball"))
            assert (example.answer, set(owners[example.focus > 0])) == (("ball", {1}) if is_ball else ("cube", {2}))
        elif example.kind == "relation" and text:
            # With two objects, the target is the one that is not the anchor.
            to_ball = "ball" in text or "red" in text
            assert (example.answer, set(owners[example.focus > 0])) == (("cube", {2}) if to_ball else ("ball", {1}))
        elif example.kind == "choice":
            assert example.answer in example.text
        elif example.kind == "number":
            assert example.answer == "one" and not example.visual
        elif example.kind == "presence":
            assert not example.focus.any() and not example.has_targets
            words = set(re.findall(r"\w+", example.text.split("\n")[0]))
            named = words & {*COLORS, *CATEGORIES}
            if named:
                assert example.answer == ("yes" if named <= {"red", "ball"} or named <= {"blue", "cube"} else "no")
            elif words & {"dropped", "fell", "stopped", "left", "closer", "away"}:
                assert (example.answer, example.visual) == ("no", "video")
            covered.add(f"presence {example.answer} {example.visual} {'thing' if named else 'event'}")
        if example.focus is not None:
            # After the method's smoothing every target has the same height in every row.
            focus = example.focus.reshape(example.owners.shape)
            for owner in set(owners[example.focus > 0]):
                alone = np.where(example.owners == owner, focus, 0)
                smoothed = smooth(alone, VIDEO_KERNEL if example.visual == "video" else FRAME_KERNEL)
                peaks = smoothed.max(axis=(1, 2))
                np.testing.assert_allclose(peaks[alone.any(axis=(1, 2))], 1, atol=1e-4)
    assert {
        "motion",
        "attribute",
        "size",
        "relation",
        "background frame",
        "choice",
        "number",
        "absent frame",
    } <= covered
    for answer in ("yes", "no"):
        assert {f"presence {answer} video thing", f"presence {answer} video event"} <= covered
        assert f"presence {answer} image thing" in covered
    assert {"motion frame at 1", "motion frame at 2", "background excludes ball", "background excludes none"} <= covered


def test_a_pack_shares_the_answer_its_background_question_excludes(sampler: ExampleSampler):
    counts, mixed = Counter(), 0
    for pack in packs(sampler):
        *questions, presence, background = pack.examples
        if background.kind != "background":
            continue
        assert presence.kind == "presence"
        kinds = {example.name for example in questions}
        mixed += len(kinds) > 1
        shown = {example.answer for example in questions if example.visual == "video"}
        assert len(shown) < 2
        (excluded,) = re.findall(r"excluding any (\w+)", background.text) or [""]
        for example in questions:
            counts[example.name, excluded] += 1
            focused = set(example.owners[example.focus.reshape(example.owners.shape) > 0].tolist())
            if excluded in ("ball", "cube"):
                assert focused <= {("ball", "cube").index(excluded) + 1}
                assert example.answer == excluded or example.visual == "image"
    assert mixed > 5
    for name in ("motion", "motion frame", "attribute", "attribute frame"):
        assert counts[name, "ball"] and counts[name, ""], name


FOCUSED_OWNERS = {"": {1, 2}, "object": {1, 2}, "objects": {1, 2}, "ball": {1}, "cube": {2}, "cone": {0}}


@pytest.mark.parametrize("text, kind", [(MOVERS, "several"), ("the moving object", "motion")])
def test_a_single_frame_cannot_answer_motion_questions(sampler: ExampleSampler, text: str, kind: str):
    expression = Expression(text, kind, (0,), "ball")
    owners = sampler.visuals["image"].owners[:1]
    for excluded, focused in FOCUSED_OWNERS.items():
        example = sampler._object_example(expression, "image", 0, owners, excluded, np.random.default_rng(0))
        assert example.answer == "object" and set(owners.reshape(-1)[example.focus > 0]) == focused
    assert sampler._object_example(expression, "video", 0, owners, "", np.random.default_rng(0)).answer == "ball"
    votes = sampler._choice_example(expression, np.random.default_rng(0))
    assert "object" in votes.short.split(", ") and votes.answer == "ball"


def test_the_number_is_asked_as_often_of_one_object_as_of_several(sampler: ExampleSampler):
    rng = np.random.default_rng(0)
    one, both = Expression("the ball", "explicit", (0,), "ball"), Expression("the toys", "several", (0, 1), "")
    drawn = [sampler._text_example({"explicit": [one] * 9, "several": [both]}, rng) for _ in range(1000)]
    number = [example for example in drawn if example.kind == "number"]
    assert abs(len(number) - 1000 * NUMBER_SHARE) < 60
    said = Counter((example.text.split("\n")[0], example.answer) for example in number)
    assert (
        set(said) == {("the ball.", "one"), ("the toys.", "several")}
        and abs(said["the ball.", "one"] / len(number) - 0.5) < 0.1
    )


def test_the_only_object_at_rest_is_drawn_more_often(sampler: ExampleSampler):
    rng = np.random.default_rng(0)
    moves, rests = (Expression(text, "motion", (0,), "ball") for text in ("the moving object", STILL[0]))
    hard = [sampler._draw_expression({"motion": [moves, rests]}, rng) is rests for _ in range(1000)]
    assert np.mean(hard) == pytest.approx(HARD_WEIGHT / (HARD_WEIGHT + 1), abs=0.05)


def test_an_encoded_example_matches_the_adapters_prompt(sampler: ExampleSampler, clip: TabletopClip, tmp_path):
    """Same ids, positions and visual tokens as the adapter's, so that training matches inference."""
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    model = new_model(tokenizer)
    write_checkpoint(tmp_path, model, tokenizer)
    mllm = load_mllm(
        MllmConfig(checkpoint=str(tmp_path), video_tokens=48, local_files_only=True, device="cpu", dtype="float32")
    )
    trainer = TowerTrainer(model)
    writer, rng = Writer(tokenizer, CHAT_TEMPLATE), np.random.default_rng(0)
    for name, grid, visual in (
        ("video", VIDEO_GRID, clip.images[sampler.visuals["video"].frames]),
        ("image", FRAME_GRID, clip.images[[[3]]]),
    ):
        layout = mllm.layout("video" if name == "video" else "frames", visual.shape[0] * visual.shape[1], (H, W))
        example = next(
            candidate
            for candidate in examples(sampler)
            if candidate.visual == name and layout.grid[0] == candidate.rows
        )
        prompt = mllm.prompt(layout, example.text)
        count = example.rows * grid[0] * grid[1]
        batch = writer.batch([Pack([example, example], np.zeros((count, 128), np.float32))], 1.0, rng)
        for question in batch.own_tokens[0]:
            assert batch.ids[0, question].tolist() == prompt.ids.tolist()
            assert (batch.positions[:, 0, question] == prompt.positions).all()
            assert (batch.visual[0, question] == prompt.visual).all()
        built = scenes(clip, sampler.visuals[name], grid, np.arange(1))
        (encoded,) = mllm.encode(mllm.layout(layout.kind, visual.shape[1], (H, W)), visual[:1])
        # Relative to the spread of the tokens, which is small in an untrained tower; bfloat16.
        error = trainer.features(built.pixels)[0] - encoded.tokens
        assert error.norm() < 0.1 * (encoded.tokens - encoded.tokens.mean(dim=0)).norm()


def test_training_goes_on_from_an_older_vocabulary(tmp_path):
    tokenizer, older = new_tokenizer(), new_tokenizer()
    core = json.loads(older.backend_tokenizer.to_str())
    words = core["model"]["vocab"]
    ids = sorted(words.values())
    core["model"]["merges"] = [pair for pair in core["model"]["merges"] if "".join(pair) != "yes"]
    kept = [word for word in words if word != "yes"]
    core["model"]["vocab"] = dict(zip(kept, reversed(ids[: len(kept)])))  # other numbers
    core["added_tokens"] = []
    older = Qwen2TokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(core)))
    torch.manual_seed(0)
    before = new_model(tokenizer)
    before.save_pretrained(tmp_path)
    older.save_pretrained(tmp_path)
    after = new_model(tokenizer)
    own = after.lm_head.weight.detach().clone()
    start_from(after, tokenizer, tmp_path)
    assert torch.equal(after.lm_head.weight[tokenizer.get_vocab()["yes"]], own[tokenizer.get_vocab()["yes"]])
    old, new = older.get_vocab(), tokenizer.get_vocab()
    for word in ("ball", "Ġred"):
        assert torch.equal(after.lm_head.weight[new[word]], before.lm_head.weight[old[word]])
