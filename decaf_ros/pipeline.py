"""START HERE: the whole method in the paper's order, on one screen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from decaf_ros.config import DecafConfig
from decaf_ros.grounding import grounder
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.grounding.grounder import Grounder
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.presence import absence_reason, measure_presence
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.points import attention_points, keypoints
from decaf_ros.segmentation.sam2 import Sam2, load_sam2
from decaf_ros.segmentation.scoring import score_tracklets, select_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import Progress, StageClock, no_progress
from decaf_ros.types import Frame, Presence, Segmentation, Tracklet, Window

Made = TypeVar("Made")
_log = logging.getLogger(__name__)

STAGES = (*grounder.STAGES, "points", "tracklets", "scoring", "dense")


class Decaf:
    """Training-free video reasoning segmentation: a multimodal LLM finds the target, SAM 2 cuts it out."""

    def __init__(self, mllm: Mllm, sam2: Sam2, config: DecafConfig) -> None:
        self.grounder = Grounder(mllm, config.engine)
        self.sam2 = sam2
        self.config = config

    @classmethod
    def from_config(cls, config: DecafConfig) -> Decaf:
        """Loads both models. Raises FileNotFoundError for a missing checkpoint, with advice."""
        return cls(load_mllm(config.mllm), load_sam2(config.sam2, config.segmentation.fill_holes_px), config)

    def segment(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
    ) -> Segmentation:
        """Finds what the query means in the window's key frames.

        dense: frames to mask besides, in order of time, the key frames among them (the evaluation protocol).
        progress: called with (stage, fraction) between stages; it may raise to abort, and nothing has changed then.

        Nothing selected is an honest answer: no tracklet passed, the presence score is under its threshold, or the
        model says that nothing is there (`answers.absence` says which).
        Raises ValueError for an empty query or a configuration that the models do not fit.
        """
        config = self.config
        clock = StageClock(STAGES, progress)

        # Sec. 3.2, 3.3: attention rollout, object against background, video and frames.
        grounding = self.grounder.ground(window, query, config, clock)
        attention = grounding.maps.fused

        # Sec. 3.4: tokens with high attention become points (Eq. 5), ...
        clock.start("points")
        points = attention_points(attention, config.segmentation)
        peaks = keypoints(attention, config.segmentation, window.size_hw)

        # ... points become masks, masks become tracklets over the key frames, overlapping ones are suppressed, ...
        clock.start("tracklets")
        proposals = self._with_room(
            lambda: propose_tracklets(self.sam2, window, points, config.segmentation, clock.tick)
        )

        # ... and a tracklet that does not agree with the attention is dropped (Eq. 6-8).
        clock.start("scoring")
        tracklets = score_tracklets(proposals, attention, config.segmentation)
        presence = measure_presence(grounding.maps, tracklets)
        selected = select_targets(tracklets, presence, grounding.category, config)

        # The evaluation protocol: masks of the attention alone, and every frame masked.
        coarse, labels = None, None
        if dense is not None:
            clock.start("dense")
            coarse = coarse_masks(attention, window.size_hw)
            labels = self._with_room(lambda: dense_labels(self.sam2, window, selected, dense))
        clock.pause()
        return Segmentation(
            window,
            query,
            grounding,
            points,
            peaks,
            tuple(tracklets),
            tuple(selected),
            presence,
            coarse,
            labels,
            clock.stage_ms,
        )

    def _with_room(self, work: Callable[[], Made]) -> Made:
        """What SAM 2 makes; where memory runs out, once more without what the grounding has kept for later."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            _log.warning("out of memory: prefixes and features are dropped, and it is tried again (%s)", str(error))
        # Here, where the error no longer keeps what the failed work has made.
        self.release()
        return work()

    def release(self) -> None:
        """Drops what the grounding holds on the device for later, for whoever has found no room there."""
        self.grounder.engine.release()


def select_targets(
    tracklets: Sequence[Tracklet], presence: Presence, category: str, config: DecafConfig
) -> list[Tracklet]:
    """The tracklets (best first) that are the answer; none where there is an `absence_reason`."""
    if absence_reason(presence, category, config.presence.threshold):
        return []
    return select_tracklets(tracklets, config.segmentation)
