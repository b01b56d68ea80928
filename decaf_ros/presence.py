"""Is the target there at all? A presence score from evidence gathered before the paper's normalisations.

Min-max scaling and division by the best consistency let some candidate pass nearly always, so the paper's thresholds
cannot reject an absent target. The parts of the score, each in [0, 1]:

- contrast: z / (z + CONTRAST_HALF), where z is the height of the strongest object-minus-background token above the
  map's median, in robust standard deviations (median absolute deviation); mean over the branches.
- separation: d / (d + SEPARATION_HALF), where d is the total variation distance between the object map and the
  background map, each divided by its sum; mean over the branches. Near-equal maps mean that asking for the object
  changed nothing. Much attention is common to all prompts, so a small distance is already informative. Without a
  background map (grounding.contrast: false) it is reported as 0 and left out of the score.
- consistency: the best candidate's Eq. 8 ratio before the division by the best, clipped.
- agreement: correlation of the two branches' object-minus-background maps, clipped at 0. With a single branch it is
  reported as 0 and left out of the score.
- iou: SAM 2's predicted IoU of the best candidate.
- object_presence: sigmoid of SAM 2's object-presence logit of the best candidate.

The score is their mean weighted by WEIGHTS. `decaf eval --calibrate` fits the weights on clips with known answers and
prints them with a matching threshold.

The decoded category is not part of the score: a category such as "none" means that the target is absent
(`decaf_ros.grounding.denial`), but any other category is no evidence that it is present. Only mode `paper` decodes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from decaf_ros.grounding.denial import names_nothing
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, difference, resize_maps
from decaf_ros.types import AttentionMaps, BranchMaps, Presence, Tracklet

CONTRAST_HALF = 10.0
SEPARATION_HALF = 0.05
# Fitted by `decaf eval --calibrate --clips 64` on the simulated tabletop with the demo's checkpoints. Their training
# includes absent targets and a loss on exactly what `separation` measures, so these weights may not suit a real model:
# calibrate on your data.
WEIGHTS: Mapping[str, float] = {
    "contrast": 0.24,
    "separation": 0.47,
    "consistency": 0.06,
    "agreement": 0.16,
    "iou": 0.03,
    "object_presence": 0.04,
}


def measure_presence(maps: AttentionMaps, tracklets: Sequence[Tracklet]) -> Presence:
    """The presence score and its parts. maps: a grounding's attention. tracklets: its candidates, best first."""
    frame_count = len(maps.fused)
    differences = []
    if maps.video is not None:
        video = difference(maps.video, VIDEO_KERNEL)
        differences.append(np.repeat(video, -(-frame_count // len(video)), axis=0)[:frame_count])
    if maps.frames is not None:
        differences.append(difference(maps.frames, FRAME_KERNEL))
    contrast = float(np.mean([_peak_contrast(values) for values in differences]))
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


def absence_reason(presence: Presence, category: str, threshold: float) -> str:
    """Why the target counts as absent, by the presence score or the decoded category; empty if it may be present.

    threshold: presence.threshold; 0 disables both checks.
    """
    if threshold > 0 and names_nothing(category):
        return f"the model answered {category!r} for the category (presence score {presence.score:.2f})"
    if presence.score < threshold:
        return f"presence score {presence.score:.2f} is below presence.threshold {threshold:.2f}"
    return ""


def weighted_score(parts: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """Weighted mean of the parts that are not None, each in [0, 1]; 0 if their weights sum to 0.

    weights: >= 0, by the same names.
    """
    known = {name: value for name, value in parts.items() if value is not None}
    total = sum(weights[name] for name in known)
    return sum(weights[name] * value for name, value in known.items()) / total if total > 0 else 0.0


def _peak_contrast(maps: np.ndarray) -> float:
    """Height of a (T, h, w) map's maximum above its median, relative to its spread, in [0, 1); 0 if the spread is 0."""
    median = float(np.median(maps))
    spread = 1.4826 * float(np.median(np.abs(maps - median)))
    if spread == 0:
        return 0.0
    z = (float(maps.max()) - median) / spread
    return z / (z + CONTRAST_HALF)


def _separation(branch: BranchMaps) -> float:
    """Distance of a branch's two maps as distributions, in [0, 1); 0 if one of them is all zeros."""
    sums = float(branch.object.sum()), float(branch.background.sum())
    if min(sums) <= 0:
        return 0.0
    distance = float(np.maximum(branch.object / sums[0] - branch.background / sums[1], 0).sum())
    return distance / (distance + SEPARATION_HALF)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two maps of one shape, clipped at 0; 0 for constant maps."""
    first, second = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return max(float(first @ second) / scale, 0.0) if scale > 0 else 0.0
