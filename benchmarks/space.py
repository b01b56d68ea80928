"""Time of outputs on one core: targets in space, decoding of depth, registration, masks as bytes, confidence.

The last line is JSON, in milliseconds and bytes.

python benchmarks/space.py [--targets 16] [--repeats 50]
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import time
from collections.abc import Callable
from types import SimpleNamespace

import _paths  # noqa: F401
import cv2
import numpy as np
import torch
from rvl_writer import encode_rvl

from decaf_ros.io.mask_codes import encode_png, encode_rle
from decaf_ros.online.confidence import confidence_image
from decaf_ros.online.targets import label_image
from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.depth import message_depth
from decaf_ros.space.objects import TargetMeasurer
from decaf_ros.space.registration import register
from decaf_ros.types import Frame, FrameResult, Target, TargetState, TrackletScores
from decaf_tabletop.world.depth_noise import measured_depth

CAMERA = Camera(640, 480, 600.0, 600.0, 319.5, 239.5)
BENT = Camera(640, 480, 600.0, 600.0, 319.5, 239.5, "plumb_bob", (-0.2, 0.05, 0.001, 0.0, 0.0))


def scene(targets: int) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Domes on a tilted table that cover a third of the image, as a stereo camera measures them.

    Returns (480, 640) float32 metres, and (480, 640) bool by target.
    """
    rows, columns = np.indices(CAMERA.size_hw)
    depth = 1.2 - 0.0008 * rows
    across = int(np.ceil(np.sqrt(targets)))
    high, wide = 480 / across, 640 / across
    masks = {}
    for index in range(targets):
        row, column = divmod(index, across)
        y, x = (rows - (row + 0.5) * high) / (0.32 * high), (columns - (column + 0.5) * wide) / (0.32 * wide)
        inside = x**2 + y**2 < 1
        masks[index + 1] = inside
        depth[inside] -= 0.06 + 0.05 * np.sqrt(1 - (x**2 + y**2)[inside])
    return measured_depth(depth.astype(np.float32), CAMERA.fx, np.random.default_rng(0)), masks


def tracked(masks: dict[int, np.ndarray]) -> tuple[FrameResult, dict[int, torch.Tensor]]:
    """The masks as targets of a frame, and logits of them on SAM 2's mask grid of 256 x 256."""
    scores = TrackletScores(0.9, 0.9, 0.9, 0.9)
    targets = tuple(Target(key, key, ("q1",), "", TargetState.TRACKED, mask, scores, 1) for key, mask in masks.items())
    frame = Frame(np.zeros((*CAMERA.size_hw, 3), np.uint8), 1)
    small = {key: cv2.resize(mask.astype(np.float32), (256, 256)) for key, mask in masks.items()}
    logits = {key: torch.from_numpy(values * 10 - 5) for key, values in small.items()}
    return FrameResult(frame, label_image(CAMERA.size_hw, targets), targets=targets), logits


def milliseconds(function: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and fastest of repeated calls by the wall clock, and the median of this process's time on the CPU."""
    walls, cpus = [], []
    function()
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((time.process_time() - cpu) * 1e3)
    return {
        "median": round(statistics.median(walls), 2),
        "fastest": round(min(walls), 2),
        "cpu": round(statistics.median(cpus), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=50)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    depth, masks = scene(args.targets)
    measurer = TargetMeasurer()
    values = np.where(np.isnan(depth), 0, np.rint(depth * 1000)).astype(np.uint16)
    head = struct.pack("<iff", 0, 0.0, 0.0)
    rvl = head + struct.pack("<II", 640, 480) + encode_rvl(values.ravel().tolist())
    png = head + cv2.imencode(".png", values)[1].tobytes()
    moved = np.eye(4)
    moved[0, 3] = 0.05

    def decoded(data: bytes, codec: str) -> np.ndarray:
        return message_depth(SimpleNamespace(data=data, format=f"16UC1; compressedDepth {codec}"))

    def fresh_rays() -> np.ndarray:
        pixel_rays.cache_clear()
        return pixel_rays(BENT)

    found = {
        f"{args.targets} targets": milliseconds(lambda: measurer.measure(masks, depth, CAMERA), args.repeats),
        "decode PNG": milliseconds(lambda: decoded(png, "png"), args.repeats),
        "decode RVL": milliseconds(lambda: decoded(rvl, "rvl"), args.repeats),
        "register": milliseconds(lambda: register(depth, CAMERA, CAMERA, moved), max(args.repeats // 5, 1)),
        "register, distorted": milliseconds(lambda: register(depth, CAMERA, BENT, moved), max(args.repeats // 5, 1)),
        "rays, first time": milliseconds(fresh_rays, max(args.repeats // 10, 1)),
    }
    result, logits = tracked(masks)
    codes = {"RLE": encode_rle, "PNG": encode_png}
    for name, encode in codes.items():
        found[f"{args.targets} masks, {name}"] = milliseconds(
            lambda encode=encode: [*map(encode, masks.values())], args.repeats
        )
    found["confidence"] = milliseconds(lambda: confidence_image(result, logits), args.repeats)
    sizes = {f"bytes of a mask, {name}": len(encode(masks[1])) for name, encode in codes.items()}
    for name, figures in found.items():
        print(f"{name:20} " + "  ".join(f"{key} {value:7.2f}" for key, value in figures.items()))
    covered = float(np.mean(sum(mask.astype(int) for mask in masks.values()) > 0))
    print(json.dumps({"targets": args.targets, "masks_cover": round(covered, 2), **sizes, **found}))


if __name__ == "__main__":
    main()
