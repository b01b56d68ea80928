"""Training questions about marked objects match what `segmentation.verify` asks."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from training_scene import rolling_ball

from decaf_ros.config import MllmConfig
from decaf_ros.grounding.grounder import video_view
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.prompts import verification_prompt
from decaf_ros.offline import key_frames
from decaf_ros.segmentation.marking import marked_image
from decaf_ros.types import Tracklet, TrackletScores
from decaf_ros.verification import marked_window
from decaf_tabletop.training import mllm_marked
from decaf_tabletop.training.chat import CHAT_TEMPLATE
from decaf_tabletop.training.mllm_batches import Writer
from decaf_tabletop.training.mllm_clips import EncodedClip
from decaf_tabletop.training.mllm_marked import (
    ABSENT_WEIGHT,
    HARD_WEIGHT,
    _hardness,
    marked_examples,
    marked_images,
    marked_objects,
)
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer, write_checkpoint
from decaf_tabletop.training.mllm_tower import TowerTrainer
from decaf_tabletop.world.clip import Expression, TabletopClip


@pytest.fixture(scope="module")
def clip() -> TabletopClip:
    return rolling_ball()


@pytest.fixture(scope="module")
def encoded(clip: TabletopClip, tmp_path_factory) -> tuple[EncodedClip, str]:
    """With exact masks; and the folder of the model whose tower encoded it."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = new_tokenizer()
    torch.manual_seed(0)
    model = new_model(tokenizer)
    write_checkpoint(folder, model, tokenizer)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(mllm_marked, "MASK_ERROR_PX", (0,))
        return EncodedClip(clip, TowerTrainer(model)), str(folder)


def test_a_question_means_the_marked_object_as_often_as_another(encoded: tuple[EncodedClip, str]):
    sampler, rng = encoded[0].sampler, np.random.default_rng(0)
    for marked in (0, 1):
        drawn = marked_examples(sampler, rng, marked, 200)
        meant = {example.text for example in drawn if example.answer == "yes"}
        assert not meant & {example.text for example in drawn if example.answer == "no"}
        assert len(meant) > 2 and abs(np.mean([example.answer == "yes" for example in drawn]) - 0.5) < 0.1
        for name, other in (("red", "blue"), ("ball", "cube")):
            own, another = (name, other) if marked == 0 else (other, name)
            asked = {example.answer for example in drawn if example.text.startswith(f"the {own}.\n")}
            assert asked <= {"yes"}
            assert {example.answer for example in drawn if example.text.startswith(f"the {another}.\n")} <= {"no"}
        assert not any(example.focus.any() or example.has_targets for example in drawn)


def test_no_is_asked_most_often_where_it_is_hard(encoded: tuple[EncodedClip, str]):
    """The ball moves, the cube rests; they share nothing."""
    sampler = encoded[0].sampler
    explicit, absent = (Expression("it", kind, targets, "") for kind, targets in (("explicit", (1,)), ("absent", ())))
    motion = Expression("the object that did not move", "motion", (1,), "cube")
    assert [_hardness(sampler, 0, one) for one in (explicit, motion, absent)] == [1.0, HARD_WEIGHT, ABSENT_WEIGHT]
    assert _hardness(sampler, 1, Expression("the moving object", "motion", (0,), "ball")) == 1.0
    # A clip whose objects are both red.
    alike = copy.copy(sampler)
    things = tuple(dataclasses.replace(thing, color="red") for thing in sampler.clip.objects)
    alike.clip = dataclasses.replace(sampler.clip, objects=things)
    assert _hardness(alike, 0, explicit) == HARD_WEIGHT


def test_the_marks_have_the_errors_of_masks(clip: TabletopClip):
    exact = np.stack([marked_image(image, labels == 2) for image, labels in zip(clip.images, clip.labels)])
    differences = set()
    for seed in range(12):
        bright = (marked_images(clip, 1, np.random.default_rng(seed))[0] == exact[0]).all()
        differences.add(bool(bright))
    assert differences == {True, False}


def test_objects_out_of_sight_are_not_marked(clip: TabletopClip, encoded: tuple[EncodedClip, str]):
    sampler = encoded[0].sampler
    assert marked_objects(sampler, np.random.default_rng(0)) == [0, 1]
    owners = sampler.visuals["video"].owners
    kept = owners.copy()
    owners[owners == 1] = 0
    try:
        assert marked_objects(sampler, np.random.default_rng(0)) == [1]
        owners[:] = 0
        assert marked_objects(sampler, np.random.default_rng(0)) == [0, 1]
    finally:
        owners[:] = kept


def test_training_asks_as_the_method_does(clip: TabletopClip, encoded: tuple[EncodedClip, str]):
    """Equal ids and, but for rounding, equal visual tokens of the same marked object."""
    one, folder = encoded
    config = MllmConfig(checkpoint=folder, video_tokens=48, local_files_only=True, device="cpu", dtype="float32")
    mllm = load_mllm(config)
    pack = one.marked_pack(np.random.default_rng(0), 3)
    marked = next(
        k for k, tokens in one.marked.items() if np.array_equal(tokens.reshape(pack.tokens.shape), pack.tokens)
    )
    batch = Writer(mllm.tokenizer, CHAT_TEMPLATE).batch([pack], 1.0, np.random.default_rng(0))
    window = key_frames(clip.frames(), 16)
    masks = [clip.labels[frame.index] == marked + 1 for frame in window.frames]
    tracklet = Tracklet(masks, 0, (0.5, 0.5), TrackletScores(1.0, 1.0, 1.0, 1.0), 1.0, 1.0)
    view = video_view(mllm, marked_window(window, tracklet, 0))
    for question, example in zip(batch.own_tokens[0], pack.examples):
        query = example.text.split("\n")[0]
        assert example.text == verification_prompt(query, "video")
        assert batch.ids[0, question].tolist() == mllm.prompt(view.layout, example.text).ids.tolist()
    images = np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])
    features = torch.cat([unit.tokens for unit in mllm.encode(view.layout, images)])
    own = torch.from_numpy(pack.tokens.astype(np.float32))
    assert (own - features).norm() < 0.15 * (features - features.mean(dim=0)).norm()
    with pytest.raises(ValueError, match="expected the tokens of a tower"):
        EncodedClip(clip, None).marked_pack(np.random.default_rng(0), 3)
