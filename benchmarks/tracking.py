"""Live tracking with the published sizes of SAM 2, frame by frame."""

from __future__ import annotations

import numpy as np
import torch
from models import SIZE_HW, published_sam2, random_window
from timing import Measurement

from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.types import Frame

# Frames before timing starts, which fill the memory bank.
WARM_UP = 8


def follow(
    size: str, objects: int, frames: int, device: str, groups: int = 1, compiles: bool = False
) -> dict[str, float]:
    """Milliseconds per frame of 480x854 for embedding and memory. Random weights, as timings do not depend on them.

    groups: number of groups of objects; each group is tracked together, with its own memory. compiles: as sam2.compile.
    """
    network = published_sam2(size, device)
    if compiles:
        network.model.image_encoder.compile(dynamic=False)
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
