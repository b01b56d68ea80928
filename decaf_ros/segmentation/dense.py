"""Selected tracklets on every frame of a clip, not just on the key frames (Sec. 3.4, the evaluation protocol)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import Frame, Tracklet, Window


def dense_masks(sam2: Sam2, window: Window, selected: Sequence[Tracklet], frames: Sequence[Frame]) -> np.ndarray:
    """The union of the selected tracklets on all frames: (F, H, W) bool.

    Tracklets of one source key frame are propagated together from their masks on it, forwards over all frames and then
    backwards; all groups advance together, so that each frame is embedded at most twice.
    frames: in order of time, of the window's image size, with the source key frames among them (found by stamp).
    Nothing selected: all False. Raises ValueError for frames of another size or without a source key frame.
    """
    wrong = {frame.size_hw for frame in frames} - {window.size_hw}
    if wrong:
        raise ValueError(f"frames: expected images of size {window.size_hw}, got {sorted(wrong)}")
    union = np.zeros((len(frames), *window.size_hw), dtype=bool)
    place = {frame.stamp_ns: index for index, frame in enumerate(frames)}
    groups: dict[int, list[Tracklet]] = defaultdict(list)
    for tracklet in selected:
        stamp = window.frames[tracklet.source].stamp_ns
        if stamp not in place:
            raise ValueError(f"frames: expected the key frame with stamp {stamp} ns among the {len(frames)} frames")
        groups[place[stamp]].append(tracklet)
    if not groups:
        return union

    memories: dict[int, ObjectMemory] = {}
    for index in range(min(groups), len(frames)):
        embedding = sam2.embed(frames[index])
        for memory in memories.values():
            union[index] |= _seen(memory.step(embedding).masks)
        if index in groups:
            prompts = np.stack([tracklet.masks[tracklet.source] for tracklet in groups[index]])
            prompts = torch.from_numpy(prompts).to(sam2.device)
            memories[index] = ObjectMemory.start(sam2, embedding, prompts, index, len(frames))
            union[index] |= _seen(memories[index].latest.masks)
    for memory in memories.values():
        memory.rewind()
    for index in reversed(range(max(groups))):
        embedding = sam2.embed(frames[index])
        for source, memory in memories.items():
            if index < source:
                union[index] |= _seen(memory.step(embedding).masks)
    return union


def _seen(masks: torch.Tensor) -> np.ndarray:
    return masks.any(dim=0).cpu().numpy()
