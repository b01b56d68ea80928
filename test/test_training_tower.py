"""Training of the MLLM's vision tower: the tower as patched for a CPU, its loss, and mirrored and cropped scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from training_scene import rolling_ball, sampler_of
from transformers import Qwen2VLVideoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

from decaf_tabletop.training.cpu import patch_vision_tower
from decaf_tabletop.training.mllm_examples import FRAME_GRID, VIDEO_GRID, ExampleSampler
from decaf_tabletop.training.mllm_model import (
    PATCH,
    SHAPE_LAYER,
    TOKEN_PX,
    VISION_HEADS,
    new_model,
    new_tokenizer,
)
from decaf_tabletop.training.mllm_tower import TowerTrainer, concatenated, patches, scenes
from decaf_tabletop.training.mllm_words import GROUPS, NEIGHBOURS, OFFSETS
from decaf_tabletop.world.clip import TabletopClip


@pytest.fixture(scope="module")
def clip() -> TabletopClip:
    return rolling_ball()


@pytest.fixture(scope="module")
def sampler(clip: TabletopClip) -> ExampleSampler:
    return sampler_of(clip)


def test_patches_match_the_real_processor():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 2 * TOKEN_PX, 3 * TOKEN_PX, 3)).astype(np.uint8)
    processor = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    video = torch.from_numpy(pixels[0]).permute(0, 3, 1, 2)
    expected = processor(videos=[video], do_resize=False, do_sample_frames=False, return_tensors="pt")
    assert torch.allclose(patches(torch.from_numpy(pixels)), expected["pixel_values_videos"], atol=1e-5)


def test_patched_tower_matches_the_real_one():
    torch.manual_seed(0)
    tower = new_model(new_tokenizer()).model.visual.eval()
    pixels = patches(torch.randint(0, 256, (3, 2, 4 * TOKEN_PX, 6 * TOKEN_PX, 3), dtype=torch.uint8))
    grid = torch.tensor([[1, 8, 12]] * 3)
    with torch.no_grad():
        real = tower(pixels, grid_thw=grid, output_hidden_states=True)
        patch_vision_tower(tower)
        fast = tower(pixels, grid_thw=grid, output_hidden_states=True)
        assert torch.allclose(fast.pooler_output, real.pooler_output, atol=1e-4)
        alone = tower(pixels[:96], grid_thw=grid[:1], output_hidden_states=True)
        assert torch.allclose(alone.pooler_output, fast.pooler_output[:24], atol=1e-4)
        # Patches keep the order of the tokens (windows would change it), and SHAPE_LAYER indexes the right layer.
        assert torch.allclose(tower.merger(fast.last_hidden_state), fast.pooler_output)
        middle = fast.hidden_states[SHAPE_LAYER]
        turns = tower.rotary_pos_emb(middle, get_vision_position_ids(grid, 2))
        for block in tower.blocks[SHAPE_LAYER:]:
            middle = block(middle, cu_seqlens=torch.arange(4) * 96, position_embeddings=turns)
        assert torch.allclose(middle, fast.last_hidden_state, atol=1e-4)
        with pytest.raises(ValueError, match="one size"):
            tower(pixels, grid_thw=torch.tensor([[1, 8, 12], [1, 16, 12]]))


def test_last_layers_of_the_tower_attend_sideways_initially():
    torch.manual_seed(0)
    tower = new_model(new_tokenizer()).model.visual
    height, width = 24, 32
    places = get_vision_position_ids(torch.tensor([[1, height, width]]), 2)
    turns = tower.rotary_pos_emb(torch.zeros(1), places)
    for block in tower.blocks[SHAPE_LAYER:]:
        query, key, _ = block.attn.qkv.bias.detach().view(3, VISION_HEADS, -1)
        query, key = (bias.expand(len(places), -1, -1) for bias in (query, key))
        query, key = apply_rotary_pos_emb_vision(query, key, *turns)
        weights = torch.einsum("ihd,jhd->hij", query, key).div(query.shape[-1] ** 0.5).softmax(-1)
        shift = torch.einsum("hij,jd->hid", weights, places.float()) - places
        rows, columns = shift.unbind(-1)
        assert columns[0].mean() < -4 and columns[1].mean() > 4 and rows[2].mean() < -4 and rows[3].mean() > 4
        assert (columns[0] < columns[1]).all() and (rows[2] < rows[3]).all()
    assert not tower.blocks[0].attn.qkv.bias.any()


def test_falls_weigh_more_in_the_towers_loss(clip: TabletopClip, sampler: ExampleSampler):
    """A tower that predicts "still" everywhere has a higher loss where something falls."""
    torch.manual_seed(0)
    trainer = TowerTrainer(new_model(new_tokenizer()))
    built = scenes(clip, sampler.visuals["video"], VIDEO_GRID, np.arange(2))
    losses = []
    for word in ("still", "left", "fell"):
        words = np.zeros(len(GROUPS["motion"]))
        words[GROUPS["motion"].index(word)] = 1
        built.facts[:, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(words)] = words
        # Perfect tokens, except that the motion is always "still".
        predicted = built.facts.copy()
        predicted[:, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(words)] = np.eye(len(words))[0]
        owners = torch.from_numpy(built.owners.astype(np.int64)).flatten(1)
        predicted = torch.from_numpy(predicted).float().gather(1, owners[..., None].expand(-1, -1, predicted.shape[-1]))
        tokens = predicted.flatten(0, 1) @ trainer.fact_vectors
        hidden = torch.zeros(len(tokens) * 4, trainer.probes.in_features)
        trainer.features = lambda _, given=(tokens, hidden): given
        losses.append(trainer._loss(built)[0].item())
    assert losses[0] < losses[1] < losses[2]


def test_tower_training_reduces_the_loss_and_resumes(clip: TabletopClip, sampler: ExampleSampler):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    videos = scenes(clip, sampler.visuals["video"], VIDEO_GRID, np.arange(4))
    images = concatenated([scenes(clip, sampler.visuals["image"], FRAME_GRID, np.arange(1))] * 2)
    trainer = TowerTrainer(new_model(tokenizer))
    losses = [trainer.step([videos, images], 1e-3)["loss"] for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    resumed = TowerTrainer(new_model(tokenizer))
    resumed.load_state_dict(trainer.state_dict())
    assert resumed.step([videos, images], 1e-3)["loss"] == pytest.approx(trainer.step([videos, images], 1e-3)["loss"])


def test_mirrored_scenes_have_mirrored_facts(clip: TabletopClip, sampler: ExampleSampler):
    pairs = scenes(clip, sampler.visuals["video"], VIDEO_GRID, np.arange(3))
    mirrored = pairs.augmented(np.random.default_rng(0))
    flipped = [(a.owners[::, ::-1] == b).all() for a, b in zip([pairs.select(k) for k in range(3)], mirrored.owners)]
    assert any(flipped) and not all(flipped)
    for place in np.flatnonzero(flipped):
        assert (mirrored.fine[place] == pairs.fine[place][:, ::-1]).all()
        was, now = pairs.facts[place], mirrored.facts[place]
        motion = OFFSETS["motion"] + GROUPS["motion"].index("right"), OFFSETS["motion"] + GROUPS["motion"].index("left")
        assert was[1, motion[0]] == now[1, motion[1]] == 1 and now[1, motion[0]] == 0
        near = [OFFSETS["neighbours"] + NEIGHBOURS.index(f"cube {side}") for side in ("right", "left", "behind")]
        assert was[1, near].tolist() == [1, 0, 1] and now[1, near].tolist() == [0, 1, 1]
        assert np.isclose(mirrored.boxes[place, 1, 0], 1 - pairs.boxes[place, 1, 0])


def test_crops_show_the_same_object(clip: TabletopClip, sampler: ExampleSampler):
    images = scenes(clip, sampler.visuals["image"], FRAME_GRID, np.arange(2))
    crops = images.cropped(6, np.random.default_rng(0))
    assert crops.pixels.shape == (2, 1, 6 * TOKEN_PX, 6 * TOKEN_PX, 3) and crops.owners.shape == (2, 6, 6)
    for owners, fine, boxes in zip(crops.owners, crops.fine, crops.boxes):
        whole = [k for k in (1, 2) if (np.abs(boxes[k, :2] - 0.5) + boxes[k, 2:] / 2 <= 0.5).all()]
        assert whole and set(owners.reshape(-1)) >= set(whole)
        ys, xs = np.nonzero(fine == whole[0])
        assert np.allclose((boxes[whole[0], :2] * 48), (xs.mean() + 0.5, ys.mean() + 0.5), atol=1.5)
    assert (crops.facts[:, 1:, OFFSETS["neighbours"] :] == 0.5).all()
