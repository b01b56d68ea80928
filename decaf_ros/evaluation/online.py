"""A clip as a robot sees it: the query comes in the middle, and its targets are followed to the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.metrics import id_switches, region_similarity
from decaf_ros.online import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Notice, Output, Query, QueryEvent, QueryState

# What these mean does not depend on how much of the clip has been seen.
TIMELESS = ("explicit", "attribute", "size", "several")


@dataclass(frozen=True)
class OnlineScore:
    """tracked: the query was answered with targets. frames: those after it was asked. j: their mean region similarity,
    all published masks together; a frame without an answer has none. switches: changes of a target's id."""

    clip: str
    text: str
    kind: str
    tracked: bool
    frames: int
    j: float
    switches: int


def play(decaf: Decaf, clip: EvaluationClip, expression: Referral) -> OnlineScore:
    """Plays the clip through an OnlineSegmenter and asks after the middle frame.

    Raises RuntimeError where grounding or tracking fails.
    """
    outputs: list[Output] = []
    segmenter = OnlineSegmenter(decaf, outputs.append, want_heatmaps=lambda: False)
    middle = (len(clip.frames) - 1) // 2
    for place, frame in enumerate(clip.frames):
        segmenter.observe(frame)
        if place == middle:
            segmenter.ask(Query("eval", expression.text))
    for output in outputs:
        if isinstance(output, Notice) and output.level == "error":
            raise RuntimeError(output.text)
    results = [one for one in outputs if isinstance(one, FrameResult) and one.frame.index > middle]
    truth = clip.mask(expression.targets)
    overlaps = [region_similarity(result.labels > 0, truth[result.frame.index]) for result in results]
    states = {output.state for output in outputs if isinstance(output, QueryEvent)}
    return OnlineScore(
        clip.name,
        expression.text,
        expression.kind,
        QueryState.TRACKING in states,
        len(results),
        float(np.mean(overlaps)),
        id_switches(_followed(clip, expression, result) for result in results),
    )


def _followed(
    clip: EvaluationClip, expression: Referral, result: FrameResult
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The visible targets and the published masks of one frame, for `id_switches`."""
    labels = clip.labels[result.frame.index]
    objects = {target: labels == target + 1 for target in expression.targets}
    published = {target.id: target.mask for target in result.targets}
    return objects, published
