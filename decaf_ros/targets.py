"""The targets that are being followed: ids, labels, states, and how a new grounding's tracklets continue them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from decaf_ros.config import DecafConfig, TrackingConfig
from decaf_ros.matching import assign, mask_iou
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, FrameResult, Query, Target, TargetState, Tracklet, TrackletScores

_LABELS = range(1, 256)
# In `LivingTarget.together`: the two have been seen apart, and are two objects.
_APART = -1


def is_seen(step: TrackStep, config: TrackingConfig) -> bool:
    """Whether SAM 2 sees the object on that frame."""
    return step.object_score > config.object_score and bool(step.mask.any())


@dataclass(eq=False)
class Candidate:
    """A tracklet of one grounding on its way to now.

    key: its id in the tracker. frames: the window's. seen_frame, seen_mask ((H, W) bool): the last frame on which it
    was seen. masks: where it was seen, on the key frames and those that a comparison with the living targets needs.
    """

    key: int
    tracklet: Tracklet
    frames: tuple[Frame, ...]
    seen_frame: Frame = field(init=False)
    seen_mask: np.ndarray = field(init=False)
    masks: dict[Frame, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.seen_frame, self.seen_mask = self.source, self.tracklet.masks[self.tracklet.source]
        self.masks = {frame: mask for frame, mask in zip(self.frames, self.tracklet.masks) if mask.any()}

    @property
    def source(self) -> Frame:
        return self.frames[self.tracklet.source]


@dataclass(eq=False)
class LivingTarget:
    """One object under one id.

    key: its id in the tracker, which changes with every grounding that renews its memory.
    mask: (H, W) bool on `seen_frame`, the last frame on which it was seen. key_mask: the same on `key_frame`, the last
    key frame on which it was seen. seen_count: followed frames on which it was seen, not counting the catch-up.
    unseen_since_ns: stamp of the last such frame, or of the one before the first. misses: groundings in a row that did
    not find it again. together: by the id of an older target, on how many frames in a row both had one mask, by
    `segmentation.suppression_iou`, or _APART.
    """

    id: int
    label: int
    key: int
    query_id: str
    category: str
    scores: TrackletScores
    source_stamp_ns: int
    seen_frame: Frame
    mask: np.ndarray
    unseen_since_ns: int
    state: TargetState = TargetState.TENTATIVE
    seen_count: int = 0
    misses: int = 0
    key_frame: Frame | None = None
    key_mask: np.ndarray | None = None
    together: dict[int, int] = field(default_factory=dict)

    def update(self, frame: Frame, step: TrackStep, config: TrackingConfig, is_keyframe: bool = False) -> None:
        """Takes in the tracker's result on the next frame. A tentative target stays so until it is confirmed."""
        if is_seen(step, config):
            self.mask, self.seen_frame, self.unseen_since_ns = step.mask, frame, frame.stamp_ns
            if is_keyframe:
                self.key_mask, self.key_frame = step.mask, frame
            self.seen_count += 1
            if self.seen_count >= config.confirm_frames:
                self.state = TargetState.TRACKED
        elif frame.stamp_ns - self.unseen_since_ns > config.lost_after_s * 1e9:
            self.state = TargetState.LOST
        elif self.state is TargetState.TRACKED:
            self.state = TargetState.OCCLUDED

    def renew(self, candidate: Candidate) -> None:
        """Goes on with a new grounding's memory and scores under the old id, label and category."""
        self.key, self.scores, self.source_stamp_ns = _origin(candidate)
        self.misses = 0

    def on(self, frame: Frame) -> Target:
        """As published for `frame`, the last one that was followed: all zero where it is not seen, or lost."""
        is_there = self.seen_frame is frame and self.state is not TargetState.LOST
        mask = self.mask if is_there else np.zeros(frame.size_hw, bool)
        return Target(
            self.id, self.label, self.query_id, self.category, self.state, mask, self.scores, self.source_stamp_ns
        )


def _origin(candidate: Candidate) -> tuple[int, TrackletScores, int]:
    return candidate.key, candidate.tracklet.scores, candidate.source.stamp_ns


class Targets:
    """All targets of the current query. A lost one stays until its loss was published, and holds its label till then.

    ids: where new targets get their ids; by default they count up for as long as this object lives, over all queries.
    """

    def __init__(self, ids: Iterator[int] | None = None) -> None:
        self._targets: list[LivingTarget] = []
        self._ids = itertools.count(1) if ids is None else ids

    @property
    def living(self) -> list[LivingTarget]:
        return [target for target in self._targets if target.state is not TargetState.LOST]

    def update(
        self, frame: Frame, steps: Mapping[int, TrackStep], config: DecafConfig, is_keyframe: bool = False
    ) -> None:
        """Takes in the tracker's results on the next frame, by key."""
        for target in self.living:
            target.update(frame, steps[target.key], config.tracking, is_keyframe)
        self._lose_doubles(frame, config)

    def _lose_doubles(self, frame: Frame, config: DecafConfig) -> None:
        """Tracklets of one object that begin on different key frames may differ there, where one of them shows a part,
        by more than suppression allows, and come together later: the younger one is lost then. Not so two objects that
        were seen apart: where their masks come together the tracker errs, and which of them errs is not known."""
        seen = [target for target in self.living if target.seen_frame is frame]
        for older, younger in itertools.combinations(seen, 2):
            count = younger.together.get(older.id, 0)
            if count == _APART:
                continue
            overlap = mask_iou(older.mask, younger.mask)
            if overlap < config.regrounding.match_iou:
                count = _APART
            else:
                count = count + 1 if overlap > config.segmentation.suppression_iou else 0
            younger.together[older.id] = count
            if count >= config.tracking.confirm_frames:
                younger.state = TargetState.LOST

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

        A candidate that matches a living target continues it. The others become new targets while there is room, but
        for those that have come to be on an object that a living target or a better candidate is on already.
        """
        living = self.living
        overlaps = _overlaps(living, candidates)
        pairs = assign(overlaps, config.regrounding.match_iou)
        for row, column in pairs:
            living[row].renew(candidates[column])
        matched, continued = {row for row, _ in pairs}, {column for _, column in pairs}
        for row, target in enumerate(living):
            if row not in matched:
                target.misses += 1
                if target.misses >= config.regrounding.max_misses:
                    target.state = TargetState.LOST
        most = config.segmentation.suppression_iou
        taken_in = [candidates[column] for column in continued]
        unknown = []
        for column, candidate in enumerate(candidates):
            if column in continued or (overlaps[:, column] > most).any():
                continue
            if not any(_overlap_now(candidate, other) > most for other in taken_in):
                unknown.append(candidate)
                taken_in.append(candidate)
        room = config.tracking.max_targets - len(self.living)
        taken = {target.label for target in self._targets}
        free_labels = [label for label in _LABELS if label not in taken][:room]
        for label, candidate in zip(free_labels, unknown):
            key, scores, source_stamp_ns = _origin(candidate)
            self._targets.append(
                LivingTarget(
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
            )

    def publish(self, frame: Frame, query: Query | None) -> FrameResult:
        """The result for `frame`, on which `update` was just called; a lost target appears in one result only."""
        labels = np.zeros(frame.size_hw, np.uint8)
        targets = tuple(target.on(frame) for target in self._targets)
        for target in sorted(targets, key=lambda target: (target.scores.combined, -target.id)):
            labels[target.mask] = target.label
        self._targets = self.living
        return FrameResult(frame, labels, query, targets)


def _overlap_now(one: Candidate, other: Candidate) -> float:
    """Mask IoU on the last frame on which both were seen; 0 where that is not the same one."""
    return mask_iou(one.seen_mask, other.seen_mask) if one.seen_frame is other.seen_frame else 0.0


def _overlaps(living: Sequence[LivingTarget], candidates: Sequence[Candidate]) -> np.ndarray:
    """(targets, candidates) mask IoU, each target on the last frame on which it was seen: the newest one, or for a
    hidden target the one before it vanished. The catch-up goes forward from a candidate's source, so a target that was
    seen last before that is compared on the last key frame on which it was seen. 0 where the candidate was not seen."""
    overlaps = np.zeros((len(living), len(candidates)))
    for row, target in enumerate(living):
        for column, candidate in enumerate(candidates):
            frame, mask = target.seen_frame, target.mask
            if frame.index < candidate.source.index:
                frame, mask = target.key_frame, target.key_mask
            if frame in candidate.masks:
                overlaps[row, column] = mask_iou(mask, candidate.masks[frame])
    return overlaps
