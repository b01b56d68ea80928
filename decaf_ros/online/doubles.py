"""Which targets are one object. Suppression goes on where tracklets of one object come together after the window.

Of one object, a tracklet of a part and one of the whole may differ on their key frames by more than suppression allows,
and be the same from some frame on. Two objects whose masks come together are another thing: there the tracker errs, and
which of the two is wrong is not known. What was seen apart on a key frame of its grounding, or while both were
followed, is two objects.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from decaf_ros.online.tracks import Candidate, LivingTarget
from decaf_ros.segmentation.overlap import mask_iou

# Frames in a row, of those on which both are seen, on which two targets have the same mask before they are one.
SAME_FRAMES = 3
# Least share of the smaller mask that lies in the other one where one may be a part of the other.
_INSIDE = 0.5
_APART = -1


def are_apart(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two (H, W) bool masks, neither of them empty, are of two objects: no part and its whole."""
    smaller = min(np.count_nonzero(first), np.count_nonzero(second))
    return np.count_nonzero(first & second) < _INSIDE * smaller


def seen_apart(one: Candidate, other: Candidate) -> bool:
    """Of one grounding: on any key frame, or on the frame on which both were seen last, if it is one."""
    masks = zip(one.tracklet.masks, other.tracklet.masks)
    if any(first.any() and second.any() and are_apart(first, second) for first, second in masks):
        return True
    return one.seen_frame is other.seen_frame and are_apart(one.seen_mask, other.seen_mask)


def by_object(candidates: Sequence[Candidate], most: float) -> list[list[Candidate]]:
    """Candidates of one grounding, best first, in groups of those that by now are on the object of the group's best.

    most: mask IoU over which two masks are one object.
    """
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        group = next((group for group in groups if _is_double(candidate, group[0], most)), None)
        if group is None:
            groups.append([candidate])
        else:
            group.append(candidate)
    return groups


def _is_double(one: Candidate, other: Candidate, most: float) -> bool:
    together = one.seen_frame is other.seen_frame and mask_iou(one.seen_mask, other.seen_mask) > most
    return together and not seen_apart(one, other)


class Together:
    """What was seen of pairs of targets, by their ids: that they are two objects, or how long they have been one."""

    def __init__(self) -> None:
        self._frames: dict[tuple[int, int], int] = {}

    def set_apart(self, one: int, other: int) -> None:
        """They are two objects, whatever their masks do."""
        self._frames[min(one, other), max(one, other)] = _APART

    def begin_anew(self, one: int) -> None:
        """This target goes on with another memory: how long its mask was that of another one no longer counts."""
        self._frames = {pair: count for pair, count in self._frames.items() if one not in pair or count == _APART}

    def keep(self, living: Collection[int]) -> None:
        """Forgets all pairs with other ids."""
        self._frames = {pair: count for pair, count in self._frames.items() if set(pair) <= set(living)}

    def doubles(self, seen: Iterable[LivingTarget], most: float) -> list[LivingTarget]:
        """Takes in one frame. seen: the targets that are seen on it. most: mask IoU over which two masks are one
        object.

        Returns those that have been an older one for SAME_FRAMES frames.
        """
        found: list[LivingTarget] = []
        for older, younger in itertools.combinations(sorted(seen, key=lambda target: target.id), 2):
            pair = older.id, younger.id
            count = self._frames.get(pair, 0)
            if count == _APART or older in found or younger in found:
                continue
            if are_apart(older.mask, younger.mask):
                count = _APART
            else:
                count = count + 1 if mask_iou(older.mask, younger.mask) > most else 0
            self._frames[pair] = count
            if count >= SAME_FRAMES:
                found.append(younger)
        return found
