"""One object over time: a grounding's tracklet on its way to the newest frame, and a target under its id."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from decaf_ros.config import TrackingConfig
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import Frame, Target, TargetState, Tracklet, TrackletScores


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
    not find it again.
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
        self.key, self.scores, self.source_stamp_ns = origin(candidate)
        self.misses = 0

    def on(self, frame: Frame) -> Target:
        """As published for `frame`, the last one that was followed: all zero where it is not seen, or lost."""
        is_there = self.seen_frame is frame and self.state is not TargetState.LOST
        mask = self.mask if is_there else np.zeros(frame.size_hw, bool)
        return Target(
            self.id, self.label, self.query_id, self.category, self.state, mask, self.scores, self.source_stamp_ns
        )


def origin(candidate: Candidate) -> tuple[int, TrackletScores, int]:
    return candidate.key, candidate.tracklet.scores, candidate.source.stamp_ns
