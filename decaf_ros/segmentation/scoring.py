"""Which tracklets agree with the attention over the whole window (Sec. 3.4, Eq. 6-8)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.types import Tracklet, TrackletScores


def score_tracklets(proposals: Sequence[Proposal], attention: np.ndarray, config: SegmentationConfig) -> list[Tracklet]:
    """Scores the candidates by attention, predicted IoU and attention consistency; best first.

    attention: V, the fused map (T, h, w) float32 in [0, 1]. Consistency is Eq. 8, and then all positive ones of the
    query are divided by the largest of them, so the best is 1; negative ones stay. combined is the mean of the three,
    of the first two where config.consistency is off. At equal scores the earlier candidate comes first.
    Raises ValueError for masks over another number of key frames.
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
                masks=proposal.masks.cpu().numpy(),
                source=proposal.source,
                point_xy=proposal.point_xy,
                scores=TrackletScores(proposal.attention, proposal.iou, consistency, sum(parts) / len(parts)),
                raw_consistency=ratio,
                object_score=proposal.object_score,
            )
        )
    return sorted(tracklets, key=lambda tracklet: -tracklet.scores.combined)


def select_tracklets(tracklets: Sequence[Tracklet], config: SegmentationConfig) -> list[Tracklet]:
    """The targets: tracklets whose combined score exceeds tracklet_threshold. When none does, with config.fallback
    `best` the single best one (the evaluation protocol), with `none` nothing (an honest "not found").

    tracklets: best first, as from `score_tracklets`.
    """
    passed = [tracklet for tracklet in tracklets if tracklet.scores.combined > config.tracklet_threshold]
    if not passed and config.fallback == "best":
        return list(tracklets[:1])
    return passed


def consistency_maps(attention: np.ndarray, config: SegmentationConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention mask of Eq. 6, bool, and the map of Eq. 7, float32: both (T, h, w).

    attention: (T, h, w) float32 in [0, 1]. The mask holds the tokens over their frame's mean, with consistency_mask
    `otsu` those over its Otsu threshold (of 256 levels). Outside it the map is minus the frame's maximum, 0 without
    consistency_penalty (Tab. 7). A constant frame has an empty mask: all of it counts against a tracklet.
    """
    if config.consistency_mask == "mean":
        # In float64 the mean of a constant frame is exactly its value.
        inside = attention > attention.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    else:
        levels = (attention * 255).astype(np.uint8)
        thresholds = [cv2.threshold(frame, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] for frame in levels]
        inside = levels > np.array(thresholds)[:, None, None]
    outside = -attention.max(axis=(1, 2), keepdims=True) if config.consistency_penalty else np.float32(0)
    return torch.from_numpy(inside), torch.from_numpy(np.where(inside, attention, outside))


def _consistency(proposal: Proposal, inside: torch.Tensor, penalised: torch.Tensor) -> float:
    """Eq. 8: inner product of the tracklet, area-averaged to the token grid, with Eq. 7, over that of Eq. 6 with Eq. 7.

    Where every frame of the map is constant there is nothing to agree with (the ratio would be x / 0): 0.
    """
    if len(proposal.masks) != len(inside):
        raise ValueError(f"masks: expected {len(inside)} key frames, got {len(proposal.masks)}")
    whole = float(penalised[inside].sum(dtype=torch.float64))
    if whole == 0:
        return 0.0
    pooled = F.adaptive_avg_pool2d(proposal.masks[:, None].float(), tuple(inside.shape[1:]))[:, 0].cpu()
    return float((pooled * penalised).sum(dtype=torch.float64)) / whole
