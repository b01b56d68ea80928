"""Targets and steps of the tracker, made by hand."""

from __future__ import annotations

import numpy as np
from scripted import frame

from decaf_ros.config import DecafConfig
from decaf_ros.online.targets import Targets
from decaf_ros.online.tracks import Candidate
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.types import FrameResult, Query, Tracklet, TrackletScores

QUERY = Query("q1", "the thing")
NOW = frame(0)
SIZE_HW = NOW.size_hw


def make_mask(left: int, width: int = 8) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[4:12, left : left + width] = True
    return mask


def make_candidate(key: int, left: int, combined: float = 0.9, width: int = 8) -> Candidate:
    scores = TrackletScores(combined, combined, combined, combined)
    return Candidate(key, Tracklet(make_mask(left, width)[None], 0, (0.5, 0.5), scores, 1.0, 3.0), (NOW,))


def make_candidate_on(targets: Targets, key: int, left: int, width: int = 8) -> Candidate:
    """A candidate of a later grounding on the last-seen frame of the first target."""
    candidate = make_candidate(key, left, width=width)
    candidate.frames = (targets.living[0].seen_frame,)
    candidate.seen_frame, candidate.masks = candidate.frames[0], {candidate.frames[0]: candidate.seen_mask}
    return candidate


def seen_step(left: int) -> TrackStep:
    return TrackStep(make_mask(left), 3.0)


HIDDEN = TrackStep(np.zeros(SIZE_HW, bool), -3.0)


def follow(targets: Targets, number: int, steps: dict[int, TrackStep], config: DecafConfig) -> FrameResult:
    """Updates the targets with the tracker's results on one more frame and publishes it."""
    now = frame(number)
    targets.update(now, steps, config)
    return targets.publish(now, [QUERY])


def states_of(result: FrameResult) -> list[tuple[int, str]]:
    return [(target.id, target.state.name) for target in result.targets]
