"""Selected tracklets on every frame of a clip, not just on the key frames (Sec. 3.4, the evaluation protocol)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.types import Frame, Tracklet, Window

# Labels are 8 bits, as they are in the label images.
MOST_TARGETS = 255


def dense_labels(sam2: Sam2, window: Window, selected: Sequence[Tracklet], frames: Sequence[Frame]) -> np.ndarray:
    """The selected tracklets on all frames: (F, H, W) uint8, 0 background, k the k-th of `selected`.

    selected: best first; where masks overlap the better one has the pixel. Their union is `labels > 0`.
    Tracklets of one source key frame are propagated together from their masks on it, forwards over all frames and then
    backwards; all groups advance together, so that each frame is embedded at most twice.
    frames: in order of time, of the window's image size, with the source key frames among them (found by stamp).
    Nothing selected: all 0. Raises ValueError for frames of another size or without a source key frame, and for more
    than 255 tracklets.
    """
    wrong = {frame.size_hw for frame in frames} - {window.size_hw}
    if wrong:
        raise ValueError(f"frames: expected images of size {window.size_hw}, got {sorted(wrong)}")
    if len(selected) > MOST_TARGETS:
        raise ValueError(
            f"targets: expected at most {MOST_TARGETS}, got {len(selected)}; raise segmentation.tracklet_threshold"
        )
    labels = np.zeros((len(frames), *window.size_hw), dtype=np.uint8)
    place = {frame.stamp_ns: index for index, frame in enumerate(frames)}
    # By their source's place in the clip: each tracklet with its label.
    groups: dict[int, dict[int, Tracklet]] = defaultdict(dict)
    for label, tracklet in enumerate(selected, 1):
        stamp = window.frames[tracklet.source].stamp_ns
        if stamp not in place:
            raise ValueError(f"frames: expected the key frame with stamp {stamp} ns among the {len(frames)} frames")
        groups[place[stamp]][label] = tracklet
    if not groups:
        return labels

    memories: dict[int, ObjectMemory] = {}
    for index in range(min(groups), len(frames)):
        embedding = sam2.embed(frames[index])
        for source, memory in memories.items():
            _paint(labels[index], groups[source], memory.step(embedding).masks)
        if index in groups:
            prompts = np.stack([tracklet.masks[tracklet.source] for tracklet in groups[index].values()])
            prompts = torch.from_numpy(prompts).to(sam2.device)
            memories[index] = ObjectMemory.start(sam2, embedding, prompts, index, len(frames))
            _paint(labels[index], groups[index], memories[index].latest.masks)
    for memory in memories.values():
        memory.rewind()
    for index in reversed(range(max(groups))):
        embedding = sam2.embed(frames[index])
        for source, memory in memories.items():
            if index < source:
                _paint(labels[index], groups[source], memory.step(embedding).masks)
    return labels


def _paint(image: np.ndarray, labels: Iterable[int], masks: torch.Tensor) -> None:
    """Writes each label where its mask is and no smaller label stands. image: (H, W) uint8. masks: (K, H, W) bool."""
    for label, mask in zip(labels, masks.cpu().numpy()):
        image[mask & ((image == 0) | (image > label))] = label
