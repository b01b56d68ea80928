"""One object over time: a grounding's tracklet during the catch-up, and a target with its id."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from decaf_ros.config import RegroundingConfig, TrackingConfig
from decaf_ros.online.appearance import Appearance
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, Query, Target, TargetState, Tracklet, TrackletScores

# So many masks in a row that are unlike fewer known ones, those at the source: these were inexact or showed a part.
_SOURCE_OUTVOTED = 5


def is_seen(step: TrackStep, config: TrackingConfig) -> bool:
    """Whether SAM 2 sees the object: object-presence logit above `tracking.object_score` and a non-empty mask."""
    return step.object_score > config.object_score and bool(step.mask.any())


@dataclass(eq=False)
class Candidate:
    """A tracklet of one grounding that is propagated to the newest frame.

    Attributes:
        key: id in the tracker.
        frames: key frames of the window.
        seen_frame: last frame on which it was seen.
        seen_mask: (H, W) bool on `seen_frame`.
        sure_frame: last frame on which it was surely seen.
        masks: (H, W) bool by frame, not empty: key frames, and frames for the comparison with living targets.
        unsure_count: masks since `sure_frame`.
        look: its descriptor on `seen_frame`, once it was started in the tracker.
        appearance: what it looks like, from its source on.
    """

    key: int
    tracklet: Tracklet
    frames: tuple[Frame, ...]
    seen_frame: Frame = field(init=False)
    seen_mask: np.ndarray = field(init=False)
    sure_frame: Frame = field(init=False)
    masks: dict[Frame, np.ndarray] = field(init=False)
    unsure_count: int = field(init=False, default=0)
    look: np.ndarray | None = field(init=False, default=None)
    appearance: Appearance = field(init=False)

    def __post_init__(self) -> None:
        # Full-size masks, made once: they are compared with those of other candidates and targets.
        self.tracklet = replace(self.tracklet, masks=tuple(self.tracklet.masks))
        self.seen_frame, self.seen_mask = self.source, self.tracklet.masks[self.tracklet.source]
        self.sure_frame = self.source
        self.masks = {frame: mask for frame, mask in zip(self.frames, self.tracklet.masks) if mask.any()}
        areas = [np.count_nonzero(mask) for mask in self.masks.values()]
        self.appearance = Appearance(float(np.median(areas)) if areas else 0.0)

    @property
    def source(self) -> Frame:
        return self.frames[self.tracklet.source]

    def see(self, frame: Frame, step: TrackStep, config: TrackingConfig) -> bool:
        """Takes in the tracker's result on the next frame. Returns whether it is surely seen."""
        self.seen_frame, self.seen_mask, self.look = frame, step.mask, step.look
        is_sure = self.appearance.accept(frame, step.mask, step.look, config, step.has_strays)
        if not is_sure:
            self.unsure_count += 1
            if self.unsure_count == _SOURCE_OUTVOTED > self.appearance.count:
                self.appearance = Appearance()
                is_sure = self.appearance.accept(frame, step.mask, step.look, config, step.has_strays)
        if is_sure:
            self.sure_frame, self.unsure_count = frame, 0
        return is_sure


@dataclass(eq=False)
class LivingTarget:
    """One object with one id.

    Attributes:
        key: id in the tracker; changes when a grounding renews the memory.
        queries: the queries that mean it, each with the category that it has there.
        source_stamp_ns: stamp of the key frame whose point started the current memory.
        seen_frame: last frame on which it was seen.
        mask: (H, W) bool on `seen_frame`.
        unseen_since_ns: stamp of the last followed frame on which it was seen; at first the newest stamp at creation.
        sure_frame: last frame on which it was surely seen (`Appearance.accept`).
        sure_mask: (H, W) bool on `sure_frame`.
        unsure_since_ns: as `unseen_since_ns`, for being surely seen.
        seen_count: followed frames on which it was seen, without the catch-up.
        claim: (H, W) bool, SAM 2's mask on the last followed frame, also if it was rejected.
        misses: consecutive groundings of its queries that did not find it.
        key_frame: last key frame on which it was surely seen.
        key_mask: (H, W) bool on `key_frame`.
        is_given_up: not searched for once it is lost: a duplicate of an older target, or lost in a stream reset.
        is_proven: surely seen since it was found again; until then it is TENTATIVE.
        appearance: what it looks like, from confirmed frames.
        logits: (h, w) float32 of `mask` on the mask grid, if it was seen on the last followed frame.
    """

    id: int
    label: int
    key: int
    queries: dict[Query, str]
    scores: TrackletScores
    source_stamp_ns: int
    seen_frame: Frame
    mask: np.ndarray
    unseen_since_ns: int
    sure_frame: Frame
    sure_mask: np.ndarray
    unsure_since_ns: int
    claim: np.ndarray
    state: TargetState = TargetState.TENTATIVE
    seen_count: int = 0
    misses: int = 0
    key_frame: Frame | None = None
    key_mask: np.ndarray | None = None
    is_given_up: bool = False
    is_proven: bool = True
    appearance: Appearance = field(default_factory=Appearance)
    logits: torch.Tensor | None = None

    @classmethod
    def start(
        cls, target_id: int, label: int, query: Query, category: str, candidate: Candidate, newest: Frame
    ) -> LivingTarget:
        """A new target from a candidate that was propagated to `newest`."""
        key, scores, source_stamp_ns = origin(candidate)
        target = cls(
            id=target_id,
            label=label,
            key=key,
            queries={query: category},
            scores=scores,
            source_stamp_ns=source_stamp_ns,
            seen_frame=candidate.seen_frame,
            mask=candidate.seen_mask,
            unseen_since_ns=newest.stamp_ns,
            sure_frame=candidate.seen_frame,
            sure_mask=candidate.seen_mask,
            unsure_since_ns=newest.stamp_ns,
            claim=candidate.seen_mask,
            appearance=candidate.appearance,
        )
        target._set_key_frame(candidate)
        return target

    def update(self, frame: Frame, step: TrackStep, config: TrackingConfig, is_keyframe: bool = False) -> bool:
        """Applies the tracker's result on the next frame. A hidden target becomes OCCLUDED only once confirmed.

        With a mask that cannot be this target, it counts as hidden. Returns whether it is surely seen.
        """
        is_sure, self.logits = False, None
        if is_seen(step, config) and not self.appearance.contradicts(frame, step.mask, step.look, config):
            is_sure = self._see(frame, step, config, is_keyframe)
            self.seen_count += 1
            if self.is_proven and self.seen_count >= config.confirm_frames:
                self.state = TargetState.TRACKED
        elif frame.stamp_ns - self.unseen_since_ns > config.lost_after_s * 1e9:
            self.state = TargetState.LOST
        elif self.state is TargetState.TRACKED:
            self.state = TargetState.OCCLUDED
        return is_sure

    def _see(self, frame: Frame, step: TrackStep, config: TrackingConfig, is_keyframe: bool = False) -> bool:
        self.mask, self.seen_frame, self.unseen_since_ns = step.mask, frame, frame.stamp_ns
        self.logits = step.logits
        is_sure = self.appearance.accept(frame, step.mask, step.look, config, step.has_strays)
        if is_sure:
            self.is_proven = True
            self.sure_mask, self.sure_frame, self.unsure_since_ns = step.mask, frame, frame.stamp_ns
            if is_keyframe:
                self.key_mask, self.key_frame = step.mask, frame
        return is_sure

    def miss(self, config: RegroundingConfig) -> None:
        """A grounding of one of its queries did not find it, and it is hidden."""
        self.misses += 1
        if self.misses >= config.max_misses:
            self.state = TargetState.LOST

    def renew(self, candidate: Candidate) -> None:
        """Continues with a new grounding's memory and scores; keeps id, label and category."""
        self.key, self.scores, self.source_stamp_ns = origin(candidate)
        self.misses = 0

    def learn_anew(self, candidate: Candidate) -> None:
        """Continues with a new grounding's memory and looks: it was found where it is, its old looks are inexact."""
        self.renew(candidate)
        self.appearance = candidate.appearance
        self.sure_frame, self.sure_mask = candidate.sure_frame, candidate.seen_mask
        self.unsure_since_ns = candidate.sure_frame.stamp_ns

    def reappears(self, frame: Frame, step: TrackStep, config: TrackingConfig) -> bool:
        """Whether the tracker sees a missing target again, on a mask that clearly looks like it.

        It then lives again and has to be confirmed anew.
        """
        if not is_seen(step, config) or not self.appearance.looks_alike(step.look, config):
            return False
        if self.appearance.contradicts(frame, step.mask, step.look, config):
            return False
        self._return(seen_count=1)
        self._see(frame, step, config)
        return True

    def find(self, key: int, frame: Frame, step: TrackStep, config: TrackingConfig) -> None:
        """It was found on `frame` by what it looks like, and has to be confirmed anew unless it was visible there."""
        self.key, self.source_stamp_ns, self.misses = key, frame.stamp_ns, 0
        if self.seen_frame is not frame:
            self._return(seen_count=1)
        self.appearance.find(step.mask)
        self._see(frame, step, config, is_keyframe=True)

    def revive(self, candidate: Candidate, newest: Frame) -> None:
        """A grounding found a lost target again: it keeps id and category, and has to be confirmed anew."""
        self.renew(candidate)
        self._return(seen_count=0)
        self.appearance.find(candidate.seen_mask)
        self.seen_frame, self.mask, self.unseen_since_ns = candidate.seen_frame, candidate.seen_mask, newest.stamp_ns
        self.sure_frame, self.sure_mask, self.unsure_since_ns = self.seen_frame, self.mask, newest.stamp_ns
        self._set_key_frame(candidate)

    def _return(self, seen_count: int) -> None:
        """It is found again, and has to be confirmed and surely seen."""
        self.state, self.seen_count, self.misses, self.is_proven = TargetState.TENTATIVE, seen_count, 0, False

    def _set_key_frame(self, candidate: Candidate) -> None:
        seen = [frame for frame in candidate.frames if frame in candidate.masks]
        if seen:
            self.key_frame, self.key_mask = seen[-1], candidate.masks[seen[-1]]

    @property
    def is_sure(self) -> bool:
        """Whether it is surely seen on the last frame on which it is seen."""
        return self.sure_frame is self.seen_frame

    @property
    def is_missing(self) -> bool:
        """Whether it is lost and has to be searched for."""
        return self.state is TargetState.LOST and not self.is_given_up

    def unsure_s(self, frame: Frame) -> float:
        """Seconds since it was last surely seen, at `frame`."""
        return max(frame.stamp_ns - self.unsure_since_ns, 0) / 1e9

    def is_held(self, default_policy: str) -> bool:
        """Whether a query that means it has another policy than off. default_policy: of queries without their own."""
        return any((query.policy or default_policy) != "off" for query in self.queries)

    def unseen_s(self, frame: Frame) -> float:
        """Seconds since it was last seen, at `frame`."""
        return max(frame.stamp_ns - self.unseen_since_ns, 0) / 1e9

    def on(self, frame: Frame) -> Target:
        """As published for `frame`, the last followed frame. The mask is empty if the target is hidden or lost."""
        is_visible = self.seen_frame is frame and self.state is not TargetState.LOST
        mask = self.mask if is_visible else np.zeros(frame.size_hw, bool)
        query_ids, category = tuple(query.id for query in self.queries), next(iter(self.queries.values()))
        return Target(self.id, self.label, query_ids, category, self.state, mask, self.scores, self.source_stamp_ns)


def origin(candidate: Candidate) -> tuple[int, TrackletScores, int]:
    """Tracker key, scores and source stamp in ns, which a target takes over from its candidate."""
    return candidate.key, candidate.tracklet.scores, candidate.source.stamp_ns
