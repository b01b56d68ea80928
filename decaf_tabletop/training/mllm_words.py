"""The code between the demo model's vision tower and its language model: what a visual token says.

Each fact about a token's content is one of a set of orthogonal vectors; a token is the sum of those of what it shows.
The language model's word embeddings start at the same vectors, so a word and what it means can find each other.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from transformers import Qwen2TokenizerFast

from decaf_tabletop.training.mllm_model import HIDDEN
from decaf_tabletop.world.clip import CATEGORIES, COLORS, SIZES, SURFACES, TabletopClip
from decaf_tabletop.world.events import MOVING_WORDS, moving_words, side_relations

NORM = 3.0
# There are many of them: as long as the others they would drown what a token itself is.
NEAR_NORM = 1.2
# Groups of facts: exactly one of each holds for a token on an object; of `surface`, one holds for every other token.
GROUPS = {"category": CATEGORIES, "color": COLORS, "size": SIZES, "motion": MOVING_WORDS, "surface": SURFACES}
# And any number of these: a category that is to this side of the object. The tower's positions are relative ones, so
# it can tell sides; absolute places it could only infer from the image's border.
SIDES = ("left", "right", "behind", "front")
NEIGHBOURS = tuple(f"{category} {side}" for side in SIDES for category in CATEGORIES)
# The margin by which a neighbour is at a side, that of the expressions; between it and none nothing is said.
SIDE_M = 0.06
OFFSETS = dict(zip([*GROUPS, "neighbours"], np.cumsum([0, *map(len, GROUPS.values())]).tolist()))
FACTS = OFFSETS["neighbours"] + len(NEIGHBOURS)
# From this share of a token on, it is the object's.
OWNED = 0.25


def meanings() -> torch.Tensor:
    """(FACTS, HIDDEN) float32, orthogonal rows of length NORM, those of neighbours of NEAR_NORM; always the same."""
    square = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.linalg.qr(square)[0][:FACTS] * NORM
    rows[OFFSETS["neighbours"] :] *= NEAR_NORM / NORM
    return rows.float()


def word_meanings(tokenizer: Qwen2TokenizerFast) -> dict[int, int]:
    """Token id of a word, with and without a space before it, to the fact that its embedding starts at."""
    words = {
        "still": "still",
        "left": "left",
        "right": "right",
        "closer": "closer",
        "away": "away",
        "fell": "fell",
        "dropped": "fell",
    }
    found = {}
    for group in ("category", "color", "size", "surface"):
        for place, word in enumerate(GROUPS[group]):
            for text in (word, f" {word}", *([f" {word}s"] if group == "category" else [])):
                found[_one(tokenizer, text)] = OFFSETS[group] + place
    for word, meaning in words.items():
        found[_one(tokenizer, f" {word}")] = OFFSETS["motion"] + MOVING_WORDS.index(meaning)
    for word, meaning in (("largest", "large"), ("biggest", "large"), ("smallest", "small")):
        found[_one(tokenizer, f" {word}")] = OFFSETS["size"] + SIZES.index(meaning)
    return found


def mirrored() -> np.ndarray:
    """(FACTS,) int64: the fact that holds in the mirror image for each one that holds."""
    place = np.arange(FACTS)
    for names, offset, other in (
        (GROUPS["motion"], OFFSETS["motion"], {"left": "right", "right": "left"}),
        (NEIGHBOURS, OFFSETS["neighbours"], {"left": "right", "right": "left"}),
    ):
        for index, name in enumerate(names):
            words = [other.get(word, word) for word in name.split()]
            place[offset + index] = offset + names.index(" ".join(words))
    return place


def _one(tokenizer: Qwen2TokenizerFast, text: str) -> int:
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return token


def token_owners(labels: np.ndarray, objects: int, grid_hw: tuple[int, int]) -> np.ndarray:
    """Whose each visual token is: (h, w) int64, 0 the surroundings, k object k - 1.

    labels: (K, H, W) uint8 of the frames that share the token. Every object that can be seen at all owns the token of
    which it covers most, unless another covers more of it.
    """
    height, width = grid_hw
    cover = np.zeros((objects + 1, height, width), np.float32)
    for k in range(1, objects + 1):
        share = (labels == k).mean(axis=0, dtype=np.float32)
        cover[k] = cv2.resize(share, (width, height), interpolation=cv2.INTER_AREA)
    owners = np.where(cover[1:].max(axis=0) >= OWNED, cover[1:].argmax(axis=0) + 1, 0)
    for k in range(1, objects + 1):
        if cover[k].max() > 0.05 and not (owners == k).any():
            place = np.unravel_index(cover[k].argmax(), grid_hw)
            if owners[place] == 0:
                owners[place] = k
    return owners


def object_facts(clip: TabletopClip, first: int, second: int) -> np.ndarray:
    """(n, FACTS) float32: what the tokens of each object say over the frames `first` and `second` (which may be one).

    1: holds, 0: does not, 0.5: a neighbour that is to this side, but only a little.
    """
    facts = np.zeros((len(clip.objects), FACTS), np.float32)
    words = moving_words(clip, first, second) if second > first else ("still",) * len(clip.objects)
    beside = side_relations(clip, second, SIDE_M)
    for k, (one, word) in enumerate(zip(clip.objects, words)):
        for group, value in (("category", one.category), ("color", one.color), ("size", one.size), ("motion", word)):
            facts[k, OFFSETS[group] + GROUPS[group].index(value)] = 1
        neighbours = facts[k, OFFSETS["neighbours"] :].reshape(len(SIDES), len(CATEGORIES))
        for other, sides in zip(clip.objects, beside[k]):
            column = CATEGORIES.index(other.category)
            neighbours[:, column] = np.maximum(neighbours[:, column], np.where(sides < 0, 0.5, sides))
    return facts


def surface_facts(clip: TabletopClip) -> np.ndarray:
    """(FACTS,) float32: what every other token says."""
    facts = np.zeros(FACTS, np.float32)
    facts[OFFSETS["surface"] + SURFACES.index(clip.surface)] = 1
    return facts
