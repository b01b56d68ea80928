"""Target code for visual tokens: one orthogonal vector per fact.

A visual token is trained to be the sum of the vectors of the facts it shows. The language model's word embeddings start
at the same vectors, so a word matches the tokens it describes.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from transformers import Qwen2TokenizerFast

from decaf_tabletop.training.mllm_model import HIDDEN
from decaf_tabletop.world.clip import CATEGORIES, COLORS, SIZES, SURFACES, TabletopClip
from decaf_tabletop.world.events import MOVING_WORDS, moving_words, side_relations

FACT_NORM = 3.0
# Shorter: a token has many neighbour facts, which would drown its own facts otherwise.
NEIGHBOUR_NORM = 1.2
# Exclusive groups. An object token has one fact of each group but `surface`; a background token has only its surface.
GROUPS = {"category": CATEGORIES, "color": COLORS, "size": SIZES, "motion": MOVING_WORDS, "surface": SURFACES}
# Any number of these: a category on this side of the object. Sides rather than absolute places, because the tower
# encodes relative positions; it could infer absolute ones only from the image border.
SIDES = ("left", "right", "behind", "front")
NEIGHBOURS = tuple(f"{category} {side}" for side in SIDES for category in CATEGORIES)
# Margin in metres for a neighbour to be on a side, as in the expressions. Between 0 and the margin it is undecided.
SIDE_M = 0.06
OFFSETS = dict(zip([*GROUPS, "neighbours"], np.cumsum([0, *map(len, GROUPS.values())]).tolist()))
FACTS = OFFSETS["neighbours"] + len(NEIGHBOURS)
# An object owns a token from this share of its area on.
OWNED_SHARE = 0.25


def fact_vectors() -> torch.Tensor:
    """(FACTS, HIDDEN) float32, orthogonal rows of length FACT_NORM, NEIGHBOUR_NORM for neighbours; deterministic."""
    square = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.linalg.qr(square)[0][:FACTS] * FACT_NORM
    rows[OFFSETS["neighbours"] :] *= NEIGHBOUR_NORM / FACT_NORM
    return rows.float()


def word_facts(tokenizer: Qwen2TokenizerFast) -> dict[int, int]:
    """Maps the token id of a word, with and without a leading space, to the fact its embedding starts at."""
    words = {
        "still": "still",
        "left": "left",
        "right": "right",
        "closer": "closer",
        "away": "away",
        "fell": "fell",
        "dropped": "fell",
    }
    facts = {}
    for group in ("category", "color", "size", "surface"):
        for index, word in enumerate(GROUPS[group]):
            for text in (word, f" {word}", *([f" {word}s"] if group == "category" else [])):
                facts[_single_token(tokenizer, text)] = OFFSETS[group] + index
    for word, meaning in words.items():
        facts[_single_token(tokenizer, f" {word}")] = OFFSETS["motion"] + MOVING_WORDS.index(meaning)
    for word, meaning in (("largest", "large"), ("biggest", "large"), ("smallest", "small")):
        facts[_single_token(tokenizer, f" {word}")] = OFFSETS["size"] + SIZES.index(meaning)
    return facts


def mirrored_facts() -> np.ndarray:
    """(FACTS,) int64: for each fact, the fact that holds in the mirror image instead."""
    mirror = np.arange(FACTS)
    for names, offset, other in (
        (GROUPS["motion"], OFFSETS["motion"], {"left": "right", "right": "left"}),
        (NEIGHBOURS, OFFSETS["neighbours"], {"left": "right", "right": "left"}),
    ):
        for index, name in enumerate(names):
            words = [other.get(word, word) for word in name.split()]
            mirror[offset + index] = offset + names.index(" ".join(words))
    return mirror


def _single_token(tokenizer: Qwen2TokenizerFast, text: str) -> int:
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return token


def token_owners(labels: np.ndarray, objects: int, grid_hw: tuple[int, int]) -> np.ndarray:
    """Owner of each visual token: (h, w) int64, 0 for the background, k for object k - 1.

    labels: (K, H, W) uint8 of the frames that share the tokens. A visible object that reaches OWNED_SHARE nowhere gets
    the token it covers most, if no other object owns that.
    """
    height, width = grid_hw
    cover = np.zeros((objects + 1, height, width), np.float32)
    for k in range(1, objects + 1):
        share = (labels == k).mean(axis=0, dtype=np.float32)
        cover[k] = cv2.resize(share, (width, height), interpolation=cv2.INTER_AREA)
    owners = np.where(cover[1:].max(axis=0) >= OWNED_SHARE, cover[1:].argmax(axis=0) + 1, 0)
    for k in range(1, objects + 1):
        if cover[k].max() > 0.05 and not (owners == k).any():
            place = np.unravel_index(cover[k].argmax(), grid_hw)
            if owners[place] == 0:
                owners[place] = k
    return owners


def object_facts(clip: TabletopClip, first: int, second: int) -> np.ndarray:
    """(n, FACTS) float32: facts of each object over the frames `first` and `second`, which may be equal.

    1: true. 0: false. 0.5: undecided, a neighbour closer than SIDE_M on this side.
    """
    facts = np.zeros((len(clip.objects), FACTS), np.float32)
    words = moving_words(clip, first, second) if second > first else ("still",) * len(clip.objects)
    sides_of = side_relations(clip, second, SIDE_M)
    for k, (thing, word) in enumerate(zip(clip.objects, words)):
        values = {"category": thing.category, "color": thing.color, "size": thing.size, "motion": word}
        for group, value in values.items():
            facts[k, OFFSETS[group] + GROUPS[group].index(value)] = 1
        neighbours = facts[k, OFFSETS["neighbours"] :].reshape(len(SIDES), len(CATEGORIES))
        for other, sides in zip(clip.objects, sides_of[k]):
            column = CATEGORIES.index(other.category)
            neighbours[:, column] = np.maximum(neighbours[:, column], np.where(sides < 0, 0.5, sides))
    return facts


def surface_facts(clip: TabletopClip) -> np.ndarray:
    """(FACTS,) float32: facts of a background token."""
    facts = np.zeros(FACTS, np.float32)
    facts[OFFSETS["surface"] + SURFACES.index(clip.surface)] = 1
    return facts
