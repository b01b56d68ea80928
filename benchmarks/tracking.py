"""Live tracking with the published sizes of SAM 2: one frame after the other, as a camera gives them."""

from __future__ import annotations

import numpy as np
import torch
from models import SIZE_HW, published_sam2, window
from timing import Measured

from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.types import Frame

# Frames before the clock starts: from then on the memory is full.
WARM_UP = 8


def follow(
    size: str, objects: int, frames: int, device: str, groups: int = 1, compiles: bool = False
) -> dict[str, float]:
    """Milliseconds a frame of 480x854, embedding and memory together; random weights, which take as long as others.

    groups: on how many frames the objects were taken up; those of one frame are followed together. compiles: as
    sam2.compile.
    """
    network = published_sam2(size, device)
    if compiles:
        network.model.image_encoder.compile(dynamic=False)
    shots = window(WARM_UP + frames).frames
    masks = np.zeros((objects, *SIZE_HW), bool)
    for place, mask in enumerate(masks):
        mask[100 + 40 * place : 180 + 40 * place, 100 + 150 * place : 190 + 150 * place] = True
    memories = [
        ObjectMemory.start(network, network.embed(shots[0]), torch.from_numpy(part).to(device))
        for part in np.array_split(masks, groups)
    ]

    def step(frame: Frame) -> None:
        embedding = network.embed(frame)
        for memory in memories:
            memory.step(embedding)

    for frame in shots[1:WARM_UP]:
        step(frame)
    taken = Measured(device)
    for frame in shots[WARM_UP:]:
        taken.run(lambda f=frame: step(f))
    return {"ms": taken.ms, "frames_per_s": 1000 / taken.ms, "mib": taken.mib, "peak_mib": taken.peak_mib}
