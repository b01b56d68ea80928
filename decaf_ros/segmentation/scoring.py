"""Scores and selects tracklets by agreement with the attention over the window (Sec. 3.4, Eq. 6-8)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.resizing import masks_in_parts
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.types import Tracklet, TrackletScores


def score_tracklets(proposals: Sequence[Proposal], attention: np.ndarray, config: SegmentationConfig) -> list[Tracklet]:
    """Scores candidates by attention, predicted IoU and attention consistency; best first, ties in input order.

    Consistency is Eq. 8. Positive values are then divided by the query's largest, so the best is 1; negative values
    are kept. The combined score is the mean of the three, or of the first two with config.consistency off.

    attention: V, the fused map (T, h, w) float32 in [0, 1]. Raises ValueError for another number of key frames.
    """
    inside, penalised = consistency_maps(attention, config)
    raw = [_consistency(proposal, inside, penalised) for proposal in proposals]
    best = max(raw, default=0.0)
    tracklets = []
    for proposal, ratio in zip(proposals, raw):
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
            )
        )
    return sorted(tracklets, key=lambda tracklet: -tracklet.scores.combined)


def select_tracklets(tracklets: Sequence[Tracklet], config: SegmentationConfig) -> list[Tracklet]:
    """The targets: tracklets with a combined score above tracklet_threshold.

    If there are none: with config.fallback `best` the single best tracklet (evaluation protocol), with `none` an empty
    list ("not found"). tracklets: best first, as from `score_tracklets`.
    """
    passed = [tracklet for tracklet in tracklets if tracklet.scores.combined > config.tracklet_threshold]
    if not passed and config.fallback == "best":
        return list(tracklets[:1])
    return passed


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


def _consistency(proposal: Proposal, inside: torch.Tensor, penalised: torch.Tensor) -> float:
    """Eq. 8: <tracklet averaged to the token grid, Eq. 7> / <Eq. 6, Eq. 7>.

    0 if every frame of the map is constant: the denominator is 0 then.
    """
    if len(proposal.masks) != len(inside):
        raise ValueError(f"masks: expected {len(inside)} key frames, got {len(proposal.masks)}")
    normaliser = float(penalised[inside].sum(dtype=torch.float64))
    if normaliser == 0:
        return 0.0
    grid_hw = (inside.shape[1], inside.shape[2])
    parts = masks_in_parts(proposal.masks.logits, proposal.masks.size_hw)
    pooled = torch.cat([F.adaptive_avg_pool2d(part[:, None].float(), grid_hw)[:, 0].cpu() for part in parts])
    return float((pooled * penalised).sum(dtype=torch.float64)) / normaliser
