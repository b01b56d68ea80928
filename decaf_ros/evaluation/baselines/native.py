"""Native grounding with SAM 2: the model itself is asked for points (Tab. 9, App. E).

The paper describes four protocols and not their prompts; these are ours (`native_points.py`), the same in all of them:

- all frames: every frame by itself, its points' masks are its answer, without propagation;
- first frame: points on the first frame of the clip, propagated over the whole clip;
- reference and key frames: the model names the target from the key frames of the clip as a video, and is then asked for
  what it named, on the first of them; propagated over the whole clip;
- 16 frames: points on each key frame (`window.size`), then DecAF's prompting, suppression, propagation and selection. A
  point has no attention: it counts as 1, and the consistency score, which compares with attention, is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.native_points import (
    MalformedAnswerError,
    describing_prompt,
    point_extent,
    point_prompt,
    read_points,
)
from decaf_ros.evaluation.baselines.registry import MethodSpec
from decaf_ros.grounding.engine import Engine
from decaf_ros.grounding.grounder import OtherQueries, video_view
from decaf_ros.grounding.views import View
from decaf_ros.pipeline import STAGES, select_targets
from decaf_ros.presence import measure_presence
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.resizing import masks_of_size
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import Progress, StageClock, Steps, finish, no_progress
from decaf_ros.types import (
    AnswerCount,
    AttentionMaps,
    Frame,
    Grounding,
    PointPrompts,
    Segmentation,
    Tracklet,
    TrackletScores,
    Window,
)

ALL_FRAMES, FIRST_FRAME, REFERENCE, KEY_FRAMES = "all-frames", "first-frame", "reference", "key-frames"
# Times `mllm.max_new_tokens`, which is enough for a category: by default room for about 25 points. A longer answer is
# cut off, and malformed.
LONGER = 4
_log = logging.getLogger(__name__)


class Native:
    """A method that asks the model for points. protocol: which frames it is asked about, see the module."""

    def __init__(self, models: Models, config: DecafConfig, protocol: str) -> None:
        point_extent(models.mllm, models.mllm.layout("frames", 1, (480, 640)))  # refuses other families
        self.mllm, self.sam2, self.config, self.protocol = models.mllm, models.sam2, config, protocol
        self.engine = Engine(models.mllm, config.engine)

    def segment(
        self, window: Window, query: str, dense: Sequence[Frame] | None = None, progress: Progress = no_progress
    ) -> Segmentation:
        """As `Decaf.segment`."""
        return finish(self.steps(window, query, dense, progress))

    def steps(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
        others: OtherQueries = tuple,
    ) -> Steps[Segmentation]:
        """As `Decaf.steps`. The maps are 1 at the tokens of the points and 0 elsewhere; there is no attention mask."""
        clock = StageClock(STAGES, progress)
        if not query.strip():
            raise ValueError("query: expected a text, got an empty one")
        asked = window.frames[:1]
        if self.protocol in (ALL_FRAMES, KEY_FRAMES):
            asked = tuple(dense) if self.protocol == ALL_FRAMES and dense is not None else window.frames
        category, wanted = "", query
        if self.protocol == REFERENCE:
            views, text = [video_view(self.mllm, window)], describing_prompt(query)
            limit = self.config.mllm.max_new_tokens
            (named,) = yield from clock.run("video_object", self.engine.answers(views, text, limit))
            category, wanted = named.text, named.text or query
        found, count = yield from clock.run("frames_object", self._points(asked, wanted))

        clock.start("points")
        points = _prompts(window, {frame.stamp_ns: xy for frame, xy in zip(asked, found)})
        maps = self._maps(window, points)
        grounding = Grounding(maps, category, malformed=count)
        config, labels = self._selection(), None
        clock.pause()
        if self.protocol == ALL_FRAMES:
            labels, tracklets = yield from clock.run("dense", self._each_by_itself(window, asked, found))
        else:
            with self.sam2.holding(window.frames):
                proposing = propose_tracklets(self.sam2, window, points, config.segmentation)
                proposals = yield from clock.run("tracklets", proposing)
            tracklets = score_tracklets(proposals, maps.fused, config.segmentation)
        presence = measure_presence(maps, tracklets, config.presence)
        selected = select_targets(tracklets, presence, grounding, config)
        if self.protocol != ALL_FRAMES and dense is not None:
            labels = yield from clock.run("dense", dense_labels(self.sam2, window, selected, dense))
        return Segmentation(
            *(window, query, grounding, points, points, tuple(tracklets), tuple(selected), presence),
            dense_labels=labels if dense is not None else None,
            stage_ms=clock.stage_ms,
        )

    def _points(self, frames: Sequence[Frame], query: str) -> Steps[tuple[list[np.ndarray], AnswerCount]]:
        """The points of each frame, and how many answers were malformed. A malformed one gives no point."""
        layout = self.mllm.layout("frames", 1, frames[0].size_hw)
        views, text = [View(layout, (frame,)) for frame in frames], point_prompt(query)
        self.engine.new_round(views, text)
        answers = yield from self.engine.answers(views, text, LONGER * self.config.mllm.max_new_tokens)
        extent, found, malformed = point_extent(self.mllm, layout), [], 0
        for frame, answer in zip(frames, answers):
            try:
                found.append(read_points(answer, extent))
            except MalformedAnswerError as error:
                _log.info("malformed answer about frame %d: %s", frame.index, error)
                found.append(np.zeros((0, 2), np.float32))
                malformed += 1
        return found, AnswerCount(malformed, len(frames))

    def _selection(self) -> DecafConfig:
        """The configuration, without the consistency score. All points of a single frame count."""
        changes: dict[str, object] = {"segmentation.consistency": False}
        if self.protocol != KEY_FRAMES:
            changes["segmentation.tracklet_threshold"] = 0.0
        return replace(self.config, changes)

    def _maps(self, window: Window, points: PointPrompts) -> AttentionMaps:
        grid = self.mllm.layout("frames", 1, window.size_hw).grid[1:]
        fused = np.zeros((len(window), *grid), np.float32)
        columns, rows = np.minimum(points.xy * grid[::-1], np.array(grid[::-1]) - 1).astype(int).T
        fused[points.frame, rows, columns] = 1
        return AttentionMaps(fused)

    def _each_by_itself(
        self, window: Window, frames: Sequence[Frame], found: Sequence[np.ndarray]
    ) -> Steps[tuple[np.ndarray, list[Tracklet]]]:
        """Labels (F, H, W) uint8, 1 where a point's mask is, and these masks as one candidate."""
        labels = np.zeros((len(frames), *window.size_hw), np.uint8)
        scores: dict[int, tuple[float, float]] = {}
        for place, (frame, xy) in enumerate(zip(frames, found)):
            if len(xy):
                masks = yield from self.sam2.point_steps(self.sam2.embed(frame), xy)
                labels[place] = masks_of_size(masks.logits, window.size_hw).any(dim=0).cpu().numpy()
                scores[frame.stamp_ns] = float(masks.iou.mean()), float(masks.object_score.mean())
            yield
        places = {frame.stamp_ns: place for place, frame in enumerate(frames)}
        masked = [labels[places[frame.stamp_ns]] > 0 for frame in window.frames]
        source = next((index for index, frame in enumerate(window.frames) if frame.stamp_ns in scores), None)
        if source is None:
            return labels, []
        stamp = window.frames[source].stamp_ns
        (x, y), (iou, object_score) = found[places[stamp]][0].tolist(), scores[stamp]
        combined = TrackletScores(1.0, iou, 1.0, (1 + iou) / 2)
        return labels, [Tracklet(masked, source, (x, y), combined, 1.0, object_score)]


def _prompts(window: Window, xy_by_stamp: dict[int, np.ndarray]) -> PointPrompts:
    """The points that are on key frames, each of value 1."""
    here = [xy_by_stamp.get(frame.stamp_ns, np.zeros((0, 2), np.float32)) for frame in window.frames]
    frame = np.repeat(np.arange(len(window)), [len(xy) for xy in here]).astype(np.int64)
    return PointPrompts(frame, np.concatenate(here), np.ones(len(frame), np.float32))


def make_all_frames(models: Models, config: DecafConfig, spec: MethodSpec) -> Native:
    """Points on every frame."""
    return Native(models, config, ALL_FRAMES)


def make_first_frame(models: Models, config: DecafConfig, spec: MethodSpec) -> Native:
    """Points on the first frame."""
    return Native(models, config, FIRST_FRAME)


def make_reference(models: Models, config: DecafConfig, spec: MethodSpec) -> Native:
    """Points on the first key frame, for what was named from all of them."""
    return Native(models, config, REFERENCE)


def make_key_frames(models: Models, config: DecafConfig, spec: MethodSpec) -> Native:
    """Points on every key frame."""
    return Native(models, config, KEY_FRAMES)
