"""Scores tracklets by agreement with the attention over the window (Sec. 3.4, Eq. 6-8), and selects the targets."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.overlap import were_apart
from decaf_ros.segmentation.resizing import GridMasks, masks_in_parts
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.types import Tracklet, TrackletScores

# Tracklets of one object that stay. Some are needed: a part of the object may be the best, and be lost.
PER_OBJECT = 3


def score_tracklets(proposals: Sequence[Proposal], attention: np.ndarray, config: SegmentationConfig) -> list[Tracklet]:
    """Scores candidates by attention, predicted IoU and attention consistency; best first, ties in input order.

    Consistency is Eq. 8. Positive values are then divided by the query's largest, so the best is 1; negative values
    are kept. The combined score is the mean of the three, or of the first two with config.consistency off.

    attention: V, the fused map (T, h, w) float32 in [0, 1]. Raises ValueError for another number of key frames.
    """
    inside, penalised = consistency_maps(attention, config)
    agreements = [_agreement(proposal, inside, penalised) for proposal in proposals]
    best = max((ratio for ratio, _ in agreements), default=0.0)
    tracklets = []
    for proposal, (ratio, density) in zip(proposals, agreements):
        consistency = ratio / best if ratio > 0 else ratio
        parts = (proposal.attention, proposal.iou, consistency)[: 3 if config.consistency else 2]
        tracklets.append(
            Tracklet(
                masks=proposal.masks,
                source=proposal.source,
                point_xy=proposal.point_xy,
                scores=TrackletScores(proposal.attention, proposal.iou, consistency, sum(parts) / len(parts)),
                raw_consistency=ratio,
                object_score=proposal.object_score,
                density=density,
            )
        )
    return sorted(tracklets, key=lambda tracklet: -tracklet.scores.combined)


def select_tracklets(
    tracklets: Sequence[Tracklet], config: SegmentationConfig, means_several: bool | None = None
) -> list[Tracklet]:
    """The targets: tracklets with a combined score above tracklet_threshold.

    If there are none: with config.fallback `best` the single best tracklet (evaluation protocol), with `none` an empty
    list ("not found"). tracklets: best first, as from `score_tracklets`.
    means_several: if it is known how many objects are meant, the rule is ours. The combined score favours large
        objects (Eq. 8 is a sum over the mask), so the densest tracklets count. One object: the one with the highest sum
        of attention and density. Several: all with several_share of the highest density. Among the tracklets on one
        object the best PER_OBJECT stay.

    Where the model was asked about close objects (`Tracklet.verified`), its answers decide between them, as log-odds of
    "yes" to which verify_prior times the score (for any number: above the weakest target's) is added. A single target
    is the one with the highest sum; of any number, those with a positive sum are the targets. If no sum is positive,
    the scores decide.
    """
    chosen = _by_answers(_by_scores(tracklets, config, means_several), tracklets, config, means_several)
    if means_several is None or not chosen:
        return chosen
    if means_several:
        return _thinned(chosen)
    leader = chosen[0]
    others = (one for one in tracklets if one is not leader)
    on_it = [one for one in others if not were_apart(_on_grid(one), _on_grid(leader))]
    return [leader, *on_it[: PER_OBJECT - 1]]


def close_objects(
    tracklets: Sequence[Tracklet], config: SegmentationConfig, means_several: bool | None
) -> list[list[int]]:
    """Objects between which the scores hardly decide: indices of the tracklets on each, strongest first.

    These are the objects of the targets by the scores and those at most verify_close weaker, at most verify_most; none
    if there is one alone. See `select_tracklets` for the arguments.
    """
    chosen = _by_scores(tracklets, config, means_several)
    if not chosen:
        return []
    strengths = [_strength(one, means_several) for one in tracklets]
    floor = min(_strength(one, means_several) for one in chosen) - config.verify_close
    close = [index for index in range(len(tracklets)) if strengths[index] >= floor]
    objects: list[list[int]] = []
    for index in sorted(close, key=lambda index: -strengths[index]):
        masks = _on_grid(tracklets[index])
        own = next((one for one in objects if not were_apart(masks, _on_grid(tracklets[one[0]]))), None)
        if own is not None:
            own.append(index)
        elif len(objects) < config.verify_most:
            objects.append([index])
    return objects if len(objects) > 1 else []


def _by_scores(tracklets: Sequence[Tracklet], config: SegmentationConfig, means_several: bool | None) -> list[Tracklet]:
    """The targets by their scores alone; of a single one its strongest tracklet."""
    if not tracklets:
        return []
    if means_several is None:
        passed = [tracklet for tracklet in tracklets if tracklet.scores.combined > config.tracklet_threshold]
        return list(tracklets[:1]) if not passed and config.fallback == "best" else passed
    if not means_several:
        return [max(tracklets, key=lambda tracklet: _strength(tracklet, means_several))]
    densest = max(tracklet.density for tracklet in tracklets)
    floor = min(config.several_share * densest, densest)
    return [tracklet for tracklet in tracklets if tracklet.density >= floor]


def _by_answers(
    chosen: list[Tracklet], tracklets: Sequence[Tracklet], config: SegmentationConfig, means_several: bool | None
) -> list[Tracklet]:
    """Corrects the targets `chosen` by the answers about close objects. See `select_tracklets`."""
    if not chosen or all(one.verified is None for one in tracklets):
        return chosen
    weakest = min(_strength(one, means_several) for one in chosen)
    evidence = {
        id(one): one.verified + config.verify_prior * (_strength(one, means_several) - weakest)
        for one in tracklets
        if one.verified is not None
    }
    is_fallback = means_several is None and chosen[0].scores.combined <= config.tracklet_threshold
    if means_several is False or is_fallback:
        asked = [one for one in tracklets if id(one) in evidence]
        return [max(asked, key=lambda one: (evidence[id(one)], _strength(one, means_several)))]
    if all(value <= 0 for value in evidence.values()):
        return chosen
    kept = {id(one) for one in chosen}
    return [one for one in tracklets if (evidence[id(one)] > 0 if id(one) in evidence else id(one) in kept)]


def _strength(tracklet: Tracklet, means_several: bool | None) -> float:
    """The score that decides between candidates: the combined one; several objects: the density; one: its mean
    with the attention."""
    if means_several is None:
        return tracklet.scores.combined
    return tracklet.density if means_several else (tracklet.scores.attention + tracklet.density) / 2


def _thinned(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    """At most PER_OBJECT tracklets on each object. One belongs to the object of the first it was never apart from."""
    kept: list[Tracklet] = []
    counts: list[tuple[torch.Tensor, int]] = []
    for tracklet in tracklets:
        masks = _on_grid(tracklet)
        place = next((k for k, (first, _) in enumerate(counts) if not were_apart(masks, first)), None)
        if place is None:
            counts.append((masks, 1))
        elif counts[place][1] < PER_OBJECT:
            counts[place] = counts[place][0], counts[place][1] + 1
        else:
            continue
        kept.append(tracklet)
    return kept


def _on_grid(tracklet: Tracklet) -> torch.Tensor:
    """(T, h, w) bool, the masks on SAM 2's mask grid."""
    assert isinstance(tracklet.masks, GridMasks), "from `score_tracklets`"
    return tracklet.masks.logits > 0


def consistency_maps(attention: np.ndarray, config: SegmentationConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention mask of Eq. 6, bool, and the penalised map of Eq. 7, float32: both (T, h, w).

    The mask contains the tokens above their frame's mean or, with consistency_mask `otsu`, above its Otsu threshold
    (256 levels). Outside the mask the map is minus the frame's maximum, or 0 without consistency_penalty (Tab. 7). A
    constant frame has an empty mask, so all of it counts against a tracklet.

    attention: (T, h, w) float32 in [0, 1].
    """
    if config.consistency_mask == "mean":
        # float64, so that the mean of a constant frame equals its value exactly.
        inside = attention > attention.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    else:
        levels = (attention * 255).astype(np.uint8)
        thresholds = [cv2.threshold(frame, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] for frame in levels]
        inside = levels > np.array(thresholds)[:, None, None]
    outside = -attention.max(axis=(1, 2), keepdims=True) if config.consistency_penalty else np.float32(0)
    return torch.from_numpy(inside), torch.from_numpy(np.where(inside, attention, outside))


def _agreement(proposal: Proposal, inside: torch.Tensor, penalised: torch.Tensor) -> tuple[float, float]:
    """Eq. 8: <tracklet averaged to the token grid, Eq. 7> / <Eq. 6, Eq. 7>, and `Tracklet.density`.

    Eq. 8 is 0 if every frame of the map is constant: the denominator is 0 then.
    """
    if len(proposal.masks) != len(inside):
        raise ValueError(f"masks: expected {len(inside)} key frames, got {len(proposal.masks)}")
    grid_hw = (inside.shape[1], inside.shape[2])
    parts = masks_in_parts(proposal.masks.logits, proposal.masks.size_hw)
    pooled = torch.cat([F.adaptive_avg_pool2d(part[:, None].float(), grid_hw)[:, 0].cpu() for part in parts])
    covered = float(pooled.sum(dtype=torch.float64))
    product = float((pooled * penalised).sum(dtype=torch.float64))
    normaliser = float(penalised[inside].sum(dtype=torch.float64))
    return product / normaliser if normaliser else 0.0, product / covered if covered else 0.0
