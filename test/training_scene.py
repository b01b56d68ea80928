"""A drawn clip and training examples about it."""

from __future__ import annotations

import math

import numpy as np

from decaf_tabletop.training.chat import CHAT_TEMPLATE
from decaf_tabletop.training.mllm_batches import Batch, Pack, Writer
from decaf_tabletop.training.mllm_examples import Example, ExampleSampler, image_visual, video_visual
from decaf_tabletop.training.mllm_model import new_tokenizer
from decaf_tabletop.training.mllm_words import fact_vectors
from decaf_tabletop.world.clip import TabletopClip, TabletopObject

F, H, W = 32, 240, 320
# Quaternion w, x, y, z of the camera in `rolling_ball`: its x axis points right, its z axis ahead.
LOOKING_AHEAD = (math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0)


def rolling_ball() -> TabletopClip:
    """A red ball rolls to the right, in the image below a resting large blue cube."""
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


def sampler_of(clip: TabletopClip) -> ExampleSampler:
    return ExampleSampler(clip, video_visual(clip), image_visual(clip, np.array([3, 20])))


def packs(sampler: ExampleSampler, count: int = 100) -> list[Pack]:
    """Packs of five questions each, with ideal tokens, `count` for each kind of visual input."""
    rng = np.random.default_rng(1)
    result = []
    for visual in ("video", "image", ""):
        for _ in range(count):
            drawn = sampler.examples(rng, visual, 5)
            result.append(Pack(drawn, ideal_tokens(sampler, drawn[0])))
    return result


def examples(sampler: ExampleSampler) -> list[Example]:
    return [example for pack in packs(sampler) for example in pack.examples]


def ideal_tokens(sampler: ExampleSampler, example: Example) -> np.ndarray | None:
    if not example.visual:
        return None
    rows = slice(example.row, example.row + example.rows)
    facts = sampler.visuals[example.visual].facts[rows] @ fact_vectors().numpy()
    return np.concatenate([row[owners.reshape(-1)] for row, owners in zip(facts, example.owners)])


def written(packs: list[Pack], keep: float = 1.0, short: bool = False) -> Batch:
    return Writer(new_tokenizer(), CHAT_TEMPLATE).batch(packs, keep, np.random.default_rng(0), short)
