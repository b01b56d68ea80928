"""Plays a clip as a live stream: the query arrives during the clip, and its targets are tracked to the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.metrics import id_switches, occluded_frames, region_similarity
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Notice, Output, Query, QueryEvent, QueryState

# Frames between the query and the first occlusion of a target.
_FRAMES_BEFORE_OCCLUSION = 5


@dataclass(frozen=True)
class OnlineScore:
    """Scores of one query on one clip.

    Attributes:
        clip: name of the clip.
        text: the expression.
        kind: its type.
        tracked: whether the query was answered with targets.
        frames: number of frames after the query.
        hidden: whether a target is occluded while it is tracked.
        j: mean region similarity over these frames, of the union of the published masks (empty before an answer).
        switches: id switches of the targets.
        drifts: how often a published id moves to another object, target or not.
    """

    clip: str
    text: str
    kind: str
    tracked: bool
    frames: int
    hidden: bool
    j: float
    switches: int
    drifts: int


def choose_online_expression(clip: EvaluationClip, expressions: Iterable[Referral]) -> Referral | None:
    """The first timeless expression with an occluded target, else the first timeless one with targets, else None."""
    timeless = [expression for expression in expressions if expression.timeless and expression.targets]
    return max(timeless, key=lambda expression: bool(_occluded(clip, expression).any()), default=None)


def _occluded(clip: EvaluationClip, expression: Referral) -> np.ndarray:
    """(F,) bool: frames on which any target is occluded."""
    areas = clip.areas(expression.targets or ())
    return np.asarray(np.any([occluded_frames(target_areas) for target_areas in areas], axis=0))


def play(decaf: Decaf, clip: EvaluationClip, expression: Referral) -> OnlineScore:
    """Plays the clip through an OnlineSegmenter and scores its outputs.

    The query comes in the middle of the clip, or shortly before the first occlusion of a target if that is earlier and
    there are enough key frames.
    Raises RuntimeError if grounding or tracking fails.
    """
    assert expression.targets, "from `choose_online_expression`"
    occluded = _occluded(clip, expression)
    middle = (len(clip.frames) - 1) // 2
    # Not earlier: the next grounding, which alone can assign a new id, has to come after the occlusion.
    earliest = min(middle, int(occluded.argmax()) - _FRAMES_BEFORE_OCCLUSION) if occluded.any() else middle
    query_index: int | None = None
    outputs: list[Output] = []
    segmenter = OnlineSegmenter(decaf, outputs.append, want_heatmaps=lambda: False)
    for index, frame in enumerate(clip.frames):
        segmenter.observe(frame)
        has_window = segmenter.buffer.keyframe_count >= decaf.config.window.min_frames
        if query_index is None and (index == middle or (index >= earliest and has_window)):
            query_index = index
            segmenter.ask(Query("eval", expression.text))
    assert query_index is not None, "asked in the middle at the latest"
    for output in outputs:
        if isinstance(output, Notice) and output.level == "error":
            raise RuntimeError(output.text)
    results = [output for output in outputs if isinstance(output, FrameResult) and output.frame.index > query_index]
    truth = clip.mask(expression.targets)
    overlaps = [region_similarity(result.labels > 0, truth[result.frame.index]) for result in results]
    all_objects = range(clip.count)
    states = {output.state for output in outputs if isinstance(output, QueryEvent)}
    return OnlineScore(
        clip.name,
        expression.text,
        expression.kind,
        QueryState.TRACKING in states,
        len(results),
        any(occluded[result.frame.index] for result in results if result.query),
        float(np.mean(overlaps)),
        id_switches((_object_masks(clip, result, expression.targets), _published(result)) for result in results),
        id_switches((_published(result), _object_masks(clip, result, all_objects)) for result in results),
    )


def _object_masks(clip: EvaluationClip, result: FrameResult, objects: Iterable[int]) -> dict[int, np.ndarray]:
    masks = clip.masks_at(result.frame.index)
    return {index: masks[index] for index in objects}


def _published(result: FrameResult) -> dict[int, np.ndarray]:
    return {target.id: target.mask for target in result.targets}
