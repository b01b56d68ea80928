"""The language half of the MLLM's training: packed questions match the real model, and the attention loss."""

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


def test_packed_questions_match_the_real_model(trainer: LanguageTrainer, sampler: ExampleSampler):
    """Logits, attention and rollout of each packed question match the real model on that question alone."""
    batch = written([packs(sampler, 2)[place] for place in (0, 1, 2, 4)])
    assert len(set(batch.question[:, -1].tolist())) > 1, "expected some padding"
    with torch.no_grad():
        got = trainer.logits(batch)
        kept = {layer: trainer.text.layers[layer].self_attn.kept.float() for layer in ROLLOUT_LAYERS}
        rollouts = last_rows_of_rollout(list(kept.values()), batch)
        real = trainer.model.eval()
        text = real.model.language_model
        text.set_attn_implementation("eager")
        embedded = text.embed_tokens(batch.ids).masked_scatter(batch.visual[..., None], batch.features)
        for b, q in np.ndindex(*batch.answer_at.shape):
            own = batch.own_tokens[b, q].clone()
            own[batch.answer_at[b, q]] = True
            output = text(
                inputs_embeds=embedded[b : b + 1, own],
                position_ids=batch.positions[:, b : b + 1, own],
                output_attentions=True,
            )
            expected = real.lm_head(output.last_hidden_state[0, -2:])
            assert (got[b, q] - expected).abs().max() < 0.1 * expected.std(), "up to bfloat16's rounding"
            for layer, attention in kept.items():
                row = attention[b, :, batch.answer_at[b, q] - 1]
                assert torch.allclose(row[:, own], output.attentions[layer][0, :, -2], atol=0.02)
                assert row[:, ~own].abs().max() < 1e-6, "a question sees nothing of another"
            if batch.visual[b].any():
                # From the same attention, whose rounding is checked above and would hide errors here.
                row, own = rollouts[b, q], batch.own_tokens[b, q]
                alone = [attention[b][:, own][:, :, own] for attention in kept.values()]
                visual = batch.visual[b, own]
                torch.testing.assert_close(row[own][visual], _rollout_alone(alone, visual)[visual], rtol=0.01, atol=0)
        text.set_attn_implementation(ATTENTION_NAME)
        text.train()


def _rollout_alone(layers: list[torch.Tensor], visual: torch.Tensor) -> torch.Tensor:
    """`rollout_last_row` of attention (heads, n, n), given as queries and keys that produce it."""
    recorded = []
    for attention in layers:
        keys = torch.eye(attention.shape[-1]).expand(1, len(attention), -1, -1)
        recorded.append(LayerAttention(attention.clamp(min=1e-30).log()[None], keys, 1.0))
    return rollout_last_row(recorded, visual[None])[0]


@pytest.mark.parametrize("name, is_contrasted", [("attribute", True), ("absent", False)])
def test_attention_loss_is_least_with_the_contrast_on_the_target(
    trainer: LanguageTrainer, sampler: ExampleSampler, name: str, is_contrasted: bool
):
    """Only the last token of each question attends, half of it to tokens common to both questions."""
    pack = next(
        pack
        for pack in packs(sampler)
        if pack.examples[0].name == name and pack.examples[0].visual and pack.examples[-1].has_targets == is_contrasted
    )
    batch = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    assert batch.has_targets.tolist() == [[is_contrasted, is_contrasted]]
    visual = batch.visual[0]
    on_object, background_focus = batch.focus[0]
    owners = torch.zeros(len(visual), dtype=torch.int64)
    owners[visual] = torch.from_numpy(pack.examples[0].owners.reshape(-1).astype(np.int64))
    other_object = (owners > 0) & (on_object == 0)

    def loss_of(
        attention: torch.Tensor, common: torch.Tensor, background: torch.Tensor, excluding: bool = False
    ) -> tuple[float, float]:
        """Arguments: attention of the object question, of both questions, and of the background question."""
        for layer in ROLLOUT_LAYERS:
            kept = torch.zeros(1, 4, *[len(visual)] * 2)
            for end, row in zip(batch.answer_at[0], (attention, background)):
                kept[:, :, end - 1] = row / row.sum() / 2 + common / common.sum() / 2
            trainer.text.layers[layer].self_attn.kept = kept
        loss, shares = trainer._attention_loss(batch, excluding)
        return loss.item(), shares[0]

    surroundings = (visual & (owners == 0)).float()
    right, share = loss_of(on_object, visual.float(), surroundings)
    elsewhere, no_share = loss_of(other_object.float(), visual.float(), surroundings)
    both, _ = loss_of(on_object / on_object.sum() + other_object / other_object.sum(), visual.float(), surroundings)
    assert right < both < elsewhere
    if is_contrasted:
        assert share == pytest.approx(1, abs=1e-3) and no_share == pytest.approx(0, abs=1e-3)
        # The contrast removes attention common to both questions.
        assert loss_of(on_object, other_object.float(), surroundings)[1] == pytest.approx(1, abs=1e-3)
        # The background question excludes this category: it shall attend to the other object, not to the background.
        others, around_all = (
            loss_of(on_object, visual.float(), attention, excluding=True)[0]
            for attention in (background_focus, surroundings)
        )
        assert others < around_all - 1
    else:
        assert np.isnan(share)


def test_contrast_losses_with_and_without_a_target(sampler: ExampleSampler):
    """`contrast_losses` of given maps."""

    def losses(name: str, rollout: torch.Tensor, background: torch.Tensor) -> float:
        rollouts = torch.stack([rollout, background])[None] * batches[name].visual[:, None]
        return contrast_losses(rollouts, batches[name]).item()

    found = {}
    for pack in packs(sampler):
        if pack.examples[0].visual == "video" and pack.examples[0].focus.any():
            found.setdefault(pack.examples[0].name, Pack([pack.examples[0], pack.examples[-1]], pack.tokens))
    batches = {name: written([found[name]]) for name in ("attribute", "absent")}
    focus, background_focus = batches["attribute"].focus[0]
    target, rest = focus / focus.sum(), background_focus / background_focus.sum()
    # Attention of both questions to other tokens cancels.
    right = losses("attribute", target + rest, rest)
    assert right < 0.1 and losses("attribute", target + 5 * rest, 5 * rest) < right + 0.2
    assert losses("attribute", target + rest, torch.zeros_like(rest)) > right + 0.3
    assert losses("attribute", target, target) > right + 1
    # Absent target: the rollout shall equal the background question's, wherever that lies.
    _, background_focus = batches["absent"].focus[0]
    rest = background_focus / background_focus.sum()
    other = torch.zeros_like(rest)
    other[batches["absent"].visual[0].nonzero()[:5, 0]] = 0.2
    assert losses("absent", rest, rest) == pytest.approx(0, abs=0.01)
    # A small shift counts, because the method scales it up.
    assert losses("absent", rest + 0.05 * other, rest) > 0.4
    assert losses("absent", other, rest) > 1 and losses("absent", other, other) == pytest.approx(0, abs=0.01)


def _focused(example: Example) -> np.ndarray:
    return example.focus.reshape(example.owners.shape) > 0


def test_unevenness_is_least_for_equal_heights(sampler: ExampleSampler, monkeypatch: pytest.MonkeyPatch):
    """Independent of their size: the cube in this clip has five times as many tokens as the ball."""
    frames = [pack for pack in packs(sampler) if pack.examples[0].name == "motion frame"]
    pack = next(pack for pack in frames if len(set(pack.examples[0].owners[_focused(pack.examples[0])])) == 2)
    frame = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    pack = next(pack for pack in packs(sampler) if pack.examples[0].name == "motion" and pack.examples[0].rows == 8)
    video = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    for batch, segments in ((frame, 2), (video, 8)):
        ideal = smoothed(batch.focus, batch)
        assert ideal[0, 0].max() == pytest.approx(1, abs=0.01), "every target is to come out as 1"
        assert len(batch.segments[0][batch.focus[0, 0] > 0].unique()) == segments
        assert unevenness(ideal, ideal, batch)[0, 0] == pytest.approx(0, abs=1e-6)
        spreads = []
        for segment in batch.segments[0][batch.focus[0, 0] > 0].unique():
            lower = torch.where(batch.segments[:, None] == segment, 0.5 * ideal, ideal)
            spreads.append(unevenness(lower, ideal, batch)[0, 0].item())
            scaled = unevenness(7 * lower, ideal, batch)[0, 0]
            assert scaled == pytest.approx(spreads[-1], rel=1e-5), "heights are relative"
            nothing = torch.where(batch.segments[:, None] == segment, 0, ideal)
            assert spreads[-1] < unevenness(nothing, ideal, batch)[0, 0] < 10
        assert min(spreads) > 0.1 and max(spreads) == pytest.approx(min(spreads), rel=0.01)
    # Other tokens do not count.
    ideal = smoothed(video.focus, video)
    assert unevenness(ideal + (video.focus == 0), ideal, video)[0, 0] == pytest.approx(0, abs=1e-6)
    # At equal divergence the more even contrast has the lower loss.
    monkeypatch.setattr(mllm_language, "divergence", lambda expected, weights: torch.zeros(weights.shape[:-1]))
    expected, background = video.focus / video.focus.sum(2, keepdim=True), torch.zeros_like(video.focus)
    first = video.segments[:, None] == video.segments[0][video.focus[0, 0] > 0][0]
    even, uneven = (
        contrast_losses(torch.cat([rollouts[:, :1], background[:, 1:]], 1), video).item()
        for rollouts in (expected, torch.where(first, 0.5 * expected, expected))
    )
    assert even < 0.1 < uneven - even


def test_spill_counts_peaks_off_the_targets(sampler: ExampleSampler, monkeypatch):
    pack = next(pack for pack in packs(sampler) if pack.examples[0].visual == "video" and pack.examples[0].has_targets)
    batch = written([Pack([pack.examples[0], pack.examples[-1]], pack.tokens)])
    ideal = smoothed(batch.focus, batch)
    assert spill(ideal, ideal, batch)[0, 0] == 0
    others = (batch.segments[0] >= 0) & (batch.focus[0, 0] == 0) & (ideal[0, 0] == 0)
    mean, rows = ideal[0, 0][batch.focus[0, 0] > 0].mean(), len(pack.examples[0].owners)
    for height, expected in ((0.9 * SPILL_THRESHOLD, 0), (1.0, 1 - SPILL_THRESHOLD), (99.0, SPILL_MAX)):
        token = ideal.clone()
        token[0, 0, others.nonzero()[0]] = height * mean
        assert spill(7 * token, ideal, batch)[0, 0] == pytest.approx(expected / rows, abs=1e-5), "relative, in one row"
    everywhere = ideal + (batch.focus == 0) * batch.visual[:, None] * mean
    segments = batch.segments[0][(batch.segments[0] >= 0) & (batch.focus[0, 0] == 0)].unique()
    assert spill(everywhere, ideal, batch)[0, 0] == pytest.approx(
        len(segments) * (1 - SPILL_THRESHOLD) / rows, rel=1e-4
    )
    # It contributes to the loss.
    for name in ("divergence", "unevenness"):
        monkeypatch.setattr(mllm_language, name, lambda first, second, *_: torch.zeros(first.shape[:-1]))
    spilt = batch.focus.clone()
    spilt[0, 0, others.nonzero()[0]] = batch.focus.max()
    clean, dirty = (
        contrast_losses(torch.cat([rollouts[:, :1], torch.zeros_like(rollouts[:, 1:])], 1), batch).item()
        for rollouts in (batch.focus, spilt)
    )
    assert clean < 0.01 < dirty - clean


@pytest.mark.parametrize("visual, kernel", [("video", VIDEO_KERNEL), ("image", FRAME_KERNEL)])
def test_maps_are_smoothed_as_in_the_method(sampler: ExampleSampler, visual: str, kernel: int):
    """Each row is smoothed alone, and dropped tokens count as 0, for any number of rows."""
    of_visual = [pack for pack in packs(sampler) if pack.examples[0].visual == visual]
    of_visual = list({pack.examples[0].rows: pack for pack in of_visual}.values())
    assert len(of_visual) > 1 or visual == "image"
    for keep in (1.0, 0.3):
        batch = written(of_visual, keep)
        maps = torch.from_numpy(np.random.default_rng(0).random(batch.focus.shape, np.float32)) * batch.visual[:, None]
        found = smoothed(maps, batch)
        assert not found[~batch.visual[:, None].expand(found.shape)].any()
        for place, pack in enumerate(of_visual):
            visual_tokens, h_w = batch.visual[place], pack.examples[0].owners.shape[1:]
            for question in range(len(pack.examples)):
                image = np.zeros(pack.examples[0].owners.size, np.float32)
                image[batch.cells[place, visual_tokens]] = maps[place, question, visual_tokens]
                expected = smooth(image.reshape(-1, *h_w), kernel).reshape(-1)[batch.cells[place, visual_tokens]]
                np.testing.assert_allclose(found[place, question, visual_tokens], expected, atol=1e-6)


def test_language_training_reduces_the_loss_and_resumes(sampler: ExampleSampler):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    batch = written(packs(sampler, 4)[:8], 0.1, short=True)
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    trainer.start_from_words(tokenizer)
    losses = [trainer.step(batch, 2e-3, 0.3)[0] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    resumed = LanguageTrainer(new_model(tokenizer), tokenizer)
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.step(batch, 1e-3, 0.3) == pytest.approx(trainer.step(batch, 1e-3, 0.3), rel=1e-3)
    assert "motion" in trainer.check([batch]) or "attribute" in trainer.check([batch])
