"""SAM 2's part, and the whole `segment`: this package against `literal.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from grounding import QUERY
from literal import (
    literal_grounding,
    literal_masks,
    literal_points,
    literal_predictor,
    literal_propagation,
    literal_scores,
    literal_tracklets,
)
from models import published_sam2, recorded_window, tabletop_sam2
from timing import Measured

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import AttentionMaps, Grounding, Window


def points(count: int, repeats: int, device: str = "cpu", size: str = "") -> dict[str, float]:
    """Masks of so many points of one key frame: batches of sam2.point_batch against one call of the published predictor
    a point. The embedding is there. Without filled holes, which that predictor does not know. size: of a published
    SAM 2 with random weights; without it the demo's."""
    sam2 = published_sam2(size, device, fill_holes_px=0) if size else tabletop_sam2(device=device, fill_holes_px=0)
    where, _ = recorded_window(1)
    xy = np.random.default_rng(0).uniform(0.05, 0.95, (count, 2)).astype(np.float32)
    embedding, predictor = sam2.embed(where.frames[0]), literal_predictor(sam2, where.frames[0])
    together, alone = Measured(device), Measured(device)
    for _ in range(2):  # the second calls still wait for pages of memory
        sam2.masks_at_points(embedding, xy), literal_masks(sam2, predictor, xy)
    for _ in range(repeats + 1):  # the first of them measures memory
        together.run(lambda: sam2.masks_at_points(embedding, xy))
        alone.run(lambda: literal_masks(sam2, predictor, xy))
    one_by_one = torch.stack([mask for mask, _ in alone.result])
    return {
        "batch_ms": together.ms,
        "one_by_one_ms": alone.ms,
        "speedup": alone.ms / together.ms,
        "batch_mib": together.mib,
        "iou": overlap(together.result.masks, one_by_one),
    }


def propagation(objects: int, frames: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """So many objects over so many key frames: together, against one run an object, and against one run in which they
    are followed one after the other on every frame, as the published video predictor does it."""
    where, _ = recorded_window(frames)
    rng = np.random.default_rng(0)
    masks = np.zeros((objects, *where.size_hw), bool)
    for mask in masks:
        y, x = rng.integers(50, 350), rng.integers(50, 700)
        mask[y : y + 80, x : x + 90] = True
    masks = torch.from_numpy(masks).to(device)
    many, one = tabletop_sam2(frames, device), tabletop_sam2(1, device)

    def together() -> torch.Tensor:
        many.forget()
        return propagate(many, where.frames, 0, masks)

    def alone() -> torch.Tensor:
        return torch.stack([literal_propagation(one, where, 0, [mask])[0] for mask in masks])

    ours, runs, one_run = Measured(device), Measured(device), Measured(device)
    for _ in range(repeats):
        ours.run(together)
        runs.run(alone)
        one_run.run(lambda: literal_propagation(one, where, 0, masks))
    return {
        "together_ms": ours.ms,
        "a_run_each_ms": runs.ms,
        "in_one_run_ms": one_run.ms,
        "speedup": runs.ms / ours.ms,
        "speedup_one_run": one_run.ms / ours.ms,
        "together_mib": ours.mib,
        "iou": overlap(ours.result, runs.result),
    }


def overlap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Mean IoU of masks (N, ..., H, W) bool, pair by pair; 1 where both are empty."""
    ours, theirs = (masks.detach().cpu().flatten(0, -3) for masks in (ours, theirs))
    union = (ours | theirs).sum(dim=(1, 2))
    return float(torch.where(union > 0, (ours & theirs).sum(dim=(1, 2)) / union.clamp(min=1), 1.0).mean())


class PlantedGrounder:
    """Grounds as the real one does, and then puts the planted map in the place of the fused one."""

    def __init__(self, grounder: Grounder, planted: np.ndarray) -> None:
        self.mllm, self.engine = grounder.mllm, grounder.engine
        self.grounder, self.planted = grounder, planted

    def ground(self, *given: object) -> Grounding:
        return with_map(self.grounder.ground(*given), self.planted)


def with_map(found: Grounding, planted: np.ndarray) -> Grounding:
    return Grounding(AttentionMaps(planted, found.maps.video, found.maps.frames), found.category, found.answers)


def whole(mllm: Mllm, frames: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """`Decaf.segment` with empty caches against the literal method, on a map that is planted in both. iou and
    score_error compare the tracklets, best first; iou is 0 where their numbers differ. stage_ms: of the last call."""
    config = replace(DecafConfig(), {"grounding.mode": "fast", "presence.threshold": 0.0})
    batched, literal_sam2 = tabletop_sam2(device=device), tabletop_sam2(1, device)
    ours, literal = Measured(device), Measured(device)
    for _ in range(repeats):
        where, planted = recorded_window(frames)  # new frames: theirs are the caches' keys
        batched.forget()
        decaf = Decaf(mllm, batched, config)
        decaf.grounder = PlantedGrounder(Grounder(mllm, EngineConfig()), planted)
        ours.run(lambda d=decaf, w=where: d.segment(w, QUERY))
        literal.run(lambda w=where, p=planted: literal_segment(mllm, literal_sam2, w, p, config))
    found = ours.result.tracklets
    pairs = list(zip(found, literal.result)) if len(found) == len(literal.result) else []
    overlaps = [overlap(torch.from_numpy(one.masks), torch.from_numpy(masks)) for one, (_, masks) in pairs]
    return {
        "cold_ms": ours.ms,
        "literal_ms": literal.ms,
        "speedup": literal.ms / ours.ms,
        "cold_mib": ours.mib,
        "literal_mib": literal.mib,
        "points": len(literal_points(planted, config.segmentation.point_threshold)),
        "tracklets": len(found),
        "literal_tracklets": len(literal.result),
        "iou": sum(overlaps) / len(overlaps) if overlaps else 0.0,
        "stage_ms": dict(ours.result.stage_ms),
        "score_error": max((abs(one.scores.combined - score) for one, (score, _) in pairs), default=1.0),
    }


def literal_segment(
    mllm: Mllm, sam2: Sam2, where: Window, planted: np.ndarray, config: DecafConfig
) -> list[tuple[float, np.ndarray]]:
    """Score and masks (T, H, W) bool of every tracklet, best first."""
    found = with_map(literal_grounding(mllm, where, QUERY, config), planted)
    at = literal_points(found.maps.fused, config.segmentation.point_threshold)
    proposals = literal_tracklets(sam2, where, at, config.segmentation)
    scored = zip(literal_scores(proposals, planted), (one.masks.cpu().numpy() for one in proposals))
    return sorted(scored, key=lambda one: -one[0])
