"""Is the target there at all? Evidence from before the paper's normalisations.

Min-max to 1 and the division by the best consistency make something pass nearly always, so the paper's thresholds
cannot say "not there". What is measured here has not been through them:

- contrast: how far the strongest object-minus-background token stands out of the map's own spread, as
  z / (z + CONTRAST_HALF) with z in robust standard deviations (median absolute deviation); mean over the branches.
- separation: how much of the attention moves when the background is asked for instead of the object: d / (d +
  SEPARATION_HALF) with d the total variation distance of the two maps, each divided by its sum; mean over the
  branches. Two near-equal maps mean that asking for the object changed nothing; where most of both is what every
  question looks at, a small difference says much. Where the background was not asked for (grounding.contrast: false),
  reported as 0 and left out of the score.
- consistency: the best candidate's ratio of Eq. 8 before the division by the best, in [0, 1].
- agreement: correlation of the video branch's and the frame branch's differences, negative ones as 0.
  One branch alone has nothing to agree with: reported as 0 and left out of the score.
- iou: SAM 2's predicted IoU of the best candidate.
- object_presence: SAM 2's object-presence logit of the best candidate, through a sigmoid.

The score is their mean, weighted by WEIGHTS. `decaf eval --calibrate` fits these on clips with known answers and
prints them with the threshold that belongs to them.

The answer is no part of it: a model that names the category "none" has said itself that nothing is there
(`names_nothing`), and one that always names something has not said that anything is. Only mode `paper` asks for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, difference, resize_maps
from decaf_ros.types import AttentionMaps, BranchMaps, Presence, Tracklet

# What an answer that there is none begins with, or is altogether. "no parking sign" and "No. 7 ball" are objects.
_NOTHING = re.compile(
    r"(none|nothing|nobody)\b|(no|not)([,;:].*)?$|no (such|object|target)\b|not (in|visible|present|there|found)\b|n/a$"
)
CONTRAST_HALF = 10.0
SEPARATION_HALF = 0.05
# Fitted by `decaf eval --calibrate --clips 64` on the simulated tabletop with the demo's checkpoints, which were
# trained on absent targets too, with a loss on just what `separation` measures. How well they tell with a real model
# has not been measured: calibrate on your data.
WEIGHTS: Mapping[str, float] = {
    "contrast": 0.24,
    "separation": 0.47,
    "consistency": 0.06,
    "agreement": 0.16,
    "iou": 0.03,
    "object_presence": 0.04,
}


def measure_presence(maps: AttentionMaps, tracklets: Sequence[Tracklet]) -> Presence:
    """The evidence of one grounding. maps: its attention. tracklets: its scored candidates, best first."""
    frame_count = len(maps.fused)
    differences = []
    if maps.video is not None:
        video = difference(maps.video, VIDEO_KERNEL)
        differences.append(np.repeat(video, -(-frame_count // len(video)), axis=0)[:frame_count])
    if maps.frames is not None:
        differences.append(difference(maps.frames, FRAME_KERNEL))
    contrast = float(np.mean([_standing_out(maps) for maps in differences]))
    branches = [branch for branch in (maps.video, maps.frames) if branch is not None]
    separations = [_separation(branch) for branch in branches if branch.background.any()]
    separation = float(np.mean(separations)) if separations else None
    agreement = None
    if len(differences) == 2:
        agreement = _correlation(resize_maps(differences[0], differences[1].shape[1:]), differences[1])
    best = tracklets[0] if tracklets else None
    consistency = 0.0 if best is None else min(max(best.raw_consistency, 0.0), 1.0)
    iou = 0.0 if best is None else min(max(best.scores.iou, 0.0), 1.0)
    object_presence = 0.0 if best is None else 1 / (1 + math.exp(-min(max(best.object_score, -60.0), 60.0)))
    parts = (contrast, separation, consistency, agreement, iou, object_presence)
    score = weighted_score(dict(zip(WEIGHTS, parts)), WEIGHTS)
    return Presence(score, *(part or 0.0 for part in parts))


def names_nothing(category: str) -> bool:
    """Whether an answer to the question for the target's category says that there is none. Empty is no answer."""
    return _NOTHING.match(category.casefold().strip(" .!\"'")) is not None


def absence_reason(presence: Presence, category: str, threshold: float) -> str:
    """Why the target is not there, by the evidence or by what the model says that it is; empty if it may be there.

    category: the model's answer. threshold: presence.threshold; 0 switches both off.
    """
    if threshold > 0 and names_nothing(category):
        return f"asked what it is, the model says {category!r} (presence score {presence.score:.2f})"
    if presence.score < threshold:
        return f"presence score {presence.score:.2f} is under presence.threshold {threshold:.2f}"
    return ""


def weighted_score(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The weighted mean of the parts that are there (not None), each in [0, 1]; 0 where none of them has a weight.

    weights: >= 0, by the same names.
    """
    there = {name: value for name, value in parts.items() if value is not None}
    total = sum(weights[name] for name in there)
    return sum(weights[name] * value for name, value in there.items()) / total if total > 0 else 0.0


def _standing_out(maps: np.ndarray) -> float:
    """How far the largest value stands out of a (T, h, w) map's spread, in [0, 1); 0 for a constant map."""
    middle = float(np.median(maps))
    spread = 1.4826 * float(np.median(np.abs(maps - middle)))
    if spread == 0:
        return 0.0
    z = (float(maps.max()) - middle) / spread
    return z / (z + CONTRAST_HALF)


def _separation(branch: BranchMaps) -> float:
    """How far a branch's two maps are from each other as distributions, in [0, 1); 0 where one of them is all zeros."""
    sums = float(branch.object.sum()), float(branch.background.sum())
    if min(sums) <= 0:
        return 0.0
    distance = float(np.maximum(branch.object / sums[0] - branch.background / sums[1], 0).sum())
    return distance / (distance + SEPARATION_HALF)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two maps of one shape, negative ones and those of constant maps as 0."""
    first, second = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return max(float(first @ second) / scale, 0.0) if scale > 0 else 0.0
