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
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, smooth
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.tabletop.clip import Expression, TabletopClip, TabletopObject
from decaf_ros.tabletop.expressions import MOVERS
from training.cpu import speed_up
from training.mllm_batches import Batch, Pack, Writer
from training.mllm_language import LOOKING_LAYERS, TAP, LanguageTrainer, contrast_losses, last_rows_of_rollout
from training.mllm_lessons import (
    FALLING,
    FRAME_GRID,
    MOVING,
    VIDEO_GRID,
    Lesson,
    Teacher,
    image_visual,
    liveliness,
    video_visual,
)
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


def packs(teacher: Teacher, count: int = 50) -> list[Pack]:
    """Of four questions each, with ideal tokens."""
    rng = np.random.default_rng(1)
    found = []
    for visual in ("video", "image", ""):
        for _ in range(count):
            asked = teacher.lessons(rng, visual, 4)
            found.append(Pack(asked, ideal_tokens(teacher, asked[0])))
    return found


def lessons(teacher: Teacher) -> list[Lesson]:
    return [lesson for pack in packs(teacher) for lesson in pack.lessons]


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


def test_what_moves_and_what_falls_is_shown_oftener(clip: TabletopClip):
    video = video_visual(clip)
    assert (liveliness(video) == MOVING).all()
    still, fell = (OFFSETS["motion"] + GROUPS["motion"].index(name) for name in ("still", "fell"))
    video.facts[0, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(GROUPS["motion"])] = 0
    video.facts[1] = video.facts[0]
    video.facts[0, 1, still] = video.facts[1, 1, fell] = 1
    assert liveliness(video).tolist() == [1.0, FALLING, *[MOVING] * 6]
    # What cannot be seen does not count.
    video.owners[video.owners == 1] = 0
    assert (liveliness(video) == 1).all()


def test_lessons_are_true(teacher: Teacher):
    seen = set()
    for lesson in lessons(teacher):
        seen.add(lesson.name)
        owners = None if lesson.owners is None else lesson.owners.reshape(-1)
        text = lesson.text.split("\n")[0] if "What is the main" in lesson.text else None
        if lesson.kind == "background":
            assert lesson.answer == "wood" and (owners[lesson.look > 0] == 0).all()
        elif lesson.kind == "absent" and lesson.visual:
            assert lesson.answer == "none" and (owners[lesson.look > 0] == 0).all()
        elif lesson.name in ("motion", "temporal"):
            rests = "did not move" in lesson.text or "stays still" in lesson.text
            assert (lesson.answer, set(owners[lesson.look > 0])) == (("cube", {2}) if rests else ("ball", {1}))
        elif lesson.name in ("motion frame", "temporal frame"):
            assert lesson.answer == "object" and set(owners[lesson.look > 0]) == {1, 2}
        elif lesson.kind in ("explicit", "attribute", "size") and text:
            is_ball = any(word in text for word in ("red", "small", "ball"))
            assert (lesson.answer, set(owners[lesson.look > 0])) == (("ball", {1}) if is_ball else ("cube", {2}))
        elif lesson.kind == "relation" and text:
            # What stands in a relation to the one is the other.
            to_ball = "ball" in text or "red" in text
            assert (lesson.answer, set(owners[lesson.look > 0])) == (("cube", {2}) if to_ball else ("ball", {1}))
        elif lesson.kind == "choice":
            assert lesson.answer in lesson.text
        if lesson.look is not None:
            # Every target in every row is as high as any other in the map that the method makes.
            look = lesson.look.reshape(lesson.owners.shape)
            for owner in set(owners[lesson.look > 0]):
                alone = np.where(lesson.owners == owner, look, 0)
                smoothed = smooth(alone, VIDEO_KERNEL if lesson.visual == "video" else FRAME_KERNEL)
                peaks = smoothed.max(axis=(1, 2))
                np.testing.assert_allclose(peaks[alone.any(axis=(1, 2))], 1, atol=1e-4)
    assert {"motion", "attribute", "size", "relation", "background frame", "choice", "absent frame"} <= seen


@pytest.mark.parametrize("text, kind", [(MOVERS, "several"), ("the moving object", "motion")])
def test_what_one_frame_cannot_show_is_not_asked_of_it(teacher: Teacher, text: str, kind: str):
    asked = Expression(text, kind, (0,), "ball")
    owners = teacher.visuals["image"].owners[:1]
    lesson = teacher._object(asked, "image", 0, owners, np.random.default_rng(0))
    assert lesson.answer == "object" and set(owners.reshape(-1)[lesson.look > 0]) == {1, 2}
    assert teacher._object(asked, "video", 0, owners, np.random.default_rng(0)).answer == "ball"
    votes = teacher._choice(asked, np.random.default_rng(0))
    assert "object" in votes.short.split(", ") and votes.answer == "ball"


def test_what_falls_weighs_more_in_the_towers_loss(clip: TabletopClip, teacher: Teacher):
    """A tower that takes everything for still is wrong by more where something falls."""
    torch.manual_seed(0)
    trainer = TowerTrainer(new_model(new_tokenizer()))
    built = scenes(clip, teacher.visuals["video"], VIDEO_GRID, np.arange(2))
    losses = []
    for word in ("still", "left", "fell"):
        words = np.zeros(len(GROUPS["motion"]))
        words[GROUPS["motion"].index(word)] = 1
        built.facts[:, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(words)] = words
        # The tokens say what they are to say, but for the motion: of that they say "still".
        said = built.facts.copy()
        said[:, 1, OFFSETS["motion"] : OFFSETS["motion"] + len(words)] = np.eye(len(words))[0]
        owners = torch.from_numpy(built.owners.astype(np.int64)).flatten(1)
        said = torch.from_numpy(said).float().gather(1, owners[..., None].expand(-1, -1, said.shape[-1]))
        tokens = said.flatten(0, 1) @ trainer.meanings
        hidden = torch.zeros(len(tokens) * 4, trainer.probes.in_features)
        trainer.features = lambda _, given=(tokens, hidden): given
        losses.append(trainer._loss(built)[0].item())
    assert losses[0] < losses[1] < losses[2]


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
        ("video", VIDEO_GRID, clip.images[teacher.visuals["video"].rows]),
        ("image", FRAME_GRID, clip.images[[[3]]]),
    ):
        layout = mllm.layout("video" if name == "video" else "frames", visual.shape[0] * visual.shape[1], (H, W))
        lesson = next(one for one in lessons(teacher) if one.visual == name and layout.grid[0] == one.rows)
        prompt = mllm.prompt(layout, lesson.text)
        count = lesson.rows * grid[0] * grid[1]
        batch = writer.batch([Pack([lesson, lesson], np.zeros((count, 128), np.float32))], 1.0, rng)
        for question in batch.rows[0]:
            assert batch.ids[0, question].tolist() == prompt.ids.tolist()
            assert (batch.positions[:, 0, question] == prompt.positions).all()
            assert (batch.visual[0, question] == prompt.visual).all()
        built = scenes(clip, teacher.visuals[name], grid, np.arange(1))
        (seen,) = mllm.encode(mllm.layout(layout.kind, visual.shape[1], (H, W)), visual[:1])
        # In bfloat16; the tower is fresh, and its tokens differ little.
        error = trainer.features(built.pixels)[0] - seen.tokens
        assert error.norm() < 0.1 * (seen.tokens - seen.tokens.mean(dim=0)).norm()


@pytest.fixture(scope="module")
def trainer() -> LanguageTrainer:
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    return LanguageTrainer(new_model(tokenizer), tokenizer)


def written(packs: list[Pack], keep: float = 1.0, short: bool = False) -> Batch:
    return Writer(new_tokenizer(), CHAT_TEMPLATE).batch(packs, keep, np.random.default_rng(0), short)


def test_a_packed_question_is_the_real_model_s_alone(trainer: LanguageTrainer, teacher: Teacher):
    """Logits, attention and rollout of each question of a pack, against the real model on that question alone."""
    batch = written([packs(teacher, 2)[place] for place in (0, 1, 2, 4)])
    assert len(set(batch.part[:, -1].tolist())) > 1, "expected some padding"
    with torch.no_grad():
        got = trainer.logits(batch)
        kept = {layer: trainer.text.layers[layer].self_attn.kept.float() for layer in LOOKING_LAYERS}
        rolled = last_rows_of_rollout(list(kept.values()), batch)
        real = trainer.model.eval()
        text = real.model.language_model
        text.set_attn_implementation("eager")
        embedded = text.embed_tokens(batch.ids).masked_scatter(batch.visual[..., None], batch.features)
        for b, q in np.ndindex(*batch.ends.shape):
            own = batch.rows[b, q].clone()
            own[batch.ends[b, q]] = True
            seen = text(
                inputs_embeds=embedded[b : b + 1, own],
                position_ids=batch.positions[:, b : b + 1, own],
                output_attentions=True,
            )
            wanted = real.lm_head(seen.last_hidden_state[0, -2:])
            assert (got[b, q] - wanted).abs().max() < 0.1 * wanted.std(), "up to bfloat16's rounding"
            for layer, attention in kept.items():
                row = attention[b, :, batch.ends[b, q] - 1]
                assert torch.allclose(row[:, own], seen.attentions[layer][0, :, -2], atol=0.02)
                assert row[:, ~own].abs().max() < 1e-6, "a question sees nothing of another"
            if batch.visual[b].any():
                # Of the same attention: its rounding is judged above, and would hide what is wrong here.
                row, own = rolled[b, q], batch.rows[b, q]
                alone = [attention[b][:, own][:, :, own] for attention in kept.values()]
                visual = batch.visual[b, own]
                torch.testing.assert_close(row[own][visual], _rollout_alone(alone, visual)[visual], rtol=0.01, atol=0)
        text.set_attn_implementation(TAP)
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
    trainer: LanguageTrainer, teacher: Teacher, name: str, is_contrasted: bool
):
    """Attention of no token but the last one of each question; half of it on what both questions look at."""
    pack = next(
        pack
        for pack in packs(teacher)
        if pack.lessons[0].name == name and pack.lessons[0].visual and pack.lessons[0].look.any()
    )
    batch = written([Pack([pack.lessons[0], pack.lessons[-1]], pack.tokens)])
    assert batch.contrasted.tolist() == [[is_contrasted, False]]
    visual = batch.visual[0]
    on_object, around = batch.look[0]
    owners = torch.zeros(len(visual), dtype=torch.int64)
    owners[visual] = torch.from_numpy(pack.lessons[0].owners.reshape(-1).astype(np.int64))
    wrong = (owners > 0) & (on_object == 0)  # an object that is not asked for

    def loss_of(looks: torch.Tensor, common: torch.Tensor) -> tuple[float, float]:
        """Of the object's question; what both questions look at besides."""
        for layer in LOOKING_LAYERS:
            kept = torch.zeros(1, 4, *[len(visual)] * 2)
            for end, row in zip(batch.ends[0], (looks, around)):
                kept[:, :, end - 1] = row / row.sum() / 2 + common / common.sum() / 2
            trainer.text.layers[layer].self_attn.kept = kept
        loss, shares = trainer._looking(batch)
        return loss.item(), shares[0]

    right, share = loss_of(on_object, visual.float())
    elsewhere, no_share = loss_of(wrong.float(), visual.float())
    both, _ = loss_of(on_object / on_object.sum() + wrong / wrong.sum(), visual.float())
    assert right < both < elsewhere
    if is_contrasted:
        assert share == pytest.approx(1, abs=1e-3) and no_share == pytest.approx(0, abs=1e-3)
        # What both questions look at is not in the contrast.
        assert loss_of(on_object, wrong.float())[1] == pytest.approx(1, abs=1e-3)
    else:
        assert np.isnan(share)


def test_the_contrast_is_pulled_to_the_target_and_to_nothing_without_one(teacher: Teacher):
    """The losses of the contrast alone, of maps that are put in."""

    def losses(name: str, on: torch.Tensor, background: torch.Tensor) -> float:
        rolled = torch.stack([on, background])[None] * batches[name].visual[:, None]
        wanted = batches[name].look / batches[name].look.sum(2, keepdim=True)
        return contrast_losses(rolled, batches[name], wanted).item()

    found = {}
    for pack in packs(teacher):
        if pack.lessons[0].visual == "video" and pack.lessons[0].look.any():
            found.setdefault(pack.lessons[0].name, Pack([pack.lessons[0], pack.lessons[-1]], pack.tokens))
    batches = {name: written([found[name]]) for name in ("attribute", "absent")}
    look, around = batches["attribute"].look[0]
    target, rest = look / look.sum(), around / around.sum()
    # However much both questions look at the rest, the target alone is left.
    right = losses("attribute", target + rest, rest)
    assert right < 0.1 and losses("attribute", target + 5 * rest, 5 * rest) < right + 0.2
    assert losses("attribute", target + rest, torch.zeros_like(rest)) > right + 0.3
    assert losses("attribute", target, target) > right + 1
    # Nothing to find: like the background, wherever that looks.
    _, around = batches["absent"].look[0]
    rest = around / around.sum()
    other = torch.zeros_like(rest)
    other[batches["absent"].visual[0].nonzero()[:5, 0]] = 0.2
    assert losses("absent", rest, rest) == pytest.approx(0, abs=0.01)
    assert losses("absent", other, rest) > 1 and losses("absent", other, other) == pytest.approx(0, abs=0.01)


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
    batch = written(packs(teacher, 4)[:8], 0.1, short=True)
    trainer = LanguageTrainer(new_model(tokenizer), tokenizer)
    trainer.start_from_words(tokenizer)
    losses = [trainer.step(batch, 2e-3, 0.3)[0] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    again = LanguageTrainer(new_model(tokenizer), tokenizer)
    again.load_state_dict(trainer.state_dict())
    assert again.step(batch, 1e-3, 0.3) == pytest.approx(trainer.step(batch, 1e-3, 0.3), rel=1e-3)
    assert "motion" in trainer.check([batch]) or "attribute" in trainer.check([batch])
