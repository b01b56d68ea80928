"""Masks of the selected tracklets on every frame of a clip, not only the key frames (Sec. 3.4, evaluation protocol)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from decaf_ros.devices import free_bytes
from decaf_ros.segmentation.memory import ObjectMemory, StepMasks
from decaf_ros.segmentation.resizing import masks_in_parts
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.stages import Steps
from decaf_ros.types import Frame, Tracklet, Window

MAX_TARGETS = 255  # 8-bit labels, 0 is the background
MEMORY_SHARE = 0.25


def dense_labels(
    sam2: Sam2, window: Window, selected: Sequence[Tracklet], frames: Sequence[Frame]
) -> Steps[np.ndarray]:
    """Label images of all frames: (F, H, W) uint8, 0 background, k the k-th of `selected`.

    Tracklets with the same source key frame form a group and are propagated together, forwards over all frames, then
    backwards. All groups advance in step. Between the first and the last source both directions visit a frame: its
    features are kept while they fit into a share of the device's free memory, so each frame is embedded once.

    Args:
        selected: best first; where masks overlap, the better one gets the pixel. Empty: all labels are 0.
        frames: in time order, of the window's image size; must contain the source key frames (matched by stamp).

    Raises:
        ValueError: frames of another size, a missing source key frame, or more than 255 tracklets.
    """
    other_sizes = {frame.size_hw for frame in frames} - {window.size_hw}
    if other_sizes:
        raise ValueError(f"frames: expected images of size {window.size_hw}, got {sorted(other_sizes)}")
    if len(selected) > MAX_TARGETS:
        raise ValueError(
            f"targets: expected at most {MAX_TARGETS}, got {len(selected)}; raise segmentation.tracklet_threshold"
        )
    labels = np.zeros((len(frames), *window.size_hw), dtype=np.uint8)
    index_of_stamp = {frame.stamp_ns: index for index, frame in enumerate(frames)}
    # Source frame index -> label -> tracklet.
    groups: dict[int, dict[int, Tracklet]] = defaultdict(dict)
    for label, tracklet in enumerate(selected, 1):
        stamp = window.frames[tracklet.source].stamp_ns
        if stamp not in index_of_stamp:
            raise ValueError(f"frames: expected the key frame with stamp {stamp} ns among the {len(frames)} frames")
        groups[index_of_stamp[stamp]][label] = tracklet
    if not groups:
        return labels

    twice = frames[min(groups) : max(groups)]
    room = int(MEMORY_SHARE * free_bytes(sam2.device)) // sam2.embed(frames[min(groups)]).nbytes
    with sam2.holding(twice[max(0, len(twice) - room) :]):
        yield from _propagate(sam2, frames, groups, labels)
    return labels


def _propagate(
    sam2: Sam2, frames: Sequence[Frame], groups: dict[int, dict[int, Tracklet]], labels: np.ndarray
) -> Steps[None]:
    """Paints the masks of all groups (source frame index -> label -> tracklet) into `labels`. A unit is a frame."""
    memories: dict[int, ObjectMemory] = {}
    for index in range(min(groups), len(frames)):
        embedding = sam2.embed(frames[index])
        for source, memory in memories.items():
            _paint(labels[index], groups[source], memory.step(embedding))
        if index in groups:
            source_masks = np.stack([tracklet.masks[tracklet.source] for tracklet in groups[index].values()])
            prompts = torch.from_numpy(source_masks).to(sam2.device)
            memories[index] = ObjectMemory.start(sam2, embedding, prompts, index, len(frames))
            _paint(labels[index], groups[index], memories[index].latest)
        yield
    for memory in memories.values():
        memory.rewind()
    for index in reversed(range(max(groups))):
        embedding = sam2.embed(frames[index])
        for source, memory in memories.items():
            if index < source:
                _paint(labels[index], groups[source], memory.step(embedding))
        yield


def _paint(image: np.ndarray, labels: Iterable[int], step: StepMasks) -> None:
    """Writes each label into its mask of the step; smaller labels win. image: (H, W) uint8."""
    masks = (mask for part in masks_in_parts(step.logits, step.size_hw) for mask in part.cpu().numpy())
    for label, mask in zip(labels, masks):
        image[mask & ((image == 0) | (image > label))] = label
