"""The targets of the current query: ids, labels, states, and their re-identification by a new grounding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.online.duplicates import DuplicateDetector, are_apart, group_by_object, were_apart
from decaf_ros.online.tracks import Candidate, LivingTarget, origin
from decaf_ros.segmentation.overlap import assign, mask_iou
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, FrameResult, Query, TargetState

_LABELS = range(1, 256)


class Targets:
    """All targets of the current query. A lost target keeps its label until its loss is published.

    ids: supply of ids for new targets. By default counts from 1 over all queries.
    """

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        self._targets: list[LivingTarget] = []
        self._duplicates = DuplicateDetector()
        self._ids = itertools.count(1) if ids is None else ids

    @property
    def living(self) -> list[LivingTarget]:
        return [target for target in self._targets if target.state is not TargetState.LOST]

    def update(
        self, frame: Frame, steps: Mapping[int, TrackStep], config: DecafConfig, is_keyframe: bool = False
    ) -> None:
        """Applies the tracker's results (by key) on the next frame.

        If two targets turn out to be one object, the younger one is lost. This needs `regrounding.enabled`, so that a
        later grounding can correct an error.
        """
        for target in self.living:
            target.update(frame, steps[target.key], config.tracking, is_keyframe)
        if config.regrounding.enabled:
            visible = [target for target in self.living if target.seen_frame is frame]
            for target in self._duplicates.update(visible, config.segmentation.suppression_iou):
                target.state = TargetState.LOST

    def lose_all(self) -> None:
        for target in self._targets:
            target.state = TargetState.LOST

    def clear(self) -> None:
        """Forgets all targets without publishing their loss: their query has ended."""
        self._targets = []

    def merge(
        self, candidates: Sequence[Candidate], query: Query, category: str, newest: Frame, config: DecafConfig
    ) -> None:
        """Merges the candidates of one grounding, best first, caught up to `newest`.

        A candidate that matches a living target renews it; a target without a match counts a miss. The other candidates
        become new targets, at most `tracking.max_targets`. Duplicates of a better candidate only help to match it.
        """
        groups = [[candidate] for candidate in candidates]
        if config.regrounding.enabled:
            groups = group_by_object(candidates, config.segmentation.suppression_iou)
        candidates = [group[0] for group in groups]
        living = self.living
        pairs = assign(_overlaps(living, groups), config.regrounding.match_iou)
        for row, column in pairs:
            living[row].renew(candidates[column])
            self._duplicates.restart(living[row].id)
        matched_rows, matched_columns = {row for row, _ in pairs}, {column for _, column in pairs}
        for row, target in enumerate(living):
            if row not in matched_rows:
                target.misses += 1
                if target.misses >= config.regrounding.max_misses:
                    target.state = TargetState.LOST
        sources = {living[row].id: candidates[column] for row, column in pairs}
        unmatched = [candidate for column, candidate in enumerate(candidates) if column not in matched_columns]
        free_places = config.tracking.max_targets - len(self.living)
        used_labels = {target.label for target in self._targets}
        free_labels = [label for label in _LABELS if label not in used_labels][:free_places]
        for label, candidate in zip(free_labels, unmatched):
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
            # Compare now: for a hidden target, later frames may give no evidence.
            for other in self.living:
                if (masks := _comparable_masks(other, candidate)) and are_apart(*masks):
                    self._duplicates.mark_distinct(other.id, target.id)
            sources[target.id] = candidate
            self._targets.append(target)
        for (first_id, first), (second_id, second) in itertools.combinations(sources.items(), 2):
            if were_apart(first, second):
                self._duplicates.mark_distinct(first_id, second_id)

    def publish(self, frame: Frame, query: Query | None) -> FrameResult:
        """The result for `frame`, after `update` on it. A lost target appears in one result only."""
        labels = np.zeros(frame.size_hw, np.uint8)
        targets = tuple(target.on(frame) for target in self._targets)
        for target in sorted(targets, key=lambda target: (target.scores.combined, -target.id)):
            labels[target.mask] = target.label
        self._targets = self.living
        self._duplicates.retain({target.id for target in self._targets})
        return FrameResult(frame, labels, query, targets)


def _overlaps(living: Sequence[LivingTarget], groups: Sequence[Sequence[Candidate]]) -> np.ndarray:
    """(targets, groups) float64 mask IoU, the maximum over a group; 0 without a frame for the comparison."""
    overlaps = np.zeros((len(living), len(groups)))
    for row, target in enumerate(living):
        for column, group in enumerate(groups):
            mask_pairs = (_comparable_masks(target, candidate) for candidate in group)
            overlaps[row, column] = max((mask_iou(*masks) for masks in mask_pairs if masks), default=0.0)
    return overlaps


def _comparable_masks(target: LivingTarget, candidate: Candidate) -> tuple[np.ndarray, np.ndarray] | None:
    """Masks of both on the target's last-seen frame; None if the candidate was not seen on it.

    The catch-up runs forward from the candidate's source. A target last seen before that is compared on its last-seen
    key frame.
    """
    frame, mask = target.seen_frame, target.mask
    if frame.index >= candidate.source.index:
        return (mask, candidate.masks[frame]) if frame in candidate.masks else None
    key_frame, key_mask = target.key_frame, target.key_mask
    if key_frame is None or key_mask is None or key_frame not in candidate.masks:
        return None
    return key_mask, candidate.masks[key_frame]
