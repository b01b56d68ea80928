"""From point prompts to a few mask tracklets over the key frames (Sec. 3.4, "Frame-wise Prompting and Propagation")."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.overlap import pairwise_iou
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import PointPrompts, Window


@dataclass(frozen=True, eq=False)
class Proposal:
    """One candidate before scoring.

    masks: (T, H, W) bool tensor over the key frames, on the model's device. source: index of the key frame of its
    point. point_xy: that point, in [0, 1]. attention: fused attention there, in [0, 1]. iou: SAM 2's predicted IoU.
    object_score: SAM 2's object-presence logit at the source.
    """

    masks: torch.Tensor
    source: int
    point_xy: tuple[float, float]
    attention: float
    iou: float
    object_score: float

    @property
    def score(self) -> float:
        """The paper's object score: attention + IoU."""
        return self.attention + self.iou


def suppress(
    masks: torch.Tensor,
    scores: torch.Tensor,
    previous_masks: torch.Tensor,
    previous_scores: torch.Tensor,
    iou_threshold: float,
) -> tuple[list[int], list[int]]:
    """Non-maximum suppression among one frame's candidates, then against earlier tracklets' masks at that frame.

    masks: (P, H, W) bool, scores: (P,) object scores; previous_masks: (Q, H, W) bool, previous_scores: (Q,).
    First, best candidate first, each that overlaps a kept one by IoU > iou_threshold goes (at equal scores the earlier
    stays). Then a candidate that overlaps an earlier tracklet of at least its own score goes; one that beats all that
    it overlaps stays and deletes these. A candidate that goes deletes nothing.
    Returns (keep, delete_previous): the candidates that stay, best first, and the earlier tracklets that go, ascending.
    """
    overlapping = (pairwise_iou(masks, masks) > iou_threshold).cpu().numpy()
    overlapping_previous = (pairwise_iou(masks, previous_masks) > iou_threshold).cpu().numpy()
    scores, previous_scores = scores.cpu().numpy(), previous_scores.cpu().numpy()
    alone: list[int] = []
    for candidate in np.argsort(-scores, kind="stable").tolist():
        if not overlapping[candidate, alone].any():
            alone.append(candidate)
    keep: list[int] = []
    deleted = np.zeros(len(previous_scores), dtype=bool)
    for candidate in alone:
        rivals = overlapping_previous[candidate]
        if (previous_scores[rivals] < scores[candidate]).all():
            keep.append(candidate)
            deleted |= rivals
    return keep, np.flatnonzero(deleted).tolist()


def propose_tracklets(
    sam2: Sam2,
    window: Window,
    points: PointPrompts,
    config: SegmentationConfig,
    between_frames: Callable[[], None] = lambda: None,
) -> list[Proposal]:
    """Prompts SAM 2 key frame by key frame, suppresses doubles, and propagates each frame's survivors over the window.

    points: Eq. 5, each an object of its own. From the first key frame on: masks at the frame's points; suppression
    among them and against the tracklets of earlier key frames, as propagated to this one; the survivors become mask
    prompts, propagated over all key frames forwards, then backwards. A tracklet that a better candidate replaces is
    gone for the frames that follow. A point at which SAM 2 finds no pixel makes no candidate.
    between_frames is called before each key frame that has points; it may raise to abort.
    Returns the tracklets that are left, in order of source frame, best first within one.
    Raises ValueError for points on frames outside the window.
    """
    if len(points) and not 0 <= points.frame.min() <= points.frame.max() < len(window):
        raise ValueError(f"points: expected frames of the window of {len(window)}, got {sorted(set(points.frame))}")
    proposals: list[Proposal] = []
    for source in np.unique(points.frame).tolist():
        between_frames()
        here = np.flatnonzero(points.frame == source)
        found = sam2.masks_at_points(sam2.embed(window.frames[source]), points.xy[here])
        visible = found.masks.flatten(1).any(dim=1)
        here = here[visible.cpu().numpy()]
        masks, iou, object_score = (part[visible] for part in found)
        scores = iou + torch.from_numpy(points.value[here]).to(iou.device)
        previous_masks = torch.stack([one.masks[source] for one in proposals]) if proposals else masks[:0]
        previous_scores = torch.tensor([one.score for one in proposals], device=iou.device)
        keep, gone = suppress(masks, scores, previous_masks, previous_scores, config.suppression_iou)
        proposals = [one for place, one in enumerate(proposals) if place not in gone]
        if not keep:
            continue
        tracks = propagate(sam2, window.frames, source, masks[keep])
        for place, track in zip(keep, tracks):
            x, y = points.xy[here[place]].tolist()
            attention = float(points.value[here[place]])
            scored = float(iou[place]), float(object_score[place])
            # A copy: one that is left would keep the masks of all that were followed with it.
            proposals.append(Proposal(track.clone(), source, (x, y), attention, *scored))
    return proposals
