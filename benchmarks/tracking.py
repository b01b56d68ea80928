"""Live tracking with the published sizes of SAM 2, frame by frame."""

from __future__ import annotations

import numpy as np
import torch
from models import SIZE_HW, random_window
from sam2_models import SIZES, published_sam2, tabletop_sam2
from timing import Measurement, timed_ms

from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import Frame

__all__ = ["SIZES", "compare_compiled", "follow", "network_of"]

# Frames before timing starts, which fill the memory bank.
WARM_UP = 8


def network_of(size: str, device: str) -> Sam2:
    """A published size with random weights, as timings do not depend on them; "" for the demo's SAM 2."""
    return published_sam2(size, device) if size else tabletop_sam2(1, device)


def follow(network: Sam2, objects: int, frames: int, device: str, groups: int = 1) -> dict[str, float]:
    """Milliseconds per frame of 480x854 for embedding and memory.

    groups: number of groups of objects; each group is tracked together, with its own memory.
    """
    images = random_window(WARM_UP + frames).frames
    masks = np.zeros((objects, *SIZE_HW), bool)
    for place, mask in enumerate(masks):
        mask[100 + 40 * place : 180 + 40 * place, 100 + 150 * place : 190 + 150 * place] = True
    memories = [
        ObjectMemory.start(network, network.embed(images[0]), torch.from_numpy(part).to(device))
        for part in np.array_split(masks, groups)
    ]

    def step(frame: Frame) -> None:
        embedding = network.embed(frame)
        for memory in memories:
            memory.step(embedding)

    for frame in images[1:WARM_UP]:
        step(frame)
    measured = Measurement(device)
    for frame in images[WARM_UP:]:
        measured.run(lambda f=frame: step(f))
    return {"ms": measured.ms, "frames_per_s": 1000 / measured.ms, "mib": measured.mib, "peak_mib": measured.peak_mib}


def compare_compiled(size: str, frames: int, device: str) -> dict[str, float]:
    """Live tracking of one object with `sam2.compile`, against without.

    On a CPU the encoder's graph is captured but not compiled, as that would take a minute. first_frame_s: time of the
    first frame. error: largest difference of the image features, relative to their maximum.
    """
    network = network_of(size, device)
    frame = random_window(1).frames[0]
    plain = follow(network, 1, frames, device)
    expected = network.embed(frame).features
    network.forget()
    network.model.image_encoder.compile(dynamic=False, backend="aot_eager" if device == "cpu" else "inductor")
    first_ms = timed_ms(lambda: network.embed(frame))
    found = network.embed(frame).features
    compiled = follow(network, 1, frames, device)
    return {
        "ms": compiled["ms"],
        "plain_ms": plain["ms"],
        "speedup": plain["ms"] / compiled["ms"],
        "first_frame_s": first_ms / 1e3,
        "error": max(float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(found, expected)),
    }
