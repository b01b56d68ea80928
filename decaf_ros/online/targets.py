"""The targets that are being followed: ids, labels, states, and how a new grounding's tracklets continue them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.online.doubles import Together, are_apart, by_object, seen_apart
from decaf_ros.online.tracks import Candidate, LivingTarget, origin
from decaf_ros.segmentation.overlap import assign, mask_iou
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, FrameResult, Query, TargetState

_LABELS = range(1, 256)


class Targets:
    """All targets of the current query. A lost one stays until its loss was published, and holds its label till then.

    ids: where new targets get their ids; by default they count up for as long as this object lives, over all queries.
    """

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        self._targets: list[LivingTarget] = []
        self._together = Together()
        self._ids = itertools.count(1) if ids is None else ids

    @property
    def living(self) -> list[LivingTarget]:
        return [target for target in self._targets if target.state is not TargetState.LOST]

    def update(
        self, frame: Frame, steps: Mapping[int, TrackStep], config: DecafConfig, is_keyframe: bool = False
    ) -> None:
        """Takes in the tracker's results on the next frame, by key. Of two targets that turn out to be one object the
        younger one is lost, but not where no other grounding could bring it back."""
        for target in self.living:
            target.update(frame, steps[target.key], config.tracking, is_keyframe)
        if config.regrounding.enabled:
            seen = [target for target in self.living if target.seen_frame is frame]
            for target in self._together.doubles(seen, config.segmentation.suppression_iou):
                target.state = TargetState.LOST

    def lose_all(self) -> None:
        for target in self._targets:
            target.state = TargetState.LOST

    def clear(self) -> None:
        """Forgets all targets without another word: their query has ended."""
        self._targets = []

    def take_in(
        self, candidates: Sequence[Candidate], query: Query, category: str, newest: Frame, config: DecafConfig
    ) -> None:
        """One grounding's result, caught up to `newest`, best first; no candidate: a miss for every target.

        A candidate that matches a living target continues it. The others become new targets while there is room. Those
        that have come to be on the object of a better one only help it to be matched.
        """
        groups = [[candidate] for candidate in candidates]
        if config.regrounding.enabled:
            groups = by_object(candidates, config.segmentation.suppression_iou)
        candidates = [group[0] for group in groups]
        living = self.living
        pairs = assign(_overlaps(living, groups), config.regrounding.match_iou)
        for row, column in pairs:
            living[row].renew(candidates[column])
            self._together.begin_anew(living[row].id)
        matched, continued = {row for row, _ in pairs}, {column for _, column in pairs}
        for row, target in enumerate(living):
            if row not in matched:
                target.misses += 1
                if target.misses >= config.regrounding.max_misses:
                    target.state = TargetState.LOST
        sources = {living[row].id: candidates[column] for row, column in pairs}
        unknown = [candidate for column, candidate in enumerate(candidates) if column not in continued]
        room = config.tracking.max_targets - len(self.living)
        taken = {target.label for target in self._targets}
        free_labels = [label for label in _LABELS if label not in taken][:room]
        for label, candidate in zip(free_labels, unknown):
            key, scores, source_stamp_ns = origin(candidate)
            target = LivingTarget(
                id=next(self._ids),
                label=label,
                key=key,
                query_id=query.id,
                category=category,
                scores=scores,
                source_stamp_ns=source_stamp_ns,
                seen_frame=candidate.seen_frame,
                mask=candidate.seen_mask,
                unseen_since_ns=newest.stamp_ns,
            )
            # Of one that is hidden now later frames might not tell.
            for other in self.living:
                if (compared := _compared(other, candidate)) and are_apart(*compared):
                    self._together.set_apart(other.id, target.id)
            sources[target.id] = candidate
            self._targets.append(target)
        for (one, its), (other, others) in itertools.combinations(sources.items(), 2):
            if seen_apart(its, others):
                self._together.set_apart(one, other)

    def publish(self, frame: Frame, query: Query | None) -> FrameResult:
        """The result for `frame`, on which `update` was just called; a lost target appears in one result only."""
        labels = np.zeros(frame.size_hw, np.uint8)
        targets = tuple(target.on(frame) for target in self._targets)
        for target in sorted(targets, key=lambda target: (target.scores.combined, -target.id)):
            labels[target.mask] = target.label
        self._targets = self.living
        self._together.keep({target.id for target in self._targets})
        return FrameResult(frame, labels, query, targets)


def _overlaps(living: Sequence[LivingTarget], groups: Sequence[Sequence[Candidate]]) -> np.ndarray:
    """(targets, groups) mask IoU, the largest of a group; 0 where there is no frame to compare them on."""
    overlaps = np.zeros((len(living), len(groups)))
    for row, target in enumerate(living):
        for column, group in enumerate(groups):
            compared = (_compared(target, candidate) for candidate in group)
            overlaps[row, column] = max((mask_iou(*pair) for pair in compared if pair), default=0.0)
    return overlaps


def _compared(target: LivingTarget, candidate: Candidate) -> tuple[np.ndarray, np.ndarray] | None:
    """Their masks on the last frame on which the target was seen: the newest one, or for a hidden target the one before
    it vanished. The catch-up goes forward from a candidate's source, so a target that was seen last before that is
    compared on the last key frame on which it was seen. None where the candidate was not seen."""
    frame, mask = target.seen_frame, target.mask
    if frame.index < candidate.source.index:
        frame, mask = target.key_frame, target.key_mask
    return (mask, candidate.masks[frame]) if frame in candidate.masks else None
