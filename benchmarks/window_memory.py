"""Does grounding's memory grow? Windows that overlap, two queries in turn, a tiny multimodal LLM; resident memory.

    python benchmarks/window_memory.py --windows 1000

The caches are made small, so that they are full, and throw out what is old, long before the middle of the run. The last
line is JSON; `change` is the growth of the resident memory over the second half, relative to its middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from timing import growth

from decaf_ros.config import DecafConfig, EngineConfig, MllmConfig, replace
from decaf_ros.demo.tiny_mllm import write_tiny_mllm
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.stages import StageClock
from models import window

QUERIES = ("the mug that was just put down", "what can be used to cut bread")
FRAMES = 4


def measure(windows: int, device: str = "cpu") -> dict[str, float]:
    """Grounds so many windows (at least 2), each with one new key frame, and prints resident memory on the way."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(write_tiny_mllm(Path(folder)))
        mllm = load_mllm(MllmConfig(checkpoint, local_files_only=True, device=device, video_tokens=48))
    engine = EngineConfig(prefix_cache_mib=8, feature_cache_mib=1, map_cache_mib=1)
    grounder, config = Grounder(mllm, engine), replace(DecafConfig(), {"grounding.mode": "fast"})

    def ground(number: int) -> None:
        where = window(FRAMES, first=number, size_hw=(96, 128))
        grounder.ground(where, QUERIES[number % 2], config, StageClock(STAGES))

    grown = growth(ground, windows, "window")
    caches = {name: getattr(grounder.engine, name) for name in ("prefixes", "features", "looks")}
    held = {f"{name}_mib": round(cache.held_bytes / 2**20, 2) for name, cache in caches.items()}
    return {"windows": windows, **grown, **held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=1000, help="windows to ground (at least 2)")
    parser.add_argument("--device", default="cpu", help="torch device, or auto")
    given = parser.parse_args()
    if given.windows < 2:
        parser.error(f"--windows: expected at least 2, got {given.windows}")
    print(json.dumps(measure(given.windows, given.device)))


if __name__ == "__main__":
    main()
