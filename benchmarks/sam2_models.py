"""SAM 2 in the benchmarks."""

from __future__ import annotations

from pathlib import Path

import _paths  # noqa: F401
import sam2
import torch
from omegaconf import OmegaConf

from decaf_ros.config import Sam2Config
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import build_model, load_sam2

SIZES = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def tabletop_sam2(embedding_cache: int = 20, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """The demo's trained SAM 2: random weights would give masks that overlap or are empty at random."""
    folder = Path(resolve_path("package://decaf_tabletop/models/tabletop_sam2"))
    config = Sam2Config(str(folder), device=device, embedding_cache=embedding_cache)
    return load_sam2(config, fill_holes_px)


def published_sam2(size: str, device: str = "cpu", fill_holes_px: int = 8) -> Sam2:
    """SAM 2.1 of a published size (`SIZES`) with random weights, as timings do not depend on them. Caches the embedding
    of one frame."""
    config = OmegaConf.load(Path(sam2.__file__).parent / f"configs/sam2.1/sam2.1_hiera_{SIZES[size]}.yaml")
    torch.manual_seed(0)
    model = build_model(OmegaConf.to_container(config, resolve=True)["model"]).to(device).eval()
    return Sam2(model, Sam2Config(device=device, embedding_cache=1), fill_holes_px)
