"""Peak memory of one `segment` call: noise and a map with many strong points, or pictures and a map with three peaks.

    python benchmarks/candidate_memory.py --scene noise --size 3840x2160 --points 512

Uses the demo's SAM 2 and a tiny random MLLM, whose map is replaced. The last line is JSON: `peak_mib` is the peak
resident memory of the process (Linux), `digest` a hash of the masks of all candidates, best first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from pathlib import Path

import _paths  # noqa: F401
import numpy as np
from models import random_window
from recorded import recorded_window
from sam2_models import tabletop_sam2
from segmentation import PlantedGrounder

from decaf_ros.config import DecafConfig, MllmConfig, replace
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.pipeline import Decaf
from tiny_models.qwen_vl import write_tiny_mllm

KEY_FRAMES = 16
GRID = (24, 42)


def measure(scene: str, size_hw: tuple[int, int], points: int, device: str = "cpu") -> dict[str, object]:
    """Segments one window; with scene `noise` every token of the map is a point, and the strongest `points` count."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_mllm(Path(folder))
        mllm = load_mllm(MllmConfig(checkpoint=str(checkpoint), local_files_only=True, device=device))
    changes = {"grounding.mode": "fast", "presence.threshold": 0.0, "segmentation.max_points": points}
    if scene == "noise":
        window = random_window(KEY_FRAMES, size_hw=size_hw)
        planted = np.random.default_rng(0).random((KEY_FRAMES, *GRID))
        changes["segmentation.point_threshold"] = 0.0
    else:
        window, planted = recorded_window(KEY_FRAMES, size_hw)
    decaf = Decaf(mllm, tabletop_sam2(device=device), replace(DecafConfig(), changes))
    decaf.grounder = PlantedGrounder(decaf.grounder, planted.astype(np.float32))
    began = time.perf_counter()
    found = decaf.segment(window, "the mug")
    seconds = time.perf_counter() - began
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    digest = hashlib.sha256()
    for tracklet in found.tracklets:
        digest.update(repr((tracklet.scores, tracklet.raw_consistency)).encode())
        for index in range(KEY_FRAMES):
            digest.update(np.packbits(tracklet.masks[index]))
    return {
        "scene": scene,
        "size_hw": size_hw,
        "points": len(found.points),
        "tracklets": len(found.tracklets),
        "selected": len(found.selected),
        "peak_mib": round(peak_mib),
        "seconds": round(seconds, 2),
        "stage_ms": {stage: round(ms) for stage, ms in found.stage_ms},
        "digest": digest.hexdigest()[:16],
    }


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.split("x"))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scene", choices=("noise", "natural"), default="noise")
    parser.add_argument("--size", type=_size, default="3840x2160", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--points", type=int, default=512, help="segmentation.max_points")
    parser.add_argument("--device", default="cpu", help="torch device, or auto")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.scene, arguments.size, arguments.points, arguments.device)))


if __name__ == "__main__":
    main()
