"""START HERE: the whole method in the paper's order, on one screen."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np
import torch

from decaf_ros.config import DecafConfig
from decaf_ros.grounding import grounder
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.grounding.grounder import Grounder, OtherQueries, check_branches
from decaf_ros.grounding.loading import load_mllm
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.presence import absence_reason, measure_presence
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.points import attention_boxes, attention_points, keypoints
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.segmentation.scoring import score_tracklets, select_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import Progress, Result, StageClock, Steps, finish, no_progress
from decaf_ros.types import Frame, Grounding, Presence, Segmentation, Tracklet, Window
from decaf_ros.verification import verify_tracklets

_log = logging.getLogger(__name__)
# Masks (T, H, W) bool from a fused map (T, h, w) and the size of the images.
CoarseMasks = Callable[[np.ndarray, tuple[int, int]], np.ndarray]

STAGES = (*grounder.STAGES, "points", "tracklets", "scoring", "verification", "dense")


class Decaf:
    """Training-free video reasoning segmentation: a multimodal LLM locates the target, SAM 2 segments it.

    Args:
        mllm: the multimodal LLM.
        sam2: the segmenter.
        config: the configuration.
        grounder: makes the attention maps; None: the paper's method. Baselines have others.
        coarse: makes the masks of the map alone.
    """

    def __init__(
        self,
        mllm: Mllm,
        sam2: Sam2,
        config: DecafConfig,
        grounder: Grounder | None = None,
        coarse: CoarseMasks = coarse_masks,
    ) -> None:
        self.grounder = grounder or Grounder(mllm, config.engine)
        self.sam2 = sam2
        self.config = config
        self._coarse = coarse

    @classmethod
    def from_config(cls, config: DecafConfig) -> Decaf:
        """Loads both models. Raises FileNotFoundError for a missing checkpoint, saying how to get it; ValueError for
        `grounding.branches` that the model does not have."""
        mllm = load_mllm(config.mllm)
        check_branches(mllm, config.grounding)
        return cls(mllm, load_sam2(config.sam2, config.segmentation.fill_holes_px), config)

    def segment(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
    ) -> Segmentation:
        """As `steps`, at once."""
        return finish(self.steps(window, query, dense, progress))

    def steps(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
        others: OtherQueries = tuple,
    ) -> Steps[Segmentation]:
        """Finds the query's targets in the window's key frames.

        An empty selection means "not found": no tracklet passed, the presence score is below its threshold, or the
        model answered that there is no such object. `answers.absence` gives the reason.

        Args:
            window: the key frames.
            query: the referring expression or question.
            dense: all frames to mask, in time order, including the key frames (evaluation protocol).
            progress: called with (stage, fraction in [0, 1]) at the start of every stage.
            others: see `Grounder.ground`.

        Raises:
            ValueError: an empty query, or a configuration that does not fit the models.
        """
        config = self.config
        clock = StageClock(STAGES, progress)

        # Sec. 3.2, 3.3: attention rollout, object minus background, fusion of the video and frame branches.
        grounding = yield from self.grounder.ground(window, query, config, clock, others)
        attention = grounding.maps.fused

        # Sec. 3.4: tokens with high attention become points (Eq. 5).
        clock.start("points")
        if config.segmentation.prompt == "box":
            points = attention_boxes(attention, window.size_hw)
        else:
            points = attention_points(attention, config.segmentation, grounding.means_several)
        peaks = keypoints(attention, config.segmentation, window.size_hw)

        # SAM 2 encodes every key frame once.
        with self.sam2.holding(window.frames):
            # Points become masks, masks become tracklets over the key frames, overlapping ones are suppressed.
            proposals = yield from clock.run(
                "tracklets",
                self._retry_without_caches(
                    lambda: propose_tracklets(self.sam2, window, points, config.segmentation, attention)
                ),
            )

            # Tracklets that disagree with the attention are dropped (Eq. 6-8).
            clock.start("scoring")
            tracklets = score_tracklets(proposals, attention, config.segmentation)
            presence = measure_presence(grounding.maps, tracklets, config.presence, grounding.asked)
            # Beyond the paper, if configured: the model is shown close candidates, each one marked.
            if config.segmentation.verify and not _absence(presence, grounding, config):
                steps = verify_tracklets(
                    self.grounder, window, query, tracklets, config.segmentation, grounding.means_several
                )
                tracklets = yield from clock.run("verification", steps)
            selected = select_targets(tracklets, presence, grounding, config)

            # Evaluation protocol: masks of the attention alone, and masks on every frame.
            coarse, labels = None, None
            if dense is not None:
                coarse = self._coarse(attention, window.size_hw)
                labels = yield from clock.run(
                    "dense", self._retry_without_caches(lambda: dense_labels(self.sam2, window, selected, dense))
                )
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

    def prepare(self, window: Window, others: Sequence[Window] = ()) -> Generator[tuple[Frame, ...], None, None]:
        """Makes what a question about this window will need of it: see `Grounder.prepare`, which says what it yields;
        then SAM 2's features, which stay only if the caller holds the frames (`Sam2.hold`)."""
        yield from self.grounder.prepare(window, self.config, others)
        for frame in window.frames:
            if not self.sam2.has(frame):
                self.sam2.embed(frame)
                yield ()

    def _retry_without_caches(self, work: Callable[[], Steps[Result]]) -> Steps[Result]:
        """Runs SAM 2; if out of memory, once more after dropping the grounding's caches."""
        try:
            return (yield from work())
        except torch.OutOfMemoryError as error:
            _log.warning("out of memory: dropped cached prefixes and features, trying again (%s)", str(error))
        # Outside the except block: there the exception keeps the failed call's tensors alive.
        self.release()
        return (yield from work())

    def hold(self, owner: object, frames: Iterable[Frame]) -> None:
        """Names the key frames that the next groundings of one owner, such as a stream, may see. What the models made
        of them stays, as far as it fits; what they made of frames that no owner has any more goes.

        owner: see `Sam2.hold`.
        """
        self.sam2.hold(owner, frames)
        self.grounder.engine.keep_only(self.sam2.held)

    def release(self) -> None:
        """Drops the grounding's caches on the device, to free memory."""
        self.grounder.engine.release()


def select_targets(
    tracklets: Sequence[Tracklet], presence: Presence, grounding: Grounding, config: DecafConfig
) -> list[Tracklet]:
    """The tracklets that answer the query, best first; none if there is an `absence_reason`."""
    if _absence(presence, grounding, config):
        return []
    return select_tracklets(tracklets, config.segmentation, grounding.means_several)


def _absence(presence: Presence, grounding: Grounding, config: DecafConfig) -> str:
    return absence_reason(presence, grounding.category, config.presence.threshold)


def even_if_absent(found: Segmentation, config: DecafConfig) -> Segmentation:
    """The result of a search for targets that were there, whatever the newest frames say of them: they are told by
    their looks."""
    selected = select_tracklets(found.tracklets, config.segmentation, found.grounding.means_several)
    return dataclasses.replace(found, selected=tuple(selected))
