"""The training of the table's SAM 2, on drawn clips."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from drawn_clips import drawn_clip

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2 import PointMasks, Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Frame
from decaf_tabletop.training import sam2_check
from decaf_tabletop.training.sam2 import FINAL_PHASE, Recipe, Trainer, read_state
from decaf_tabletop.training.sam2_check import score_clicks
from decaf_tabletop.training.sam2_data import (
    FINE,
    ClipPool,
    augmented,
    clicks,
    make_targets,
    masks_at,
    touching,
    with_cut,
    with_object_in_front,
    with_patch_in_front,
)
from decaf_tabletop.training.sam2_losses import Predictions, losses
from decaf_tabletop.training.sam2_model import fresh_model, write_model
from decaf_tabletop.training.sam2_steps import cheap_attention, click, embed, follow
from decaf_tabletop.world.clip import TabletopClip

SMALL = Recipe(minutes=1e9, frames=3, clips=1, most_objects=3, rate=1e-3, warm_up_steps=5, pool=4)


@pytest.fixture
def pool(tmp_path: Path) -> ClipPool:
    for number in range(3):
        (tmp_path / f"clip_{number}.npz").touch()
    pool = ClipPool(tmp_path, lambda path: drawn_clip(int(path.stem[-1]), frames=8), capacity=4)
    for _ in range(3):
        pool.exchange(np.random.default_rng(0))
    return pool


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_few_steps_reduce_the_loss(pool):
    trainer = Trainer(SMALL, seed=0)
    reports = [trainer.train(pool) for _ in range(16)]
    for name in ("loss", "mask", "dense", "sketch"):
        first, last = (np.mean([report[name] for report in part]) for part in (reports[:3], reports[-3:]))
        assert last < 0.85 * first, f"{name}: {first:.3f} to {last:.3f}"


def test_the_memory_is_trained_and_resuming_is_exact(pool, tmp_path):
    began = Trainer(SMALL, seed=0)
    began.recipe = Recipe(**{**vars(SMALL), "single": 0.0})
    before = copy.deepcopy(began.model.state_dict())
    began.step = 1
    assert "follow_presence" in began.train(pool)
    changed = {name for name, value in began.model.state_dict().items() if not torch.equal(value, before[name])}
    for part in ("memory_attention.", "memory_encoder.", "obj_ptr_proj.", "maskmem_tpos_enc", "mask_downsample"):
        assert any(name.startswith(part) for name in changed), part

    resumed = Trainer(began.recipe, seed=1)
    torch.save(began.state(), tmp_path / "checkpoint.pt")
    resumed.restore(read_state(tmp_path / "checkpoint.pt"))
    for trainer in (began, resumed):
        trainer.step = 2  # a step without a new clip for the pool, which both share
        trainer.train(pool)
    assert resumed.step == began.step == 3
    for name in ("model", "average", "heads"):
        first, second = getattr(began, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_starting_from_weights_enters_the_final_phase_without_auxiliary_losses(pool):
    recipe, weights = Recipe(**{**vars(SMALL), "minutes": 10.0}), fresh_model(3)
    trainer = Trainer(recipe, seed=0)
    trainer.start_from(weights)
    assert (
        trainer.progress == pytest.approx(1 - FINAL_PHASE)
        and trainer.auxiliary_weight == 0
        and Trainer(recipe, seed=0).auxiliary_weight == 0.5
    )
    resumed = Trainer(recipe, seed=1)
    state = copy.deepcopy(trainer.state())
    with pytest.raises(ValueError, match="expected a training that began from nothing, got one from other"):
        resumed.restore(state)
    resumed.start_from(fresh_model(4))
    with pytest.raises(ValueError, match="began from the same weights, got one from other weights"):
        resumed.restore(state)
    with pytest.raises(ValueError, match="got one from unrecorded weights"):
        resumed.restore({name: value for name, value in state.items() if name != "begun_from"})
    resumed.start_from(fresh_model(3))
    resumed.restore(copy.deepcopy(trainer.state()))
    for each in (trainer, resumed):
        assert each.progress == pytest.approx(1 - FINAL_PHASE) and each.auxiliary_weight == 0
        for model in (each.model, each.average):
            assert all(torch.equal(value, weights.state_dict()[name]) for name, value in model.state_dict().items())
    heads = copy.deepcopy(trainer.heads.state_dict())
    trainer.train(pool)
    moved = [(ours - theirs).abs().max() for ours, theirs in zip(trainer.model.parameters(), weights.parameters())]
    assert 0 < max(moved) < 0.01, "a small step"
    assert all(torch.equal(value, heads[name]) for name, value in trainer.heads.state_dict().items() if value.ndim <= 1)


def test_the_pool_sees_a_growing_folder_and_names_an_empty_one(tmp_path):
    read = []
    pool = ClipPool(tmp_path, lambda path: read.append(path.stem) or drawn_clip(0, frames=2), capacity=2)
    rng = np.random.default_rng(0)
    with pytest.raises(FileNotFoundError, match="decaf_tabletop.world.store"):
        pool.exchange(rng)
    (tmp_path / "clip_1.npz").touch()
    pool.exchange(rng)
    (tmp_path / "clip_2.npz").touch()
    for _ in range(2):
        pool.exchange(rng)
    assert sorted(read) == ["clip_1", "clip_1", "clip_2"]
    assert len(pool.frames(rng, 5)) == 5 and len(pool.stretches(rng, 3, 2)) == 3


def test_stretches_are_drawn_around_occlusions(tmp_path):
    """The clip with an occlusion is drawn more often, mostly with the hidden frames."""
    clips = []
    for marker in (1, 2):
        labels = np.zeros((20, 24, 32), np.uint8)
        labels[:, 4:14, 4:14] = 1
        images = np.full((20, 24, 32, 3), marker, np.uint8)
        images[:, 0, 0, 0] = np.arange(20)  # frame index
        clips.append(dataclasses.replace(drawn_clip(0, frames=2), images=images, labels=labels))
        (tmp_path / f"clip_{marker - 1}.npz").touch()
    clips[1].labels[11:13, 4:14, 4:13] = 0
    pool = ClipPool(tmp_path, lambda path: clips[int(path.stem[-1])], capacity=2)
    rng = np.random.default_rng(0)
    for _ in range(2):
        pool.exchange(rng)
    drawn = [pool.stretches(rng, 1, 4)[0][0] for _ in range(400)]
    hidden = [images for images in drawn if images[0, 1, 1, 0] == 2]
    assert 0.68 < len(hidden) / len(drawn) < 0.82
    shows_hidden = [bool({11, 12} & set(images[:, 0, 0, 0].tolist())) for images in hidden]
    assert np.mean(shows_hidden) > 0.75
    assert np.mean([images[0, 0, 0, 0] > images[-1, 0, 0, 0] for images in drawn]) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def clip() -> TabletopClip:
    return drawn_clip(5, frames=4)


@pytest.fixture(scope="module")
def trained() -> Sam2:
    """The shipped checkpoint: in an untrained one memory and clicks hardly affect masks and scores."""
    folder = Path(__file__).parents[1] / "decaf_tabletop" / "models" / "tabletop_sam2"
    return load_sam2(Sam2Config(str(folder), device="cpu"), fill_holes_px=0)


def test_training_follows_like_the_node(trained, monkeypatch):
    """`follow` matches `ObjectMemory`, over more frames than the memory holds, some of them empty."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)  # the node stores its memory in bfloat16
    clip = drawn_clip(5, frames=9)
    images = clip.images.copy()
    images[4:6] = 110
    model = trained.model
    monkeypatch.setattr(
        model, "no_obj_ptr", torch.nn.Parameter(1000 * model.no_obj_ptr.detach())
    )  # otherwise without visible effect
    frames = [Frame(image, index) for index, image in enumerate(images)]
    ids = [label for label in np.unique(clip.labels[0]) if label]
    with torch.no_grad(), cheap_attention():
        embedded = [embed(model, trained.normalised(image)) for image in images]
        each = torch.zeros(len(ids), dtype=torch.int64)
        prompts = masks_at([clip.labels[0]] * len(ids), ids)
        predictions, _ = follow(model, [image.select(each) for image in embedded], prompts)
    masks = torch.from_numpy(np.stack([clip.labels[0] == label for label in ids]))
    memory = ObjectMemory.start(trained, trained.embed(frames[0]), masks)
    steps = [memory.step(trained.embed(frame)) for frame in frames[1:]]
    node = torch.stack([step.object_score for step in steps])
    training = torch.stack([prediction.object_score for prediction in predictions])
    assert (node > 0).any() and (node < 0).any(), "expected both kinds of memory"
    np.testing.assert_allclose(node, training, atol=1e-4)
    for step, prediction in zip(steps, predictions):
        best = prediction.logits[torch.arange(len(ids)), prediction.iou.argmax(1), None]
        best = torch.where(prediction.object_score[:, None, None, None] > 0, best, -1.0)
        best = masks_of_size(best[:, 0], clip.images.shape[1:3])
        assert (step.masks != best).float().mean() < 0.001


def test_training_clicks_like_the_node(clip, trained):
    """`click` matches `masks_at_points`."""
    points = np.array([[0.2, 0.4], [0.7, 0.6]], np.float32)
    frame = clip.frames()[0]
    with torch.no_grad(), cheap_attention():
        embedded = embed(trained.model, trained.normalised(frame.image)).select(torch.zeros(2, dtype=torch.int64))
        trained_click, _ = click(trained.model, embedded, torch.from_numpy(points) * 256)
    found = trained.masks_at_points(trained.embed(frame), points)
    np.testing.assert_allclose(found.object_score, trained_click.object_score, atol=1e-3)
    np.testing.assert_allclose(found.iou, trained_click.iou[:, 1:].max(1).values, atol=1e-3)


def test_the_written_folder_loads(tmp_path, clip):
    model = fresh_model(1)
    write_model(tmp_path, model)
    assert (tmp_path / "model.safetensors").stat().st_size < 10_000_000
    loaded = load_sam2(Sam2Config(str(tmp_path), device="cpu"))
    assert all(value.dtype == torch.float32 for value in loaded.model.state_dict().values())
    written = Sam2(model, Sam2Config(device="cpu"))
    points, frame = np.array([[0.5, 0.5]], np.float32), clip.frames()[0]
    first, second = (sam2.masks_at_points(sam2.embed(frame), points) for sam2 in (written, loaded))
    np.testing.assert_allclose(first.iou, second.iou, atol=0.01)
    np.testing.assert_allclose(first.object_score, second.object_score, atol=0.02)


def test_targets_and_the_true_iou():
    labels = np.zeros((240, 320), np.uint8)
    labels[60:130, 100:180] = 1
    labels[5:8, 5:9] = 2  # 12 pixels: undecided
    targets = make_targets([labels] * 4, [1, 2, 3, 0])
    np.testing.assert_array_equal(targets.present, [1, np.nan, 0, 0])
    assert targets.coarse[0].mean() == pytest.approx(70 * 80 / (240 * 320), rel=1e-3)
    x0, y0, x1, y1 = targets.box[0].tolist()
    assert x0 < 100 / 320 and x1 > 180 / 320 and y0 < 60 / 240 and y1 > 130 / 240
    assert targets.fine[0].mean() * (x1 - x0) * (y1 - y0) == pytest.approx(70 * 80 / (240 * 320), rel=0.05)

    down, across = np.mgrid[:FINE, :FINE][:, targets.fine[0].numpy() > 0.5].mean(1) + 0.5
    assert x0 + across / FINE * (x1 - x0) == pytest.approx(140 / 320, abs=0.002)
    assert y0 + down / FINE * (y1 - y0) == pytest.approx(95 / 240, abs=0.002)

    perfect = torch.where(targets.coarse > 0.5, 9.0, -9.0)[:, None]
    moved = perfect.roll(12, 3)
    wrong = torch.full_like(perfect, 9.0)
    logits = torch.cat([perfect, moved, wrong], 1)
    sure = torch.tensor([[1.0, 0, 0]] * 4)
    score = torch.tensor([5.0, 0, -5, -5])
    right = losses(Predictions(logits, sure, score), targets)
    assert right.best_iou > 0.9 and right.presence < 0.01
    worse = losses(Predictions(logits, sure.flip(1), -score), targets)
    assert worse.best_iou == pytest.approx(70 * 80 / (240 * 320), abs=0.01)
    assert worse.presence > 1 and worse.iou > right.iou
    assert (
        losses(Predictions(perfect, sure[:, :1], score), targets).mask
        < losses(Predictions(moved, sure[:, :1], score), targets).mask
    )


def test_clicks_lie_on_their_objects(clip):
    rng = np.random.default_rng(0)
    chosen = clicks([clip.labels[0], clip.labels[1]], rng, each=3, background=4.0)
    assert set(chosen.frame.tolist()) == {0, 1}
    for frame, (x, y), present in zip(chosen.frame, chosen.points.tolist(), chosen.targets.present):
        hit = clip.labels[frame][int(y / 256 * 240), int(x / 256 * 320)]
        assert (hit > 0) == bool(present)
    assert 0 in chosen.targets.present and 1 in chosen.targets.present


def test_augmentation_moves_image_and_labels_together(clip):
    """An object painted white on black stays where its labels are."""
    images = np.repeat(((clip.labels == 1) * 255)[..., None], 3, axis=-1).astype(np.uint8)
    for seed in range(4):
        pixels, labels = augmented((images, clip.labels), np.random.default_rng(seed))
        for image, label in zip(pixels, labels):
            truth = masks_at([label], [1])[0, 0] > 0
            bright = image.mean(0)
            assert bright[truth].mean() > bright[~truth].mean() + 2
            assert ((bright > (bright.max() + bright.min()) / 2) == truth).float().mean() > 0.98


def test_an_occluder_hides_and_does_not_change_the_first_frame(clip):
    pair = (clip.images, clip.labels)
    other = np.zeros_like(clip.labels)
    other[:, ::2] = 4
    images, labels = with_patch_in_front(pair, [(np.zeros_like(clip.images), other)], np.random.default_rng(0))
    np.testing.assert_array_equal(labels[0], clip.labels[0])
    hidden = labels != clip.labels
    assert hidden.any() and (images[hidden] == 0).all()
    # Objects of the other clip within the patch keep labels of their own.
    assert set(labels[hidden]) == {0, 4 + clip.labels.max()}
    np.testing.assert_array_equal(images[~hidden & (clip.labels > 0)], clip.images[~hidden & (clip.labels > 0)])


def test_an_object_of_another_clip_passes_in_front_with_its_outline(clip):
    pair = (clip.images, clip.labels)
    other_images, other_labels = np.full_like(clip.images, 7), np.zeros_like(clip.labels)
    other_images[:, 100:140, 150:190], other_labels[:, 100:140, 150:190] = (50, 200, 60), 3
    new_label = int(clip.labels[0].max()) + 1
    means = [clip.images[0][clip.labels[0] == label].mean(0) for label in range(1, new_label)]
    hides, colors = 0, set()
    for seed in range(8):
        images, labels = with_object_in_front(pair, [(other_images, other_labels)], np.random.default_rng(seed))
        passing = labels == new_label
        assert passing.any()
        # A square of one colour, its own or the passed object's, without its own background.
        inner = np.stack([cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for mask in passing])
        (color,) = {tuple(pixel) for pixel in images[inner].tolist()}
        assert color == (50, 200, 60) or min(np.abs(color - mean).max() for mean in means) < 5
        assert not (images == 7).all(-1).any()
        colors.add(color)
        np.testing.assert_array_equal(labels[~passing], clip.labels[~passing])
        around = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0 for mask in passing])
        np.testing.assert_array_equal(images[~around], clip.images[~around])
        places = [np.argwhere(mask).mean(0) for mask in passing if mask.any()]
        hides += len(places) > 1 and np.ptp(places, axis=0).max() > 5 and bool(clip.labels[passing].any())
    assert hides >= 6 and (50, 200, 60) in colors and len(colors) > 1
    # Unchanged without an object to hide, or without a large enough occluder.
    empty = (clip.images, np.zeros_like(clip.labels))
    sliver = (clip.images, np.zeros_like(clip.labels))
    sliver[1][:, 100:130, 50:52] = 1
    for unchanged, others in ((empty, [pair]), (pair, [empty]), (pair, [sliver])):
        np.testing.assert_array_equal(
            with_object_in_front(unchanged, others, np.random.default_rng(0))[1], unchanged[1]
        )


def test_touching_objects_are_adjacent_in_either_direction():
    labels = np.zeros((2, 40, 40), np.uint8)
    labels[0, 5:15, 5:15], labels[0, 5:15, 16:20], labels[0, 30:35, 5:15] = 1, 2, 3
    assert touching(labels) == {1, 2}
    labels[1, 10:20, 30:35], labels[1, 22:30, 30:35] = 4, 5
    assert touching(labels) == {1, 2, 4, 5}
    labels[1, 22:25, 30:35] = 0
    assert touching(labels) == {1, 2}


def test_a_cut_replaces_the_images_and_the_objects(clip):
    other = (np.full_like(clip.images, 7), np.zeros_like(clip.labels))
    other[1][:, 50:90, 60:100] = 1
    images, labels = with_cut((clip.images, clip.labels), other, np.random.default_rng(0))
    gone = (images == 7).all((1, 2, 3))
    assert gone.any() and not gone[0]
    # The other clip's objects appear instead.
    assert set(np.unique(labels[gone])) == {0, 1 + clip.labels.max()}
    np.testing.assert_array_equal(images[~gone], clip.images[~gone])
    np.testing.assert_array_equal(labels[~gone], clip.labels[~gone])


def test_the_check_counts_a_perfect_and_an_empty_answer(clip):
    class Oracle:
        def embed(self, frame):
            return clip.labels[frame.index]

        def masks_at_points(self, labels, xy):
            ids = labels[(xy[:, 1] * 240).astype(int), (xy[:, 0] * 320).astype(int)]
            masks = torch.from_numpy((labels == ids[:, None, None]) & (ids > 0)[:, None, None])
            on_object = torch.from_numpy(ids > 0).float()
            return PointMasks(masks.float() * 2 - 1, on_object, on_object * 10 - 5, (240, 320))

    means = score_clicks(Oracle(), [clip]).means()
    assert means["one_click_iou"] == means["score_right_on"] == means["score_right_beside"] == 1
    assert means["predicted_beside"] == 0 and means["correlation"] == pytest.approx(1)


def test_the_check_counts_tracks_that_take_another_object_along(monkeypatch):
    clip = drawn_clip(0, frames=8)
    ids = [int(label) for label in np.unique(clip.labels[0]) if label]
    masks = np.stack([clip.labels == label for label in ids])
    scores = np.where(masks.any((2, 3)), 5.0, -5.0)
    monkeypatch.setattr(sam2_check, "track_objects", lambda _sam2, _clip: (ids, sam2_check.Tracks(masks, scores)))
    right = sam2_check.score_tracks(None, [clip]).means()
    assert right["followed_iou"] == 1 and right["took_another"] == 0
    assert right["score_right_seen"] == 1

    taken = int(np.bincount(clip.labels[-1].ravel())[1:].argmax())
    masks[1 - min(taken, 1), -1] |= clip.labels[-1] == ids[taken]
    wrong = sam2_check.score_tracks(None, [clip])
    assert sum(wrong.took_another) == 1 and wrong.means()["followed_iou"] < 1
