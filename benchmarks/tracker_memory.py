"""Checks that the streaming tracker's memory does not grow: two objects, a tiny SAM 2, many frames.

    python benchmarks/tracker_memory.py --frames 2000

The last line is JSON; `change` is the growth of resident memory over the second half, relative to the middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import _paths  # noqa: F401
import numpy as np
from timing import growth

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.types import Frame
from tiny_models.sam2 import write_tiny_sam2

HEIGHT, WIDTH = 240, 320


def camera_frame(index: int, ground: np.ndarray) -> Frame:
    """A different image for each index: the ground drifts."""
    image = np.ascontiguousarray(np.roll(ground, (index // 3, 2 * index), axis=(0, 1)))
    return Frame(image, stamp_ns=index * 33_333_333, index=index)


def measure(frames: int, device: str = "cpu") -> dict[str, float]:
    """Tracks two objects over `frames` frames (at least 2) and prints resident memory at intervals."""
    with tempfile.TemporaryDirectory() as folder:
        sam2 = load_sam2(Sam2Config(str(write_tiny_sam2(Path(folder))), device=device))
    ground = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 80:160, 60:140] = masks[1, 60:140, 180:280] = True
    tracker = StreamingTracker(sam2)
    tracker.add([1, 2], camera_frame(0, ground), masks)

    started = time.perf_counter()
    growth_figures = growth(lambda index: tracker.step(camera_frame(index, ground)), frames, "frame")
    return {
        "frames": frames,
        **growth_figures,
        "ms_per_frame": round((time.perf_counter() - started) * 1e3 / frames, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000, help="frames to track (at least 2)")
    parser.add_argument("--device", default="cpu", help="torch device, or auto")
    arguments = parser.parse_args()
    if arguments.frames < 2:
        parser.error(f"--frames: expected at least 2, got {arguments.frames}")
    print(json.dumps(measure(arguments.frames, arguments.device)))


if __name__ == "__main__":
    main()
