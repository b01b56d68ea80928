"""Does the streaming tracker's memory grow? Two objects, a tiny SAM 2, many frames; resident memory as it goes.

    python benchmarks/tracker_memory.py --frames 2000

The last line is JSON; `change` is the growth of the resident memory over the second half, relative to its middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import growth

from decaf_ros.config import Sam2Config
from decaf_ros.segmentation.sam2 import load_sam2
from decaf_ros.segmentation.tracker import StreamingTracker
from decaf_ros.types import Frame
from tiny_models.sam2 import write_tiny_sam2

HEIGHT, WIDTH = 240, 320


def camera_frame(index: int, ground: np.ndarray) -> Frame:
    """A new image for each index: a ground that drifts."""
    image = np.ascontiguousarray(np.roll(ground, (index // 3, 2 * index), axis=(0, 1)))
    return Frame(image, stamp_ns=index * 33_333_333, index=index)


def measure(frames: int, device: str = "cpu") -> dict[str, float]:
    """Follows two objects for so many frames (at least 2) and prints resident memory on the way."""
    with tempfile.TemporaryDirectory() as folder:
        sam2 = load_sam2(Sam2Config(str(write_tiny_sam2(Path(folder))), device=device))
    ground = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((2, HEIGHT, WIDTH), dtype=bool)
    masks[0, 80:160, 60:140] = masks[1, 60:140, 180:280] = True
    tracker = StreamingTracker(sam2)
    tracker.add([1, 2], camera_frame(0, ground), masks)

    started = time.perf_counter()
    grown = growth(lambda index: tracker.step(camera_frame(index, ground)), frames, "frame")
    return {"frames": frames, **grown, "ms_per_frame": round((time.perf_counter() - started) * 1e3 / frames, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000, help="frames to follow (at least 2)")
    parser.add_argument("--device", default="cpu", help="torch device, or auto")
    given = parser.parse_args()
    if given.frames < 2:
        parser.error(f"--frames: expected at least 2, got {given.frames}")
    print(json.dumps(measure(given.frames, given.device)))


if __name__ == "__main__":
    main()
