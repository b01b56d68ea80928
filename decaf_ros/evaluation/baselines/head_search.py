"""Finds the localization heads of a model by Loc-Head's two criteria (Kang et al., 2025)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from decaf_ros.config import DecafConfig, EngineConfig
from decaf_ros.evaluation.baselines.head_files import Head, HeadFile
from decaf_ros.evaluation.baselines.loc_head import LocHead, model_shape
from decaf_ros.evaluation.baselines.loc_head_maps import elbow, entropies, head_maps, votes
from decaf_ros.evaluation.baselines.pairs import Pair, read_image
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.prompts import object_prompt
from decaf_ros.grounding.views import ReadOptions, View
from decaf_ros.segmentation.hulls import hull_boxes
from decaf_ros.stages import finish
from decaf_ros.types import Frame

# Their numbers: heads with the lowest entropy in an image, and heads that are used.
PER_IMAGE, USED = 10, 3


@dataclass(frozen=True)
class Search:
    """How heads are chosen.

    Attributes:
        exclude: edges; a head whose strongest token lies in one gets no vote for that image.
        per_image: number of heads that get a vote in an image.
        used: number of heads to choose.
    """

    exclude: tuple[str, ...] = ()
    per_image: int = PER_IMAGE
    used: int = USED


class Check(NamedTuple):
    """The chosen heads on the pairs with a box that they were found with.

    Attributes:
        pointing: share in which the strongest token of the summed map is in the box.
        iou: mean IoU of the hull's box.
        pairs: number of such pairs.
    """

    pointing: float
    iou: float
    pairs: int


class Evidence(NamedTuple):
    """Attention sums and entropies (infinite: excluded) of N heads in P images, both (P, N)."""

    sums: np.ndarray
    entropy: np.ndarray


def choose(evidence: Evidence, search: Search) -> tuple[float, list[tuple[int, float, float]]]:
    """The threshold of the attention sum, and the chosen heads: (index, frequency, mean attention sum), best first.

    A head passes if its mean attention sum is at the elbow of all heads' or above. Among those, each image gives its
    heads with the lowest entropy a vote; the heads with most votes are chosen, of equals the one with the larger sum.
    Raises ValueError if fewer heads than wanted have any vote.
    """
    mean_sum = evidence.sums.mean(axis=0)
    threshold = elbow(mean_sum)
    passed = mean_sum >= threshold
    frequency = np.mean([votes(entropy, sums, passed, search.per_image) for sums, entropy in zip(*evidence)], axis=0)
    order = np.lexsort((-mean_sum, -frequency))[: search.used]
    chosen = [(int(index), float(frequency[index]), float(mean_sum[index])) for index in order if frequency[index] > 0]
    if len(chosen) < search.used:
        why = f" with --exclude {','.join(search.exclude)}" if search.exclude else ""
        raise ValueError(
            f"expected {search.used} heads with a compact map in some image, got {len(chosen)}{why} (of "
            f"{np.count_nonzero(passed)} with an attention sum of {threshold:.3f} or more)"
        )
    return threshold, chosen


def find_heads(
    mllm: Mllm,
    config: DecafConfig,
    pairs: Sequence[Pair],
    search: Search,
    source: str,
    checkpoint: str,
    say: Callable[[int], None] = lambda done: None,
) -> tuple[HeadFile, Check | None]:
    """The heads of a model, and how well they point on these pairs (None if no pair has a box).

    Args:
        mllm: the model.
        config: variant and wording of the object prompt, which is asked.
        pairs: image-text pairs.
        search: how heads are chosen.
        source: where the pairs are from, for the file.
        checkpoint: name of the model, for the file.
        say: called with the number of pairs that are read.

    Raises:
        ValueError: too few heads, an image that cannot be read, or a family that records no attention.
    """
    model_type, layers, heads = model_shape(mllm)
    # Nothing is asked twice.
    engine = Engine(mllm, EngineConfig(prefix_cache_mib=0, feature_cache_mib=0, map_cache_mib=0))
    sums, entropy, maps = [], [], []
    for done, pair in enumerate(pairs, 1):
        maps.append(_maps(engine, pair, config))
        sums.append(maps[-1].sum(axis=(2, 3)).ravel())
        entropy.append(entropies(maps[-1], search.exclude).ravel())
        say(done)
    threshold, chosen = choose(Evidence(np.stack(sums), np.stack(entropy)), search)
    found = HeadFile(
        checkpoint=checkpoint,
        model_type=model_type,
        layers=layers,
        heads_per_layer=heads,
        pairs=len(pairs),
        source=source,
        exclude=search.exclude,
        object_prompt=config.grounding.object_prompt,
        threshold=round(threshold, 6),
        heads=tuple(
            Head(index // heads, index % heads, round(frequency, 4), round(mean, 6))
            for index, frequency, mean in chosen
        ),
    )
    return found, _check(LocHead(mllm, EngineConfig(), found), pairs, maps)


def _maps(engine: Engine, pair: Pair, config: DecafConfig) -> np.ndarray:
    """Maps of all heads about one pair, (L, H, h, w) float32."""
    frame = Frame(read_image(pair), 1, "", 0)
    text = object_prompt(pair.phrase, config.grounding.object_prompt, config.grounding.wording)
    view = View(engine.mllm.layout("frames", 1, frame.size_hw), (frame,))
    (maps,) = finish(engine.read([view], text, ReadOptions(0), head_maps))
    return maps[:, :, 0]


def _check(method: LocHead, pairs: Sequence[Pair], maps: Sequence[np.ndarray]) -> Check | None:
    hits, overlaps = [], []
    for pair, own in zip(pairs, maps):
        if pair.box is None:
            continue
        height, width = read_image(pair).shape[:2]
        combined = method.combined(own[method.lowest :, :, None])
        left, top, right, bottom = pair.box
        row, column = np.unravel_index(np.argmax(combined), combined.shape)
        x, y = (column + 0.5) / combined.shape[1] * width, (row + 0.5) / combined.shape[0] * height
        hits.append(left <= x <= right and top <= y <= bottom)
        _, boxes = hull_boxes(combined[None], (height, width))
        overlaps.append(_iou(boxes[0] * np.array((width, height) * 2), np.array(pair.box)) if len(boxes) else 0.0)
    return Check(float(np.mean(hits)), float(np.mean(overlaps)), len(hits)) if hits else None


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two boxes, left, top, right, bottom."""
    common = np.maximum(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0).prod()
    areas = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()
    return float(common / (areas - common))
