"""Detects targets that are one object: duplicate suppression for tracklets that come together after the window.

Tracklets of a part and of the whole object may differ too much on the key frames to be suppressed and coincide from
some later frame on. They are merged. If masks of two different objects coincide, the tracker has drifted, and one of
them gives way (`Targets.update`). Two tracklets are different objects if they were apart on a key frame of their
grounding, or on a frame on which both were followed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

from decaf_ros.online.tracks import Candidate, LivingTarget
from decaf_ros.segmentation.overlap import are_apart, mask_iou

# Consecutive frames (both visible) with matching masks before two targets merge.
MERGE_FRAMES = 3
_DISTINCT = -1


def were_apart(first: Candidate, second: Candidate) -> bool:
    """Whether two candidates of one grounding were apart on a key frame, or on their shared last-seen frame."""
    mask_pairs = zip(first.tracklet.masks, second.tracklet.masks)
    if any(one.any() and other.any() and are_apart(one, other) for one, other in mask_pairs):
        return True
    return first.seen_frame is second.seen_frame and are_apart(first.seen_mask, second.seen_mask)


def group_by_object(candidates: Sequence[Candidate], iou_threshold: float) -> list[list[Candidate]]:
    """Groups candidates of one grounding, best first, that are on the object of the group's best candidate.

    In each group one that is seen last comes first, if possible surely: the best candidate's source may be inexact, so
    that the tracker loses it. iou_threshold: mask IoU above which two masks are one object.
    """
    groups: list[list[Candidate]] = []
    for candidate in candidates:
        group = next((group for group in groups if _is_duplicate(candidate, group[0], iou_threshold)), None)
        if group is None:
            groups.append([candidate])
        else:
            group.append(candidate)
    return [sorted(group, key=_seen_last) for group in groups]


def _seen_last(candidate: Candidate) -> tuple[int, bool]:
    return -candidate.seen_frame.stamp_ns, candidate.sure_frame is not candidate.seen_frame


def _is_duplicate(first: Candidate, second: Candidate, iou_threshold: float) -> bool:
    """Whether both are one object: on most key frames that show both, or else where they are now. One that has been on
    the object for most of the window and is elsewhere now has drifted."""
    both = zip(first.tracklet.masks, second.tracklet.masks)
    pairs = [(one, other) for one, other in both if one.any() and other.any()]
    if any(are_apart(one, other) for one, other in pairs):
        return False
    if 2 * sum(mask_iou(one, other) > iou_threshold for one, other in pairs) > len(pairs):
        return True
    return first.seen_frame is second.seen_frame and mask_iou(first.seen_mask, second.seen_mask) > iou_threshold


class DuplicateDetector:
    """Per pair of target ids: known to be different objects, or for how many frames their masks have matched."""

    def __init__(self) -> None:
        # By (older id, younger id): number of frames, or _DISTINCT.
        self._frames: dict[tuple[int, int], int] = {}

    def mark_distinct(self, first_id: int, second_id: int) -> None:
        """Records that two targets are different objects, even if their masks match later."""
        self._frames[min(first_id, second_id), max(first_id, second_id)] = _DISTINCT

    def are_distinct(self, first_id: int, second_id: int) -> bool:
        """Whether two targets are known to be different objects."""
        return self._frames.get((min(first_id, second_id), max(first_id, second_id))) == _DISTINCT

    def restart(self, target_id: int) -> None:
        """Resets the frame counts of a target whose tracker memory was renewed."""
        self._frames = {
            pair: count for pair, count in self._frames.items() if target_id not in pair or count == _DISTINCT
        }

    def retain(self, living_ids: Collection[int]) -> None:
        """Forgets all pairs with an id that is not in `living_ids`."""
        self._frames = {pair: count for pair, count in self._frames.items() if set(pair) <= set(living_ids)}

    def update(self, visible: Iterable[LivingTarget], iou_threshold: float) -> list[tuple[LivingTarget, LivingTarget]]:
        """Adds one frame. Returns the targets that are duplicates, after MERGE_FRAMES frames, each with the target that
        stays: of two, the older one, or the younger one if that alone is surely seen.

        visible: the targets seen on the frame. iou_threshold: mask IoU above which two masks are one object.
        """
        duplicates: dict[LivingTarget, LivingTarget] = {}
        for older, younger in itertools.combinations(sorted(visible, key=lambda target: target.id), 2):
            pair = older.id, younger.id
            count = self._frames.get(pair, 0)
            if count == _DISTINCT or older in duplicates or younger in duplicates:
                continue
            if are_apart(older.mask, younger.mask):
                count = _DISTINCT
            else:
                count = count + 1 if mask_iou(older.mask, younger.mask) > iou_threshold else 0
            self._frames[pair] = count
            if count >= MERGE_FRAMES:
                only_younger_is_sure = younger.is_sure and not older.is_sure
                duplicate, kept = (older, younger) if only_younger_is_sure else (younger, older)
                duplicates[duplicate] = kept
        return list(duplicates.items())
