"""From point prompts to mask tracklets over the key frames (Sec. 3.4, "Frame-wise Prompting and Propagation")."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.memory import propagate_steps
from decaf_ros.segmentation.overlap import PackedMasks, pairwise_iou
from decaf_ros.segmentation.points import negative_points
from decaf_ros.segmentation.resizing import GridMasks, masks_of_size
from decaf_ros.segmentation.sam2 import FrameEmbedding, PointMasks, Sam2
from decaf_ros.stages import Steps
from decaf_ros.types import PointPrompts, Window


@dataclass(frozen=True, eq=False)
class Proposal:
    """One candidate before scoring.

    Attributes:
        masks: over the T key frames.
        source: index of the key frame that contains its point.
        point_xy: the point, in [0, 1].
        attention: fused attention at the point, in [0, 1].
        iou: SAM 2's predicted IoU at the point.
        object_score: SAM 2's object-presence logit at the point.
    """

    masks: GridMasks
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
    masks: PackedMasks,
    scores: torch.Tensor,
    previous_masks: PackedMasks,
    previous_scores: torch.Tensor,
    iou_threshold: float,
) -> tuple[list[int], list[int]]:
    """Non-maximum suppression among one frame's candidates, then against earlier tracklets on that frame.

    1. Among candidates, best first (ties: earlier first): drop each that overlaps a kept one by IoU > iou_threshold.
    2. A remaining candidate that overlaps an earlier tracklet with an equal or higher score is dropped and deletes
       nothing. One that beats every tracklet it overlaps is kept and deletes them.

    Args:
        masks: of the P candidates.
        scores: (P,) object scores.
        previous_masks: of the Q earlier tracklets on this frame.
        previous_scores: (Q,) object scores.
        iou_threshold: see above.

    Returns:
        Indices of the kept candidates, best first, and of the deleted tracklets, ascending.
    """
    overlapping = (pairwise_iou(masks, masks) > iou_threshold).cpu().numpy()
    overlapping_previous = (pairwise_iou(masks, previous_masks) > iou_threshold).cpu().numpy()
    candidate_scores, tracklet_scores = scores.cpu().numpy(), previous_scores.cpu().numpy()
    distinct: list[int] = []
    for candidate in np.argsort(-candidate_scores, kind="stable").tolist():
        if not overlapping[candidate, distinct].any():
            distinct.append(candidate)
    keep: list[int] = []
    deleted = np.zeros(len(tracklet_scores), dtype=bool)
    for candidate in distinct:
        rivals = overlapping_previous[candidate]
        if (tracklet_scores[rivals] < candidate_scores[candidate]).all():
            keep.append(candidate)
            deleted |= rivals
    return keep, np.flatnonzero(deleted).tolist()


def refined(
    sam2: Sam2,
    embedding: FrameEmbedding,
    xy: np.ndarray,
    found: PointMasks,
    attention: np.ndarray,
    config: SegmentationConfig,
) -> Steps[PointMasks]:
    """The masks of the same points with negative points beside them where `negative_points` finds any.

    A mask that the negative points empty stays as it was.

    Args:
        sam2: the model.
        embedding: the frame.
        xy: (P, 2) in [0, 1], the points.
        found: their masks.
        attention: (h, w) float32 in [0, 1], the fused map of the frame.
        config: see `negative_points`.
    """
    by_count: dict[int, list[tuple[int, np.ndarray]]] = defaultdict(list)
    for index, logits in enumerate(found.logits):
        mask = masks_of_size(logits[None], found.size_hw)[0].cpu().numpy()
        negative = negative_points(attention, mask, config)
        if len(negative):
            by_count[len(negative)].append((index, negative))
    parts = [part.clone() for part in found[:3]]
    for members in by_count.values():
        places = [index for index, _ in members]
        again = yield from sam2.point_steps(embedding, xy[places], np.stack([negative for _, negative in members]))
        yield
        shown = (again.logits > 0).flatten(1).any(dim=1)
        chosen = torch.tensor(places, device=shown.device)[shown]
        for part, new in zip(parts, again[:3]):
            part[chosen] = new[shown]
    return PointMasks(parts[0], parts[1], parts[2], found.size_hw)


def propose_tracklets(
    sam2: Sam2,
    window: Window,
    points: PointPrompts,
    config: SegmentationConfig,
    attention: np.ndarray | None = None,
) -> Steps[list[Proposal]]:
    """Prompts SAM 2 key frame by key frame, suppresses duplicates and propagates the survivors over the window.

    For each key frame in order: get masks at its points; suppress among them and against the tracklets of earlier key
    frames, as propagated to this one; propagate the survivors as mask prompts over all key frames, forwards, then
    backwards. A tracklet replaced by a better candidate is removed at once. A point with an empty mask is skipped,
    or with sam2.blank_unseen an unseen candidate.

    Args:
        points: Eq. 5, each point (or box) a separate object.
        attention: (T, h, w) float32 in [0, 1], the fused map, for config.negative_points; None: no negative points.

    Returns:
        The remaining tracklets by source frame, best first within a frame.

    Raises:
        ValueError: points on frames outside the window.
    """
    if len(points) and not 0 <= points.frame.min() <= points.frame.max() < len(window):
        raise ValueError(f"points: expected frames of the window of {len(window)}, got {sorted(set(points.frame))}")
    proposals: list[Proposal] = []
    for source in np.unique(points.frame).tolist():
        yield
        here = np.flatnonzero(points.frame == source)
        embedding = sam2.embed(window.frames[source])
        yield
        if points.box is not None:
            found = yield from sam2.box_steps(embedding, points.box[here])
        else:
            found = yield from sam2.point_steps(embedding, points.xy[here])
            if config.negative_points and attention is not None:
                yield
                found = yield from refined(sam2, embedding, points.xy[here], found, attention[source], config)
        yield
        masks = PackedMasks.of(found.logits, window.size_hw)
        kept = (masks.area_px > 0) | sam2.blank_unseen
        here, masks = here[kept.cpu().numpy()], masks[kept]
        logits, iou, object_score = (part[kept] for part in (found.logits, found.iou, found.object_score))
        scores = iou + torch.from_numpy(points.value[here]).to(iou.device)
        previous = [proposal.masks.logits[source] for proposal in proposals]
        previous_masks = PackedMasks.of(torch.stack(previous) if previous else logits[:0], window.size_hw)
        previous_scores = torch.tensor([proposal.score for proposal in proposals], device=iou.device)
        keep, replaced = suppress(masks, scores, previous_masks, previous_scores, config.suppression_iou)
        proposals = [proposal for index, proposal in enumerate(proposals) if index not in replaced]
        for start in range(0, len(keep), sam2.object_batch):
            batch = keep[start : start + sam2.object_batch]
            prompts = masks_of_size(logits[batch], window.size_hw)
            yield
            tracks = yield from propagate_steps(sam2, window.frames, source, prompts)
            for index, track in zip(batch, tracks):
                x, y = points.xy[here[index]].tolist()
                value = float(points.value[here[index]])
                # Cloned: a view would keep the masks of the whole batch in memory.
                track_masks = GridMasks(track.clone(), window.size_hw)
                proposals.append(
                    Proposal(track_masks, source, (x, y), value, float(iou[index]), float(object_score[index]))
                )
    return proposals
