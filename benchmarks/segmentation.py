"""SAM 2 stages and the whole `segment`: this package against `literal.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from grounding import QUERY, THREE_QUERIES
from literal import (
    literal_grounding,
    literal_masks,
    literal_points,
    literal_predictor,
    literal_propagation,
    literal_scores,
    literal_tracklets,
)
from recorded import recorded_window
from sam2_models import published_sam2, tabletop_sam2
from timing import Measurement

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.grounder import STAGES as GROUNDING_STAGES
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.stages import StageClock, Steps, finish
from decaf_ros.types import AttentionMaps, Grounding, Window


def points(count: int, repeats: int, device: str = "cpu", size: str = "") -> dict[str, float]:
    """Masks of `count` points on one key frame: batches of sam2.point_batch against one call per point of the published
    predictor. Excludes the embedding and hole filling, which that predictor does not have.

    size: a published size of SAM 2, with random weights; "" for the demo's SAM 2.
    """
    sam2 = published_sam2(size, device, fill_holes_px=0) if size else tabletop_sam2(device=device, fill_holes_px=0)
    window, _ = recorded_window(1)
    xy = np.random.default_rng(0).uniform(0.05, 0.95, (count, 2)).astype(np.float32)
    embedding, predictor = sam2.embed(window.frames[0]), literal_predictor(sam2, window.frames[0])
    together, alone = Measurement(device), Measurement(device)
    for _ in range(2):  # second calls are still slowed by page faults
        sam2.masks_at_points(embedding, xy), literal_masks(sam2, predictor, xy)
    for _ in range(repeats + 1):  # the first call measures memory
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
    """`objects` objects over `frames` key frames, propagated together, against one run per object, and against one run
    that processes the objects one by one on every frame, as the published video predictor does."""
    window, _ = recorded_window(frames)
    rng = np.random.default_rng(0)
    masks = np.zeros((objects, *window.size_hw), bool)
    for mask in masks:
        y, x = rng.integers(50, 350), rng.integers(50, 700)
        mask[y : y + 80, x : x + 90] = True
    masks = torch.from_numpy(masks).to(device)
    batched_sam2, literal_sam2 = tabletop_sam2(frames, device), tabletop_sam2(1, device)

    def together() -> torch.Tensor:
        batched_sam2.forget()
        tracks = propagate(batched_sam2, window.frames, 0, masks)
        return masks_of_size(tracks.flatten(0, 1), window.size_hw)

    def alone() -> torch.Tensor:
        return torch.stack([literal_propagation(literal_sam2, window, 0, [mask])[0] for mask in masks])

    ours, runs, one_run = Measurement(device), Measurement(device), Measurement(device)
    for _ in range(repeats):
        ours.run(together)
        runs.run(alone)
        one_run.run(lambda: literal_propagation(literal_sam2, window, 0, masks))
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
    """Mean IoU of mask pairs (N, ..., H, W) bool; 1 if both are empty."""
    ours, theirs = (masks.detach().cpu().flatten(0, -3) for masks in (ours, theirs))
    union = (ours | theirs).sum(dim=(1, 2))
    return float(torch.where(union > 0, (ours & theirs).sum(dim=(1, 2)) / union.clamp(min=1), 1.0).mean())


class PlantedGrounder:
    """Grounds as the real one, then replaces the fused map by the planted one."""

    def __init__(self, grounder: Grounder, planted: np.ndarray) -> None:
        self.mllm, self.engine = grounder.mllm, grounder.engine
        self.grounder, self.planted = grounder, planted

    def ground(self, *args: object) -> Steps[Grounding]:
        return with_fused_map((yield from self.grounder.ground(*args)), self.planted)


def with_fused_map(grounding: Grounding, planted: np.ndarray) -> Grounding:
    return Grounding(
        AttentionMaps(planted, grounding.maps.video, grounding.maps.frames), grounding.category, grounding.answers
    )


def whole_segment(mllm: Mllm, frames: int, repeats: int, device: str = "cpu") -> dict[str, Any]:
    """`Decaf.segment` with empty caches against the literal method, with the same planted map in both.

    iou and score_error compare the tracklets, best first; iou is 0 if their counts differ. stage_ms: last call.
    """
    config = replace(DecafConfig(), {"grounding.mode": "fast", "presence.threshold": 0.0, "presence.ask": False})
    batched_sam2, literal_sam2 = tabletop_sam2(device=device), tabletop_sam2(1, device)
    ours, literal = Measurement(device), Measurement(device)
    for _ in range(repeats):
        window, planted = recorded_window(frames)  # new Frame objects, because a frame caches its digest
        batched_sam2.forget()
        decaf = Decaf(mllm, batched_sam2, config)
        decaf.grounder = PlantedGrounder(Grounder(mllm, EngineConfig()), planted)
        ours.run(lambda d=decaf, w=window: d.segment(w, QUERY))
        literal.run(lambda w=window, p=planted: literal_segment(mllm, literal_sam2, w, p, config))
    tracklets = ours.result.tracklets
    pairs = list(zip(tracklets, literal.result)) if len(tracklets) == len(literal.result) else []
    overlaps = [overlap(torch.from_numpy(np.stack(one.masks)), torch.from_numpy(masks)) for one, (_, masks) in pairs]
    return {
        "cold_ms": ours.ms,
        "literal_ms": literal.ms,
        "speedup": literal.ms / ours.ms,
        "cold_mib": ours.mib,
        "literal_mib": literal.mib,
        "points": len(literal_points(planted, config.segmentation.point_threshold)),
        "tracklets": len(tracklets),
        "literal_tracklets": len(literal.result),
        "iou": sum(overlaps) / len(overlaps) if overlaps else 0.0,
        "stage_ms": dict(ours.result.stage_ms),
        "score_error": max((abs(one.scores.combined - score) for one, (score, _) in pairs), default=1.0),
    }


def several_questions(mllm: Mllm, frames: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Three questions about one window with empty caches, asked together as in a live stream, against one: the
    grounding, and all of `Decaf.segment` with the same planted map for each. separate: each asked after the answer to
    the one before."""
    config = replace(DecafConfig(), {"grounding.mode": "fast", "presence.threshold": 0.0, "presence.ask": False})
    sam2 = tabletop_sam2(frames + 1, device)
    runs: dict[str, Measurement] = {}
    cases = {"three": (THREE_QUERIES, True), "separate": (THREE_QUERIES, False), "one": (THREE_QUERIES[:1], False)}
    for _ in range(repeats):
        for name, (queries, together) in cases.items():
            window, planted = recorded_window(frames)
            sam2.forget()
            decaf = Decaf(mllm, sam2, config)
            decaf.grounder = PlantedGrounder(Grounder(mllm, EngineConfig()), planted)
            more = partial(list, queries) if together else tuple
            runs.setdefault(name, Measurement(device)).run(
                lambda d=decaf, w=window, q=queries, m=more: [finish(d.steps(w, one, others=m)) for one in q]
            )
            decaf.release()
            grounder = Grounder(mllm, EngineConfig())
            runs.setdefault(f"{name}_grounding", Measurement(device)).run(
                lambda g=grounder, w=window, q=queries, m=more: [
                    finish(g.ground(w, one, config, StageClock(GROUNDING_STAGES), m)) for one in q
                ]
            )
    figures = {f"{name}_ms": run.ms for name, run in runs.items()}
    figures["ratio"] = figures["three_ms"] / figures["one_ms"]
    figures["separate_ratio"] = figures["separate_ms"] / figures["one_ms"]
    figures["grounding_ratio"] = figures["three_grounding_ms"] / figures["one_grounding_ms"]
    return figures


def literal_segment(
    mllm: Mllm, sam2: Sam2, window: Window, planted: np.ndarray, config: DecafConfig
) -> list[tuple[float, np.ndarray]]:
    """Score and masks (T, H, W) bool of every tracklet, best first."""
    grounding = with_fused_map(literal_grounding(mllm, window, QUERY, config), planted)
    prompts = literal_points(grounding.maps.fused, config.segmentation.point_threshold)
    proposals = literal_tracklets(sam2, window, prompts, config.segmentation)
    scored = zip(literal_scores(proposals, planted), (one.masks.cpu().numpy() for one in proposals))
    return sorted(scored, key=lambda one: -one[0])
