"""The language half of the demo MLLM's training: packed questions are the real model's, and where it learns to look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_scene import packs, rolling_ball, sampler_of, written

from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, smooth
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_tabletop.training import mllm_language
from decaf_tabletop.training.mllm_batches import Pack
from decaf_tabletop.training.mllm_examples import Example, ExampleSampler
from decaf_tabletop.training.mllm_language import (
    ATTENTION_NAME,
    ROLLOUT_LAYERS,
    SPILL_MAX,
    SPILL_THRESHOLD,
    LanguageTrainer,
    contrast_losses,
    last_rows_of_rollout,
    smoothed,
    spill,
    unevenness,
)
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer


@pytest.fixture(scope="module")
def sampler() -> ExampleSampler:
    return sampler_of(rolling_ball())


@pytest.fixture(scope="module")
def trainer() -> LanguageTrainer:
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    return LanguageTrainer(new_model(tokenizer), tokenizer)


def test_a_packed_question_is_the_real_model_s_alone(trainer: LanguageTrainer, sampler: ExampleSampler):
    """Logits, attention and rollout of each question of a pack, against the real model on that question alone."""
    batch = written([packs(sampler, 2)[place] for place in (0, 1, 2, 4)])
    assert len(set(batch.question[:, -1].tolist())) > 1, "expected some padding"
    with torch.no_grad():
        got = trainer.logits(batch)
        kept = {layer: trainer.text.layers[layer].self_attn.kept.float() for layer in ROLLOUT_LAYERS}
        rolled = last_rows_of_rollout(list(kept.values()), batch)
        real = trainer.model.eval()
        text = real.model.language_model
        text.set_attn_implementation("eager")
        embedded = text.embed_tokens(batch.ids).masked_scatter(batch.visual[..., None], batch.features)
        for b, q in np.ndindex(*batch.answer_at.shape):
            own = batch.own_tokens[b, q].clone()
            own[batch.answer_at[b, q]] = True
            seen = text(
                inputs_embeds=embedded[b : b + 1, own],
                position_ids=batch.positions[:, b : b + 1, own],
                output_attentions=True,
            )
            wanted = real.lm_head(seen.last_hidden_state[0, -2:])
            assert (got[b, q] - wanted).abs().max() < 0.1 * wanted.std(), "up to bfloat16's rounding"
            for layer, attention in kept.items():
                row = attention[b, :, batch.answer_at[b, q] - 1]
                assert torch.allclose(row[:, own], seen.attentions[layer][0, :, -2], atol=0.02)
                assert row[:, ~own].abs().max() < 1e-6, "a question sees nothing of another"
            if batch.visual[b].any():
                # Of the same attention: its rounding is judged above, and would hide what is wrong here.
                row, own = rolled[b, q], batch.own_tokens[b, q]
                alone = [attention[b][:, own][:, :, own] for attention in kept.values()]
                visual = batch.visual[b, own]
                torch.testing.assert_close(row[own][visual], _rollout_alone(alone, visual)[visual], rtol=0.01, atol=0)
        text.set_attn_implementation(ATTENTION_NAME)
        text.train()


def _rollout_alone(layers: list[torch.Tensor], visual: torch.Tensor) -> torch.Tensor:
    """By `rollout_last_row`, from attention (heads, n, n) put as queries and keys whose softmax it is."""
    recorded = []
    for attention in layers:
        keys = torch.eye(attention.shape[-1]).expand(1, len(attention), -1, -1)
        recorded.append(LayerAttention(attention.clamp(min=1e-30).log()[None], keys, 1.0))
    return rollout_last_row(recorded, visual[None])[0]


@pytest.mark.parametrize("name, is_contrasted", [("attribute", True), ("absent", False)])
def test_looking_loss_is_least_where_the_contrast_shows_the_target(
    trainer: LanguageTrainer, sampler: ExampleSampler, name: str, is_contrasted: bool
):
    """Attention of no token but the last one of each question; half of it on what both questions look at."""
    pack = next(
        pack
        for pack in packs(sampler)
        if pack.examples[0].name == name and pack.examples[0].visual and pack.examples[-1].has_targets == is_contrasted
    )
    batch = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    assert batch.has_targets.tolist() == [[is_contrasted, is_contrasted]]
    visual = batch.visual[0]
    on_object, around = batch.focus[0]
    owners = torch.zeros(len(visual), dtype=torch.int64)
    owners[visual] = torch.from_numpy(pack.examples[0].owners.reshape(-1).astype(np.int64))
    wrong = (owners > 0) & (on_object == 0)  # an object that is not asked for

    def loss_of(
        looks: torch.Tensor, common: torch.Tensor, background: torch.Tensor, excluding: bool = False
    ) -> tuple[float, float]:
        """Of the object's question; what both questions look at besides; of the background's question."""
        for layer in ROLLOUT_LAYERS:
            kept = torch.zeros(1, 4, *[len(visual)] * 2)
            for end, row in zip(batch.answer_at[0], (looks, background)):
                kept[:, :, end - 1] = row / row.sum() / 2 + common / common.sum() / 2
            trainer.text.layers[layer].self_attn.kept = kept
        loss, shares = trainer._attention_loss(batch, excluding)
        return loss.item(), shares[0]

    surroundings = (visual & (owners == 0)).float()
    right, share = loss_of(on_object, visual.float(), surroundings)
    elsewhere, no_share = loss_of(wrong.float(), visual.float(), surroundings)
    both, _ = loss_of(on_object / on_object.sum() + wrong / wrong.sum(), visual.float(), surroundings)
    assert right < both < elsewhere
    if is_contrasted:
        assert share == pytest.approx(1, abs=1e-3) and no_share == pytest.approx(0, abs=1e-3)
        # What both questions look at is not in the contrast.
        assert loss_of(on_object, wrong.float(), surroundings)[1] == pytest.approx(1, abs=1e-3)
        # The background's question excludes this category, and is to look at the other object, not around it.
        others, around_all = (
            loss_of(on_object, visual.float(), looks, excluding=True)[0] for looks in (around, surroundings)
        )
        assert others < around_all - 1
    else:
        assert np.isnan(share)


def test_the_contrast_is_pulled_to_the_target_and_to_nothing_without_one(sampler: ExampleSampler):
    """The losses of the contrast alone, of maps that are put in."""

    def losses(name: str, on: torch.Tensor, background: torch.Tensor) -> float:
        rolled = torch.stack([on, background])[None] * batches[name].visual[:, None]
        return contrast_losses(rolled, batches[name]).item()

    found = {}
    for pack in packs(sampler):
        if pack.examples[0].visual == "video" and pack.examples[0].focus.any():
            found.setdefault(pack.examples[0].name, Pack([pack.examples[0], pack.examples[-1]], pack.tokens))
    batches = {name: written([found[name]]) for name in ("attribute", "absent")}
    focus, around = batches["attribute"].focus[0]
    target, rest = focus / focus.sum(), around / around.sum()
    # However much both questions look at the rest, the target alone is left.
    right = losses("attribute", target + rest, rest)
    assert right < 0.1 and losses("attribute", target + 5 * rest, 5 * rest) < right + 0.2
    assert losses("attribute", target + rest, torch.zeros_like(rest)) > right + 0.3
    assert losses("attribute", target, target) > right + 1
    # Nothing to find: like the background, wherever that looks.
    _, around = batches["absent"].focus[0]
    rest = around / around.sum()
    other = torch.zeros_like(rest)
    other[batches["absent"].visual[0].nonzero()[:5, 0]] = 0.2
    assert losses("absent", rest, rest) == pytest.approx(0, abs=0.01)
    # A little of it elsewhere counts: the method would scale that up.
    assert losses("absent", rest + 0.05 * other, rest) > 0.4
    assert losses("absent", other, rest) > 1 and losses("absent", other, other) == pytest.approx(0, abs=0.01)


def _looked(example: Example) -> np.ndarray:
    return example.focus.reshape(example.owners.shape) > 0


def test_targets_are_to_be_equally_high_in_every_row(sampler: ExampleSampler, monkeypatch: pytest.MonkeyPatch):
    """Whatever their size: the cube of this clip has five times the tokens of the ball."""
    frames = [pack for pack in packs(sampler) if pack.examples[0].name == "motion frame"]
    pack = next(pack for pack in frames if len(set(pack.examples[0].owners[_looked(pack.examples[0])])) == 2)
    frame = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    pack = next(pack for pack in packs(sampler) if pack.examples[0].name == "motion" and pack.examples[0].rows == 8)
    video = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    for batch, segments in ((frame, 2), (video, 8)):
        ideal = smoothed(batch.focus, batch)
        assert ideal[0, 0].max() == pytest.approx(1, abs=0.01), "every target is to come out as 1"
        assert len(batch.segments[0][batch.focus[0, 0] > 0].unique()) == segments
        assert unevenness(ideal, ideal, batch)[0, 0] == pytest.approx(0, abs=1e-6)
        found = []
        for segment in batch.segments[0][batch.focus[0, 0] > 0].unique():
            lower = torch.where(batch.segments[:, None] == segment, 0.5 * ideal, ideal)
            found.append(unevenness(lower, ideal, batch)[0, 0].item())
            again = unevenness(7 * lower, ideal, batch)[0, 0]
            assert again == pytest.approx(found[-1], rel=1e-5), "of heights in relation"
            nothing = torch.where(batch.segments[:, None] == segment, 0, ideal)
            assert found[-1] < unevenness(nothing, ideal, batch)[0, 0] < 10
        assert min(found) > 0.1 and max(found) == pytest.approx(min(found), rel=0.01)
    # What is not asked for has no height.
    ideal = smoothed(video.focus, video)
    assert unevenness(ideal + (video.focus == 0), ideal, video)[0, 0] == pytest.approx(0, abs=1e-6)
    # Of two contrasts with the same divergence, the even one is the better.
    monkeypatch.setattr(mllm_language, "divergence", lambda wanted, weights: torch.zeros(weights.shape[:-1]))
    wanted, background = video.focus / video.focus.sum(2, keepdim=True), torch.zeros_like(video.focus)
    first = video.segments[:, None] == video.segments[0][video.focus[0, 0] > 0][0]
    even, uneven = (
        contrast_losses(torch.cat([rolled[:, :1], background[:, 1:]], 1), video).item()
        for rolled in (wanted, torch.where(first, 0.5 * wanted, wanted))
    )
    assert even < 0.1 < uneven - even


def test_what_stands_high_beside_the_targets_is_spilt(sampler: ExampleSampler, monkeypatch):
    pack = next(pack for pack in packs(sampler) if pack.examples[0].visual == "video" and pack.examples[0].focus.any())
    batch = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    ideal = smoothed(batch.focus, batch)
    assert spill(ideal, ideal, batch)[0, 0] == 0
    others = (batch.segments[0] >= 0) & (batch.focus[0, 0] == 0) & (ideal[0, 0] == 0)
    mean, rows = ideal[0, 0][batch.focus[0, 0] > 0].mean(), len(pack.examples[0].owners)
    for height, expected in ((0.9 * SPILL_THRESHOLD, 0), (1.0, 1 - SPILL_THRESHOLD), (99.0, SPILL_MAX)):
        token = ideal.clone()
        token[0, 0, others.nonzero()[0]] = height * mean
        assert spill(7 * token, ideal, batch)[0, 0] == pytest.approx(expected / rows, abs=1e-5), "one row, in relation"
    everywhere = ideal + (batch.focus == 0) * batch.visual[:, None] * mean
    seen = batch.segments[0][(batch.segments[0] >= 0) & (batch.focus[0, 0] == 0)].unique()
    assert spill(everywhere, ideal, batch)[0, 0] == pytest.approx(len(seen) * (1 - SPILL_THRESHOLD) / rows, rel=1e-4)
    # It is in the loss.
    for name in ("divergence", "unevenness"):
        monkeypatch.setattr(mllm_language, name, lambda first, second, *_: torch.zeros(first.shape[:-1]))
    spilt = batch.focus.clone()
    spilt[0, 0, others.nonzero()[0]] = batch.focus.max()
    clean, dirty = (
        contrast_losses(torch.cat([rolled[:, :1], torch.zeros_like(rolled[:, 1:])], 1), batch).item()
        for rolled in (batch.focus, spilt)
    )
    assert clean < 0.05 < dirty - clean


@pytest.mark.parametrize("visual, kernel", [("video", VIDEO_KERNEL), ("image", FRAME_KERNEL)])
def test_maps_are_smoothed_as_the_method_does(sampler: ExampleSampler, visual: str, kernel: int):
    """Each row of tokens by itself, tokens that are left out as 0, whatever the number of rows."""
    some = [pack for pack in packs(sampler) if pack.examples[0].visual == visual]
    some = list({pack.examples[0].rows: pack for pack in some}.values())
    assert len(some) > 1 or visual == "image"
    for keep in (1.0, 0.3):
        batch = written(some, keep)
        maps = torch.from_numpy(np.random.default_rng(0).random(batch.focus.shape, np.float32)) * batch.visual[:, None]
        found = smoothed(maps, batch)
        assert not found[~batch.visual[:, None].expand(found.shape)].any()
        for place, pack in enumerate(some):
            seen, h_w = batch.visual[place], pack.examples[0].owners.shape[1:]
            for question in range(len(pack.examples)):
                image = np.zeros(pack.examples[0].owners.size, np.float32)
                image[batch.cells[place, seen]] = maps[place, question, seen]
                expected = smooth(image.reshape(-1, *h_w), kernel).reshape(-1)[batch.cells[place, seen]]
                np.testing.assert_allclose(found[place, question, seen], expected, atol=1e-6)


def test_language_training_reduces_the_loss_and_resumes(sampler: ExampleSampler):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    batch = written(packs(sampler, 4)[:8], 0.1, short=True)
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    trainer.start_from_words(tokenizer)
    losses = [trainer.step(batch, 2e-3, 0.3)[0] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    again = LanguageTrainer(new_model(tokenizer), tokenizer)
    again.load_state_dict(trainer.state_dict())
    assert again.step(batch, 1e-3, 0.3) == pytest.approx(trainer.step(batch, 1e-3, 0.3), rel=1e-3)
    assert "motion" in trainer.check([batch]) or "attribute" in trainer.check([batch])
