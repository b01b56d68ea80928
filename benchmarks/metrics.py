"""Speed of J and F on one core: frames of 480 x 854 px per minute.

    python benchmarks/metrics.py [--frames 2000] [--cell 1]

Prints a line of JSON. A mask is three random ellipses, and the other of its pair the same, moved and with a rough
edge. --cell: size in pixels of the noise at the edge; 1 is the roughest.
"""

from __future__ import annotations

import argparse
import json
import time

import cv2
import numpy as np

from decaf_ros.evaluation.metrics import boundary_f, region_similarity

SIZE_HW = (480, 854)


def pair(rng: np.random.Generator, cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Two similar (H, W) bool masks."""
    image = np.zeros(SIZE_HW, np.uint8)
    for _ in range(3):
        centre, axes = rng.integers(0, SIZE_HW[::-1]), rng.integers(15, 200, 2)
        cv2.ellipse(image, tuple(map(int, centre)), tuple(map(int, axes)), int(rng.integers(180)), 0, 360, 1, -1)
    rows, columns = (side // cell + 1 for side in SIZE_HW)
    noise = np.kron(rng.random((rows, columns)) < 0.5, np.ones((cell, cell), bool))[: SIZE_HW[0], : SIZE_HW[1]]
    edge = cv2.dilate(image, np.ones((9, 9), np.uint8)) != cv2.erode(image, np.ones((9, 9), np.uint8))
    moved = np.roll(image > 0, rng.integers(-6, 7, 2), (0, 1))
    return image > 0, moved ^ (edge & noise)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of J and F on one core.")
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--cell", type=int, default=1)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    pairs = [pair(rng, args.cell) for _ in range(50)]
    rates, scores = {}, {}
    for name, score in (("j", region_similarity), ("f", boundary_f)):
        began = time.process_time()
        values = [score(*pairs[index % len(pairs)]) for index in range(args.frames)]
        rates[f"{name}_frames_per_minute"] = round(60 * args.frames / (time.process_time() - began))
        scores[f"mean_{name}"] = round(float(np.mean(values)), 3)
    print(json.dumps({"frames": args.frames, "size_hw": SIZE_HW, **rates, **scores}))


if __name__ == "__main__":
    main()
