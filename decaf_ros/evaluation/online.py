"""A clip as a robot sees it: the query comes on the way, and its targets are followed to the end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.metrics import hidden, id_switches, region_similarity
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Notice, Output, Query, QueryEvent, QueryState

# Frames that a target is to have its id before it is hidden.
_FOLLOWED_BEFORE = 5


@dataclass(frozen=True)
class OnlineScore:
    """tracked: the query was answered with targets. frames: those after it was asked. hidden: a target is hidden for a
    time while it is followed. j: mean region similarity of these frames, all published masks together; a frame without
    an answer has none. switches: changes of a target's id. drifts: of the object, meant or not, that has an id."""

    clip: str
    text: str
    kind: str
    tracked: bool
    frames: int
    hidden: bool
    j: float
    switches: int
    drifts: int


def to_ask(clip: EvaluationClip, expressions: Iterable[Referral]) -> Referral | None:
    """The first timeless one whose target is hidden for a time; else the first timeless one, if there is any."""
    timeless = [one for one in expressions if one.timeless]
    return max(timeless, key=lambda one: _hidden(clip, one).any(), default=None)


def _hidden(clip: EvaluationClip, expression: Referral) -> np.ndarray:
    """(F,) bool: where any of the targets is hidden."""
    areas = [clip.mask([target]).sum(axis=(1, 2)) for target in expression.targets]
    return np.any([hidden(one) for one in areas], axis=0)


def play(decaf: Decaf, clip: EvaluationClip, expression: Referral) -> OnlineScore:
    """Plays the clip through an OnlineSegmenter and asks in the middle, or earlier: shortly before a target is first
    hidden, if there are key frames enough by then.

    Raises RuntimeError where grounding or tracking fails.
    """
    is_hidden = _hidden(clip, expression)
    middle = (len(clip.frames) - 1) // 2
    # No earlier: the next grounding, which alone can give a target another id, is to come after it was hidden.
    soonest = min(middle, int(is_hidden.argmax()) - _FOLLOWED_BEFORE) if is_hidden.any() else middle
    asked = None
    outputs: list[Output] = []
    segmenter = OnlineSegmenter(decaf, outputs.append, want_heatmaps=lambda: False)
    for place, frame in enumerate(clip.frames):
        segmenter.observe(frame)
        has_window = segmenter.buffer.keyframe_count >= decaf.config.window.min_frames
        if asked is None and (place == middle or (place >= soonest and has_window)):
            asked = place
            segmenter.ask(Query("eval", expression.text))
    for output in outputs:
        if isinstance(output, Notice) and output.level == "error":
            raise RuntimeError(output.text)
    results = [one for one in outputs if isinstance(one, FrameResult) and one.frame.index > asked]
    truth = clip.mask(expression.targets)
    overlaps = [region_similarity(result.labels > 0, truth[result.frame.index]) for result in results]
    everything = range(len(clip.objects))
    states = {output.state for output in outputs if isinstance(output, QueryEvent)}
    return OnlineScore(
        clip.name,
        expression.text,
        expression.kind,
        QueryState.TRACKING in states,
        len(results),
        any(is_hidden[result.frame.index] for result in results if result.query),
        float(np.mean(overlaps)),
        id_switches((_visible(clip, result, expression.targets), _published(result)) for result in results),
        id_switches((_published(result), _visible(clip, result, everything)) for result in results),
    )


def _visible(clip: EvaluationClip, result: FrameResult, objects: Iterable[int]) -> dict[int, np.ndarray]:
    masks = clip.masks_at(result.frame.index)
    return {one: masks[one] for one in objects}


def _published(result: FrameResult) -> dict[int, np.ndarray]:
    return {target.id: target.mask for target in result.targets}
