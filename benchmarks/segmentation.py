"""SAM 2's part, and the whole `segment`: this package against `literal.py`."""

from __future__ import annotations

import functools
import statistics
from pathlib import Path

import numpy as np
import torch
from grounding import QUERY
from literal import literal_grounding, literal_masks, literal_predictor, literal_tracklets
from timing import median_ms, timed_ms

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.memory import propagate
from decaf_ros.segmentation.points import attention_points
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.types import AttentionMaps, Grounding, Window
from models import Shape, random_mllm, recorded_window, tabletop_sam2


def points(count: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Masks of so many points of one key frame: one decoder call against one call of the published predictor a point.
    The embedding is there. Without filled holes, which that predictor does not know."""
    sam2, (where, _) = tabletop_sam2(device=device, fill_holes_px=0), recorded_window(1)
    xy = np.random.default_rng(0).uniform(0.05, 0.95, (count, 2)).astype(np.float32)
    embedding, predictor = sam2.embed(where.frames[0]), literal_predictor(sam2, where.frames[0])
    together = sam2.masks_at_points(embedding, xy).masks.cpu()
    alone = torch.stack([mask for mask, _ in literal_masks(predictor, xy)])
    same = float((together == alone).float().mean())
    ours = median_ms(lambda: sam2.masks_at_points(embedding, xy), repeats)
    literal = median_ms(lambda: literal_masks(predictor, xy), repeats)
    return {"batch_ms": ours, "one_by_one_ms": literal, "speedup": literal / ours, "same_pixels": same}


def propagation(objects: int, frames: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """So many objects over so many key frames: together against one at a time, each with its own embeddings (as where
    every object is a run of its own), and with embeddings that are shared."""
    where, _ = recorded_window(frames)
    rng = np.random.default_rng(0)
    masks = np.zeros((objects, *where.size_hw), bool)
    for mask in masks:
        y, x = rng.integers(50, 350), rng.integers(50, 700)
        mask[y : y + 80, x : x + 90] = True
    masks = torch.from_numpy(masks).to(device)

    many, one = tabletop_sam2(frames, device), tabletop_sam2(1, device)

    def together() -> None:
        many.forget()
        propagate(many, where.frames, 0, masks)

    def alone(sam2: Sam2) -> None:
        sam2.forget()
        for mask in masks:
            propagate(sam2, where.frames, 0, mask[None])

    ours = median_ms(together, repeats)
    each, shared = (median_ms(functools.partial(alone, sam2), repeats) for sam2 in (one, many))
    return {"together_ms": ours, "alone_ms": each, "speedup": each / ours, "shared_embeddings_speedup": shared / ours}


class PlantedGrounder:
    """Grounds as the real one does, and then puts the planted map in the place of the fused one."""

    def __init__(self, grounder: Grounder, planted: np.ndarray) -> None:
        self.mllm, self.grounder, self.planted = grounder.mllm, grounder, planted

    def ground(self, *given: object) -> Grounding:
        return with_map(self.grounder.ground(*given), self.planted)


def with_map(found: Grounding, planted: np.ndarray) -> Grounding:
    return Grounding(AttentionMaps(planted, found.maps.video, found.maps.frames), found.category, found.answers)


def whole(folder: Path, shape: Shape, frames: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """`Decaf.segment` with empty caches against the literal method, on a map that is planted in both."""
    mllm, (where, planted) = random_mllm(folder, shape, device), recorded_window(frames)
    config = replace(
        DecafConfig(),
        {"grounding.mode": "fast", "presence.threshold": 0.0},
    )
    counts = {"points": len(attention_points(planted, config.segmentation))}

    def ours() -> None:
        decaf = Decaf(mllm, tabletop_sam2(device=device), config)
        decaf.grounder = PlantedGrounder(Grounder(mllm, EngineConfig()), planted)
        counts["tracklets"] = len(decaf.segment(where, QUERY).tracklets)

    def literal() -> None:
        counts["literal_tracklets"] = len(literal_segment(mllm, tabletop_sam2(1, device), where, planted, config))

    times = [(timed_ms(ours), timed_ms(literal)) for _ in range(repeats)]
    fast, slow = (statistics.median(some) for some in zip(*times))
    return {"cold_ms": fast, "literal_ms": slow, "speedup": slow / fast, **counts}


def literal_segment(mllm, sam2: Sam2, where: Window, planted: np.ndarray, config: DecafConfig) -> list:
    found = with_map(literal_grounding(mllm, where, QUERY, config), planted)
    at = attention_points(found.maps.fused, config.segmentation)
    return score_tracklets(literal_tracklets(sam2, where, at, config.segmentation), planted, config.segmentation)
