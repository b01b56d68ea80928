"""Follows targets frame by frame without end: groups of objects, each with a bounded SAM 2 memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from decaf_ros.segmentation.appearance import describe
from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.search import Example, likely_points
from decaf_ros.segmentation.strays import has_strays, without_strays
from decaf_ros.types import Frame


class TrackStep(NamedTuple):
    """mask: (H, W) bool, empty if the object is not seen, without strays. object_score: object-presence logit, > 0:
    seen. look: (C,) float32, its descriptor (`appearance.describe`). has_strays: whether SAM 2 masked something apart
    from the object too. logits: (h, w) float32 of the mask on the mask grid, on the model's device, with the strays."""

    mask: np.ndarray
    object_score: float
    look: np.ndarray | None = None
    has_strays: bool = False
    logits: torch.Tensor | None = None


@dataclass
class _Group:
    """Objects added together, in the order of the memory's batch."""

    ids: list[int]
    memory: ObjectMemory


class StreamingTracker:
    """A streaming SAM 2. Objects can be added and removed at any frame; objects added together form one batch.

    Each frame is embedded once for all groups. Masks of different objects may overlap; the tracker does not resolve
    that. The same calls on the same device give the same results. Memory does not grow with the number of frames.
    """

    def __init__(self, sam2: Sam2) -> None:
        self._sam2 = sam2
        self._groups: list[_Group] = []

    @property
    def ids(self) -> tuple[int, ...]:
        """The objects being followed, in the order they were added."""
        return tuple(object_id for group in self._groups for object_id in group.ids)

    def add(self, ids: Sequence[int], frame: Frame, masks: np.ndarray) -> np.ndarray:
        """Starts objects from their masks on a frame; `step` follows them from the next frame on.

        ids: K distinct ints, none followed yet; if empty, no effect. masks: (K, H, W) bool at the frame's size.
        Returns (K, C) float32 descriptors of the masks (`appearance.describe`), (0, 0) without ids.
        Raises ValueError for other ids or shapes, TypeError for masks that are not bool.
        """
        if len(ids) != len(masks) or len(set(ids)) < len(ids) or set(ids) & set(self.ids):
            raise ValueError(f"ids: expected {len(masks)} distinct ids, none of {self.ids}, got {tuple(ids)}")
        if len(ids) == 0:
            return np.zeros((0, 0), np.float32)
        prompts = torch.from_numpy(np.array(masks)).to(self._sam2.device)
        embedding = self._sam2.embed(frame)
        self._groups.append(_Group(list(ids), ObjectMemory.start(self._sam2, embedding, prompts)))
        return describe(embedding, masks, frame)

    def step(self, frame: Frame) -> dict[int, TrackStep]:
        """Follows all objects to the next frame. Returns one TrackStep per id, in the order of `ids`.

        Raises ValueError if an object was added on a frame of another size.
        """
        if not self._groups:
            return {}
        embedding = self._sam2.embed(frame)
        steps: dict[int, TrackStep] = {}
        for group in self._groups:
            output = group.memory.step(embedding)
            whole = output.masks.cpu().numpy()
            masks = np.stack([without_strays(mask) for mask in whole])
            looks = describe(embedding, masks, frame)
            stray = [has_strays(*pair) for pair in zip(whole, masks)]
            results = zip(group.ids, masks, output.object_score.tolist(), looks, stray, output.logits)
            steps.update({key: TrackStep(*result) for key, *result in results})
        return steps

    def search(self, frame: Frame, example: Example) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """Masks of things on a frame that may be the example: (K, H, W) bool, with their (K, C) float32 descriptors and
        (K, h, w) float32 logits on the mask grid, on the model's device."""
        embedding = self._sam2.embed(frame)
        found = self._sam2.masks_at_points(embedding, likely_points(frame, example))
        masks = found.masks.cpu().numpy()
        return masks, describe(embedding, masks, frame), found.logits

    def reject(self, ids: Collection[int]) -> None:
        """Forgets the last step of these objects, whose masks were not theirs: later steps do not attend to it.

        Raises ValueError for an id that is not followed.
        """
        unknown = set(ids) - set(self.ids)
        if unknown:
            raise ValueError(f"ids: expected some of {self.ids}, got {sorted(unknown)}")
        for group in self._groups:
            rejected = [index for index, object_id in enumerate(group.ids) if object_id in ids]
            if rejected:
                group.memory.reject(rejected)

    def remove(self, ids: Collection[int]) -> None:
        """Stops following these objects. Raises ValueError for an id that is not followed."""
        unknown = set(ids) - set(self.ids)
        if unknown:
            raise ValueError(f"ids: expected some of {self.ids}, got {sorted(unknown)}")
        for group in self._groups:
            kept = [index for index, object_id in enumerate(group.ids) if object_id not in ids]
            if 0 < len(kept) < len(group.ids):
                group.memory.keep(kept)
            group.ids = [group.ids[index] for index in kept]
        self._groups = [group for group in self._groups if group.ids]

    def absorb(self, other: StreamingTracker) -> None:
        """Takes over another tracker's objects with their memories and leaves it empty.

        Raises ValueError for an id that both follow, or for a tracker with another SAM 2.
        """
        shared = set(self.ids) & set(other.ids)
        if shared:
            raise ValueError(f"ids: expected none of {self.ids}, got {sorted(shared)}")
        if other._sam2 is not self._sam2:
            raise ValueError("absorb: expected a tracker with the same Sam2, got one with another")
        self._groups += other._groups
        other._groups = []
