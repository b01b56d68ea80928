"""Is the target there at all? A presence score from evidence gathered before the paper's normalisations.

Min-max scaling and division by the best consistency let some candidate pass nearly always, so the paper's thresholds
cannot reject an absent target. The parts of the score, each in [0, 1]:

- contrast: e / (e + CONTRAST_HALF), where e is the excess of the highest object-minus-background cell over the noise
  level, in noise levels; mean over the branches. Without their maps (a baseline) it is reported as 0 and left out.
- separation: m / (m + SEPARATION_HALF), where m is the share of the attention that moves to cells above the noise level
  when the model is asked for the object and not for the background; mean over the branches. Without a background map
  (grounding.contrast: false) it is reported as 0 and left out of the score.
- consistency: the best candidate's Eq. 8 ratio before the division by the best, clipped.
- agreement: correlation of the two branches' object-minus-background maps, beyond that of shifted maps. With a single
  branch it is reported as 0 and left out of the score.
- iou: SAM 2's predicted IoU of the best candidate.
- object_presence: sigmoid of SAM 2's object-presence logit of the best candidate.
- asked: the model's answer when asked whether the target is there (presence.ask): probability of "yes" against "no".

The noise level of a map is the peak of noise like the map's lower half (`decaf_ros.grounding.noise`); for the contrast
at least the depth of the map's lowest cell, because noise is as likely to favour the background. Both parts are then
multiplied by the share of the branch's structure that repeats in the next frame: what appears once counts for nothing.

The score is their mean weighted by `presence.weight_*`. `decaf calibrate` fits the weights and the threshold to clips
with known answers.

The decoded category is not part of the score: a category such as "none" means that the target is absent
(`decaf_ros.grounding.denial`), but any other category is no evidence that it is present. Only mode `paper` decodes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from decaf_ros.config import PresenceConfig
from decaf_ros.grounding.denial import names_nothing
from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, resize_maps, smooth
from decaf_ros.grounding.noise import noise_peak, repetition_across, repetition_in_time
from decaf_ros.types import AttentionMaps, BranchMaps, Presence, Tracklet

# The parts, in the order of the fields of `Presence`.
PARTS = ("contrast", "separation", "consistency", "agreement", "iou", "object_presence", "asked")
CONTRAST_HALF = 1.0
SEPARATION_HALF = 0.02


def measure_presence(
    maps: AttentionMaps,
    tracklets: Sequence[Tracklet],
    config: PresenceConfig | None = None,
    asked: float | None = None,
) -> Presence:
    """The presence score and its parts.

    Args:
        maps: a grounding's attention.
        tracklets: its candidates, best first.
        config: the weights; None: the defaults.
        asked: see `Grounding.asked`.
    """
    branches = [
        (branch, kernel)
        for branch, kernel in ((maps.video, VIDEO_KERNEL), (maps.frames, FRAME_KERNEL))
        if branch is not None
    ]
    agreement = None
    if len(branches) == 2:
        video, frames = (_smoothed(branch.object - branch.background, kernel) for branch, kernel in branches)
        video = np.repeat(video, -(-len(frames) // len(video)), axis=0)[: len(frames)]
        agreement = repetition_across(resize_maps(video, frames.shape[1:]), frames)
    evidence = [_branch_evidence(branch, kernel, agreement) for branch, kernel in branches]
    separations = [separation for _, separation in evidence if separation is not None]
    best = tracklets[0] if tracklets else None
    contrast = float(np.mean([contrast for contrast, _ in evidence])) if evidence else None
    separation = float(np.mean(separations)) if separations else None
    consistency = 0.0 if best is None else min(max(best.raw_consistency, 0.0), 1.0)
    iou = 0.0 if best is None else min(max(best.scores.iou, 0.0), 1.0)
    object_presence = 0.0 if best is None else 1 / (1 + math.exp(-min(max(best.object_score, -60.0), 60.0)))
    parts = dict(zip(PARTS, (contrast, separation, consistency, agreement, iou, object_presence)))
    score = weighted_score(parts | {"asked": asked}, (config or PresenceConfig()).weights)
    return Presence(score, asked=asked, **{name: part or 0.0 for name, part in parts.items()})


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


def _branch_evidence(branch: BranchMaps, kernel: int, agreement: float | None) -> tuple[float, float | None]:
    """Contrast and separation of one branch, bounded by its noise. The separation is None without a background map.

    agreement: stands in for the repetition of a single frame.
    """
    signed = branch.object - branch.background
    smoothed = _smoothed(signed, kernel)
    repetition = repetition_in_time(smoothed)
    if repetition is None:
        repetition = 1.0 if agreement is None else agreement
    level = max(noise_peak(signed, kernel), -float(smoothed.min()))
    peak = float(smoothed.max())
    # Without noise any peak is infinitely far above it.
    excess = max(peak - level, 0.0)
    contrast = repetition * excess / (excess + CONTRAST_HALF * level) if excess > 0 else 0.0
    if not branch.background.any():
        return contrast, None
    return contrast, repetition * _separation(branch, kernel)


def _separation(branch: BranchMaps, kernel: int) -> float:
    """Share of the attention that moves to cells above the noise level, in [0, 1); 0 if one map is all zeros."""
    sums = float(branch.object.sum()), float(branch.background.sum())
    if min(sums) <= 0:
        return 0.0
    signed = branch.object / sums[0] - branch.background / sums[1]
    moved = float(np.maximum(_smoothed(signed, kernel) - noise_peak(signed, kernel), 0).sum())
    return moved / (moved + SEPARATION_HALF)


def _smoothed(signed: np.ndarray, kernel: int) -> np.ndarray:
    """A (T, h, w) map relative to its median, smoothed; so the padding with zeros adds no structure at the border."""
    return smooth(signed - np.median(signed), kernel)
