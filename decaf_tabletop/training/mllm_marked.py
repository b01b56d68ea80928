"""Training examples for `segmentation.verify`: does an expression mean the object that is marked in the video?"""

from __future__ import annotations

import cv2
import numpy as np

from decaf_ros.evaluation.datasets.clips import is_absent_kind
from decaf_ros.grounding.prompts import verification_prompt
from decaf_ros.segmentation.marking import marked_image
from decaf_tabletop.training.mllm_examples import Example, ExampleSampler, needs_video
from decaf_tabletop.training.mllm_model import NO, YES
from decaf_tabletop.world.clip import Expression, TabletopClip
from decaf_tabletop.world.expressions import expressions

# Objects of a clip of which marked videos are made, at most: each takes as much memory as the clip itself.
MARKED_OBJECTS = 3
# Relative frequency of expressions that mean another object: hard ones (the objects share category, colour or size, or
# both move), and those without a target, which the method rarely asks about.
HARD_WEIGHT, ABSENT_WEIGHT = 3.0, 0.3
# Masks of SAM 2 differ from the truth by a pixel or two: marks grow or shrink by this many, drawn for each object.
MASK_ERROR_PX = (-2, -1, 0, 0, 1, 2)


def marked_objects(sampler: ExampleSampler, rng: np.random.Generator) -> list[int]:
    """Objects to mark, drawn among those that own a token of the video; among all if none does."""
    owners, everything = sampler.visuals["video"].owners, range(len(sampler.clip.objects))
    seen = [k for k in everything if (owners == k + 1).any()] or list(everything)
    return sorted(rng.choice(seen, min(MARKED_OBJECTS, len(seen)), replace=False).tolist())


def marked_images(clip: TabletopClip, marked: int, rng: np.random.Generator) -> np.ndarray:
    """The clip's images with one object marked, its mask with an error: (F, H, W, 3) uint8, RGB."""
    error = int(rng.choice(MASK_ERROR_PX))
    element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * abs(error) + 1,) * 2)
    change = cv2.dilate if error > 0 else cv2.erode
    masks = [change((labels == marked + 1).astype(np.uint8), element) > 0 for labels in clip.labels]
    return np.stack([marked_image(image, mask) for image, mask in zip(clip.images, masks)])


def marked_examples(sampler: ExampleSampler, rng: np.random.Generator, marked: int, count: int) -> list[Example]:
    """Draws `count` questions about the video in which the object `marked` is marked.

    Half of them mean it, if any expression does; the others mean another object or nothing, mostly hard ones.
    """
    meant: list[Expression] = []
    others: list[Expression] = []
    for expression in expressions(sampler.clip, rng, sampler.events):
        (meant if marked in expression.targets else others).append(expression)
    weights = {True: np.array([_rarity(one, meant) for one in meant])}
    weights[False] = np.array([_hardness(sampler, marked, one) for one in others])
    owners = sampler.visuals["video"].owners
    drawn = []
    for _ in range(count):
        is_meant = bool(meant) and rng.random() < 0.5
        group = meant if is_meant else others
        chosen = group[int(rng.choice(len(group), p=weights[is_meant] / weights[is_meant].sum()))]
        text = verification_prompt(chosen.text, "video")
        short = f"{chosen.text} {YES} or {NO}"
        nowhere = np.zeros(owners.size, np.float32)
        kind = f"marked {YES if is_meant else NO}"
        drawn.append(Example("video", 0, len(owners), text, short, YES if is_meant else NO, kind, owners, nowhere))
    return drawn


def _rarity(expression: Expression, group: list[Expression]) -> float:
    """So that each kind of expression is drawn equally often."""
    return 1 / sum(one.kind == expression.kind for one in group)


def _hardness(sampler: ExampleSampler, marked: int, expression: Expression) -> float:
    if is_absent_kind(expression.kind):
        return ABSENT_WEIGHT
    things, moved = sampler.clip.objects, sampler.events.moved
    own = things[marked]
    shares = any(
        own.category == other.category or own.color == other.color or own.size == other.size
        for other in (things[k] for k in expression.targets)
    )
    return HARD_WEIGHT if shares or (needs_video(expression) and moved[marked]) else 1.0
