"""The demo MLLM's training: what it is taught is true, and put exactly as the adapter will put it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import Qwen2VLVideoProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision, get_vision_position_ids

from decaf_ros.config import MllmConfig
from decaf_ros.demo.tiny_mllm import CHAT_TEMPLATE
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.mllm import load_mllm, prefill
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.tabletop.clip import TabletopClip, TabletopObject
from training.cpu import speed_up
from training.mllm_batches import Writer
from training.mllm_language import LOOKING_LAYERS, LanguageTrainer, last_row_of_rollout
from training.mllm_lessons import FRAME_GRID, VIDEO_GRID, Lesson, Teacher, image_visual, video_visual
from training.mllm_model import (
    ANSWERS,
    PATCH,
    SHAPE_LAYER,
    TOKEN_PX,
    VISION_HEADS,
    new_model,
    new_tokenizer,
    write_checkpoint,
)
from training.mllm_tower import TowerTrainer, joined, patches, scenes
from training.mllm_words import GROUPS, NEAR_NORM, NEIGHBOURS, NORM, OFFSETS, meanings, object_facts, token_owners

F, H, W = 32, 240, 320
# World to camera: x right, y up in the image as seen from above; see `clip`.
LOOKING_AHEAD = (math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0)


@pytest.fixture(scope="module")
def clip() -> TabletopClip:
    """A red ball that rolls to the right below a large blue cube that stays where it is."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 110, (F, H, W, 3)).astype(np.uint8)
    labels = np.zeros((F, H, W), np.uint8)
    poses = np.zeros((F, 2, 7))
    poses[..., 3] = 1
    poses[:, 0, 0] = np.linspace(-0.2, 0.2, F)
    poses[:, 1, :2] = 0.0, 0.15
    for frame in range(F):
        x = 40 + round(frame / (F - 1) * 200)
        labels[frame, 160:200, x : x + 40], images[frame, 160:200, x : x + 40] = 1, (200, 20, 20)
    labels[:, 40:120, 120:200], images[:, 40:120, 120:200] = 2, (20, 20, 200)
    return TabletopClip(
        seed=0,
        images=images,
        labels=labels,
        stamps_ns=np.arange(F, dtype=np.int64) * 100_000_000,
        objects=(
            TabletopObject("ball", "red", "small", 0.04, 0.08),
            TabletopObject("cube", "blue", "large", 0.07, 0.1),
        ),
        poses=poses,
        camera_poses=np.tile(np.array([0, -0.5, 0.3, *LOOKING_AHEAD]), (F, 1)),
        intrinsics=np.eye(3),
        surface="wood",
    )


@pytest.fixture(scope="module")
def teacher(clip: TabletopClip) -> Teacher:
    return Teacher(clip, video_visual(clip), image_visual(clip, np.array([3, 20])))


def lessons(teacher: Teacher, count: int = 300) -> list[Lesson]:
    rng = np.random.default_rng(1)
    return [teacher.lesson(rng) for _ in range(count)] + [teacher.lesson(rng, "image") for _ in range(count)]


def ideal_tokens(teacher: Teacher, lesson: Lesson) -> np.ndarray | None:
    if not lesson.visual:
        return None
    rows = slice(lesson.row, lesson.row + lesson.rows)
    facts = teacher.visuals[lesson.visual].facts[rows] @ meanings().numpy()
    return np.concatenate([row[owners.reshape(-1)] for row, owners in zip(facts, lesson.owners)])


def test_every_word_that_matters_is_one_token():
    tokenizer = new_tokenizer()
    for word in ANSWERS:
        assert len(tokenizer(word)["input_ids"]) == len(tokenizer(f" {word}")["input_ids"]) == 1


def test_meanings_are_orthogonal():
    vectors = meanings()
    lengths = torch.tensor([NORM] * OFFSETS["neighbours"] + [NEAR_NORM] * len(NEIGHBOURS))
    assert torch.allclose(vectors @ vectors.T, torch.diag(lengths**2), atol=1e-4)


def test_patches_are_those_of_the_real_processor():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 2 * TOKEN_PX, 3 * TOKEN_PX, 3)).astype(np.uint8)
    processor = Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    video = torch.from_numpy(pixels[0]).permute(0, 3, 1, 2)
    wanted = processor(videos=[video], do_resize=False, do_sample_frames=False, return_tensors="pt")
    assert torch.allclose(patches(torch.from_numpy(pixels)), wanted["pixel_values_videos"], atol=1e-5)


def test_trained_attention_is_that_of_the_real_tower():
    torch.manual_seed(0)
    tower = new_model(new_tokenizer()).model.visual.eval()
    pixels = patches(torch.randint(0, 256, (3, 2, 4 * TOKEN_PX, 6 * TOKEN_PX, 3), dtype=torch.uint8))
    grid = torch.tensor([[1, 8, 12]] * 3)
    with torch.no_grad():
        real = tower(pixels, grid_thw=grid, output_hidden_states=True)
        speed_up(tower)
        fast = tower(pixels, grid_thw=grid, output_hidden_states=True)
        assert torch.allclose(fast.pooler_output, real.pooler_output, atol=1e-4)
        alone = tower(pixels[:96], grid_thw=grid[:1], output_hidden_states=True)
        assert torch.allclose(alone.pooler_output, fast.pooler_output[:24], atol=1e-4)
        # Patches are in the order of the tokens, which windows would change; and the shape layer is where it says.
        assert torch.allclose(tower.merger(fast.last_hidden_state), fast.pooler_output)
        middle = fast.hidden_states[SHAPE_LAYER]
        turns = tower.rotary_pos_emb(middle, get_vision_position_ids(grid, 2))
        for block in tower.blocks[SHAPE_LAYER:]:
            middle = block(middle, cu_seqlens=torch.arange(4) * 96, position_embeddings=turns)
        assert torch.allclose(middle, fast.last_hidden_state, atol=1e-4)
        with pytest.raises(ValueError, match="one size"):
            tower(pixels, grid_thw=torch.tensor([[1, 8, 12], [1, 16, 12]]))


def test_last_layers_of_the_tower_start_looking_aside():
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


def test_tokens_belong_to_what_covers_them(clip: TabletopClip):
    owners = token_owners(clip.labels[:1], 2, (6, 8))
    assert set(owners[4, 1:2]) == {1} and (owners[1:3, 3:5] == 2).all() and owners[0, 0] == 0
    speck = np.zeros((1, H, W), np.uint8)
    speck[0, 10:20, 10:20] = 1
    assert (token_owners(speck, 1, (6, 8)) == 1).sum() == 1, "what can be seen at all has a token"


def test_facts_say_what_is_true(clip: TabletopClip):
    facts = object_facts(clip, 0, 2)
    said = {
        group: [GROUPS[group][place] for place in facts[:, OFFSETS[group] :][:, : len(GROUPS[group])].argmax(1)]
        for group in ("category", "color", "size", "motion")
    }
    assert said == {
        "category": ["ball", "cube"], "color": ["red", "blue"], "size": ["small", "large"], "motion": ["right", "still"]
    }  # fmt: skip
    neighbours = facts[:, OFFSETS["neighbours"] :]
    assert [[NEIGHBOURS[place] for place in np.flatnonzero(row == 1)] for row in neighbours] == [
        ["cube right", "cube behind"],
        ["ball left", "ball front"],
    ]


def test_lessons_are_true(teacher: Teacher):
    seen = set()
    for lesson in lessons(teacher):
        seen.add(lesson.name)
        owners = None if lesson.owners is None else lesson.owners.reshape(-1)
        text = lesson.text.split("\n")[0] if "What is the main" in lesson.text else None
        if lesson.kind == "background":
            assert lesson.answer == "wood" and (owners[lesson.sets >= 0] == 0).all()
        elif lesson.kind == "absent" and lesson.visual:
            assert lesson.answer == "none" and (owners[lesson.sets >= 0] == 0).all()
        elif lesson.name in ("motion", "temporal") and lesson.answer == "ball":
            assert "not" not in lesson.text.split("\n")[0] and set(owners[lesson.sets >= 0]) == {1}
        elif lesson.name in ("motion frame", "temporal frame"):
            assert lesson.answer == "object" and set(owners[lesson.sets >= 0]) == {1, 2}
        elif lesson.kind in ("attribute", "size") and text and ("red" in text or "small" in text):
            assert lesson.answer == "ball" and set(owners[lesson.sets >= 0]) == {1}
        elif lesson.kind == "choice":
            assert lesson.answer in lesson.text
        if lesson.sets is not None:
            # One set for each row of tokens and target.
            rows = np.arange(len(owners)) // (len(owners) // lesson.rows)
            keys = {(row, owner) for row, owner, one in zip(rows, owners, lesson.sets) if one >= 0}
            assert len(keys) == lesson.sets.max() + 1
    assert {"motion", "attribute", "size", "relation", "background frame", "choice", "absent frame"} <= seen


def test_a_written_lesson_is_the_adapters_prompt(teacher: Teacher, clip: TabletopClip, tmp_path):
    """Same ids, same positions, and the tower's tokens: then what is trained is what will be asked."""
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    model = new_model(tokenizer)
    write_checkpoint(tmp_path, model, tokenizer)
    mllm = load_mllm(MllmConfig(checkpoint=str(tmp_path), video_tokens=48, local_files_only=True, device="cpu"))
    trainer = TowerTrainer(model)
    writer, rng = Writer(tokenizer, CHAT_TEMPLATE), np.random.default_rng(0)
    for name, grid, visual in (
        ("video", VIDEO_GRID, mllm.video(clip.images[teacher.visuals["video"].rows.reshape(-1)])),
        ("image", FRAME_GRID, mllm.frames(clip.images[[3]])),
    ):
        lesson = next(one for one in lessons(teacher) if one.visual == name and visual.grid[0] == one.rows)
        prompt = mllm.prompt(visual, lesson.text)
        count = lesson.rows * grid[0] * grid[1]
        batch = writer.batch([(lesson, np.zeros((count, 128), np.float32))], 1.0, rng)
        assert batch.ids[:, :-1].tolist() == prompt.inputs["input_ids"].tolist()
        assert (batch.positions[..., :-1] == prompt.positions).all()
        assert (batch.visual[:, :-1] == prompt.visual).all()
        built = scenes(clip, teacher.visuals[name], grid, np.arange(1))
        pixels = visual.inputs["pixel_values_videos" if name == "video" else "pixel_values"]
        assert torch.allclose(patches(torch.from_numpy(built.pixels)), pixels[: 4 * grid[0] * grid[1]], atol=1e-5)
        assert trainer.features(built.pixels)[0].shape == (grid[0] * grid[1], 128)
    prefill(mllm.model, prompt, 3, keep_cache=False)


def test_trained_language_model_is_the_real_one(teacher: Teacher):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    questions = [(lesson, ideal_tokens(teacher, lesson)) for lesson in lessons(teacher, 3)]
    batch = Writer(tokenizer, CHAT_TEMPLATE).batch(questions, 1.0, np.random.default_rng(0))
    with torch.no_grad():
        got = trainer.logits(batch)
        real = trainer.model.eval()
        real.model.language_model.set_attn_implementation("eager")
        for place, valid in enumerate(batch.valid):
            ids, features = (
                batch.ids[place, valid],
                batch.features[batch.visual[: place + 1].sum() - batch.visual[place].sum() :],
            )
            embedded = real.model.language_model.embed_tokens(ids)
            embedded[batch.visual[place, valid]] = features[: batch.visual[place].sum()]
            seen = real.model.language_model(
                inputs_embeds=embedded[None],
                position_ids=batch.positions[:, place : place + 1, valid],
                output_attentions=True,
            )
            wanted = real.lm_head(seen.last_hidden_state[0, -2:])
            assert (got[place] - wanted).abs().max() < 0.1 * wanted.std(), "up to bfloat16's rounding"
            for layer in LOOKING_LAYERS:
                row = trainer.text.layers[layer].self_attn.kept[place, :, -2].float().mean(0)[valid]
                assert torch.allclose(row, seen.attentions[layer][0, :, -2].mean(0), atol=0.01)


def test_looking_loss_is_least_on_the_target(teacher: Teacher):
    tokenizer = new_tokenizer()
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    lesson = next(one for one in lessons(teacher) if one.name == "attribute")
    tokens = ideal_tokens(teacher, lesson)
    batch = Writer(tokenizer, CHAT_TEMPLATE).batch([(lesson, tokens)], 1.0, np.random.default_rng(0))
    on_target, elsewhere = batch.sets >= 0, batch.visual & (batch.sets < 0)
    rows = lesson.sets.max() + 1
    losses, found = [], []
    for row in (on_target, elsewhere, batch.visual, ~batch.visual):
        weight = row.float()
        if row is on_target:  # evenly over the sets
            weight = torch.stack([(batch.sets == k) / (batch.sets == k).sum() for k in range(rows)]).sum(0)
        for layer in LOOKING_LAYERS:
            kept = weight / weight.sum()
            trainer.text.layers[layer].self_attn.kept = kept.expand(1, 4, kept.shape[1], -1)
        loss, shares = trainer._looking(batch)
        losses.append(loss.item())
        found.append(shares[0])
    assert losses[0] == pytest.approx(0, abs=0.02) and found[0] == pytest.approx(1)
    assert losses[0] < losses[2] < losses[1] and losses[3] > losses[2] and found[1] == 0


def test_trained_rollout_is_the_real_one():
    torch.manual_seed(0)
    batch, heads, tokens = 2, 4, 20
    query, key = torch.randn(2, 3, batch, heads, tokens, 8)
    visual, valid = torch.zeros(2, batch, tokens, dtype=torch.bool)
    visual[:, 6:14], valid[0], valid[1, 3:] = True, True, True
    # One token more, the answer; the rollout is that of the token before it.
    mask = torch.ones(tokens, tokens).tril().bool() & valid[:, None, None] | torch.eye(tokens).bool()
    layers = [(q @ k.transpose(-1, -2) * 0.5).masked_fill(~mask, -1e4).softmax(-1) for q, k in zip(query, key)]
    recorded = [LayerAttention(q[:, :, :-1], k[:, :, :-1], 0.5) for q, k in zip(query, key)]
    wanted = rollout_last_row(recorded, visual[:, :-1], valid[:, :-1])
    for attention in layers:  # its row counts for little among many; here it would not
        attention[:, :, -1] = 0
    got = last_row_of_rollout(layers, visual, valid)
    assert torch.allclose(got[:, :-1] * valid[:, :-1], wanted, atol=1e-5) and not got[:, -1].any()


def test_towers_training_reduces_the_loss_and_resumes(clip: TabletopClip, teacher: Teacher):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    videos = scenes(clip, teacher.visuals["video"], VIDEO_GRID, np.arange(4))
    images = joined([scenes(clip, teacher.visuals["image"], FRAME_GRID, np.arange(1))] * 2)
    trainer = TowerTrainer(new_model(tokenizer))
    losses = [trainer.step([videos, images], 1e-3)["loss"] for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]
    again = TowerTrainer(new_model(tokenizer))
    again.load_state_dict(trainer.state_dict())
    assert again.step([videos, images], 1e-3)["loss"] == pytest.approx(trainer.step([videos, images], 1e-3)["loss"])


def test_a_mirrored_scene_says_what_the_mirror_shows(clip: TabletopClip, teacher: Teacher):
    pairs = scenes(clip, teacher.visuals["video"], VIDEO_GRID, np.arange(3))
    again = pairs.varied(np.random.default_rng(0))
    flipped = [(a.owners[::, ::-1] == b).all() for a, b in zip([pairs.some(k) for k in range(3)], again.owners)]
    assert any(flipped) and not all(flipped)
    for place in np.flatnonzero(flipped):
        assert (again.fine[place] == pairs.fine[place][:, ::-1]).all()
        was, now = pairs.facts[place], again.facts[place]
        motion = OFFSETS["motion"] + GROUPS["motion"].index("right"), OFFSETS["motion"] + GROUPS["motion"].index("left")
        assert was[1, motion[0]] == now[1, motion[1]] == 1 and now[1, motion[0]] == 0
        near = [OFFSETS["neighbours"] + NEIGHBOURS.index(f"cube {side}") for side in ("right", "left", "behind")]
        assert was[1, near].tolist() == [1, 0, 1] and now[1, near].tolist() == [0, 1, 1]
        assert np.isclose(again.boxes[place, 1, 0], 1 - pairs.boxes[place, 1, 0])


def test_crops_show_the_same_object(clip: TabletopClip, teacher: Teacher):
    images = scenes(clip, teacher.visuals["image"], FRAME_GRID, np.arange(2))
    crops = images.cropped(6, np.random.default_rng(0))
    assert crops.pixels.shape == (2, 1, 6 * TOKEN_PX, 6 * TOKEN_PX, 3) and crops.owners.shape == (2, 6, 6)
    for owners, fine, boxes in zip(crops.owners, crops.fine, crops.boxes):
        whole = [k for k in (1, 2) if (np.abs(boxes[k, :2] - 0.5) + boxes[k, 2:] / 2 <= 0.5).all()]
        assert whole and set(owners.reshape(-1)) >= set(whole)
        ys, xs = np.nonzero(fine == whole[0])
        assert np.allclose((boxes[whole[0], :2] * 48), (xs.mean() + 0.5, ys.mean() + 0.5), atol=1.5)
    assert (crops.facts[:, 1:, OFFSETS["neighbours"] :] == 0.5).all()


def test_language_training_reduces_the_loss_and_resumes(teacher: Teacher):
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    rng = np.random.default_rng(0)
    questions = [(lesson, ideal_tokens(teacher, lesson)) for lesson in lessons(teacher, 4)]
    batch = Writer(tokenizer, CHAT_TEMPLATE).batch(questions, 0.1, rng, short=True)
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    trainer.start_from_words(tokenizer)
    losses = [trainer.step(batch, 2e-3, 0.3)[0] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    again = LanguageTrainer(new_model(tokenizer), tokenizer)
    again.load_state_dict(trainer.state_dict())
    assert again.step(batch, 1e-3, 0.3) == pytest.approx(trainer.step(batch, 1e-3, 0.3), rel=1e-3)
    assert "motion" in trainer.check([batch]) or "attribute" in trainer.check([batch])
