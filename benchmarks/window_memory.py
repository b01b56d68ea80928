"""Checks that memory does not grow: `segment` on overlapping windows, two alternating queries, tiny random models.

    python benchmarks/window_memory.py --windows 1000

Small caches are full and evict long before the middle of the run. The last line is JSON; `change` is the growth of
resident memory over the second half, relative to the middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import _paths  # noqa: F401
from models import random_window
from timing import growth

from decaf_ros.config import DecafConfig, replace
from decaf_ros.pipeline import Decaf
from tiny_models.qwen_vl import write_tiny_mllm
from tiny_models.sam2 import write_tiny_sam2

QUERIES = ("the mug that was just put down", "what can be used to cut bread")
FRAMES = 4
SMALL_CACHES = {
    "grounding.mode": "fast",
    "mllm.local_files_only": True,
    "mllm.video_tokens": 48,
    "engine.prefix_cache_mib": 8,
    "engine.feature_cache_mib": 1,
    "engine.map_cache_mib": 1,
    "segmentation.max_points": 4,
}


def measure(windows: int, device: str = "cpu") -> dict[str, float]:
    """Segments `windows` windows (at least 2), each with one new key frame, and prints resident memory at intervals."""
    with tempfile.TemporaryDirectory() as folder:
        mllm = write_tiny_mllm(Path(folder) / "mllm")
        sam2 = write_tiny_sam2(Path(folder) / "sam2")
        config = replace(DecafConfig(), SMALL_CACHES | {"mllm.checkpoint": str(mllm), "sam2.checkpoint": str(sam2)})
        decaf = Decaf.from_config(replace(config, {"mllm.device": device, "sam2.device": device}))

    def segment(number: int) -> None:
        decaf.segment(random_window(FRAMES, first=number, size_hw=(96, 128)), QUERIES[number % 2])

    growth_figures = growth(segment, windows, "window")
    engine = decaf.grounder.engine
    caches = {"prefixes": engine.prefixes, "features": engine.features, "looks": engine.results}
    held = {f"{name}_mib": round(cache.held_bytes / 2**20, 2) for name, cache in caches.items()}
    return {"windows": windows, **growth_figures, **held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1000, help="windows to segment (at least 2)")
    parser.add_argument("--device", default="cpu", help="torch device, or auto")
    arguments = parser.parse_args()
    if arguments.windows < 2:
        parser.error(f"--windows: expected at least 2, got {arguments.windows}")
    print(json.dumps(measure(arguments.windows, arguments.device)))


if __name__ == "__main__":
    main()
