"""Asks one question early in a long clip, then only watches: scores of every frame by its time since the answer."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.long_pictures import watched_strip
from decaf_ros.evaluation.metrics import MATCH_IOU, IdSwitches, region_similarity
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.overlap import assign, mask_iou
from decaf_ros.types import FrameResult, Notice, Output, Query, QueryEvent, QueryState, Target, TargetState

# A target counts as visible from this many pixels on.
VISIBLE_PX = 100
# A target that comes back after this time without visible pixels shall be found again within FOUND_AGAIN_S.
UNSEEN_S, FOUND_AGAIN_S = 1.0, 2.0
# When to ask an expression without a time of its own.
_ASK_FROM_S, _ASK_UNTIL_S = 4.0, 10.0
_TILES = 16


class Return(NamedTuple):
    """A target that came back into view.

    Attributes:
        seconds: when, since the answer.
        delay_s: time until it was found again; None if it was not, while it stayed visible.
    """

    seconds: float
    delay_s: float | None


@dataclass(frozen=True, eq=False)
class Watched:
    """Scores of one question over the N frames after its answer. Arrays are (N,).

    Attributes:
        clip: name of the clip.
        text: the expression.
        kind: its type.
        asked_s: clip time of the question.
        answered: whether the answer had targets.
        seconds: float64, time since the answer (since the question if it was never answered).
        j: float64, region similarity of the union of the published masks; NaN if no target is visible.
        wrong: bool, a published mask overlaps another object more than any target.
        false_tracked: bool, a target with state TRACKED has a wrong mask (`score_frame`).
        switches: int64, id switches on this frame.
        groundings: int64, groundings on this frame.
        cpu_s: float64, processor time of this process for this frame.
        first_mask_s: time from the question to the first mask: of the stream, and what this process computed from the
            question to that frame; NaN if there was no mask.
        returns: targets that came back into view.
        picture: (H, W, 3) uint8 RGB, some of the frames with the outlines of truth and result.
    """

    clip: str
    text: str
    kind: str
    asked_s: float
    answered: bool
    seconds: np.ndarray
    j: np.ndarray
    wrong: np.ndarray
    false_tracked: np.ndarray
    switches: np.ndarray
    groundings: np.ndarray
    cpu_s: np.ndarray
    first_mask_s: float
    returns: tuple[Return, ...]
    picture: np.ndarray

    @property
    def mean_j(self) -> float:
        """Mean J over the frames with visible targets; 1 if there are none."""
        return float(np.nanmean(self.j)) if not np.isnan(self.j).all() else 1.0


def watchable(clip: EvaluationClip) -> list[Referral]:
    """The expressions with targets that can be asked early in a live stream, each with its `asked_s`.

    One without a time of its own must be timeless; it is asked at the first frame between 4 and 10 s on which all its
    targets are visible.
    """
    areas, seconds = clip.areas(range(clip.count)), _clip_seconds(clip)
    early = (seconds >= _ASK_FROM_S) & (seconds <= _ASK_UNTIL_S)
    found = [expression for expression in clip.expressions if expression.targets and expression.asked_s is not None]
    for expression in clip.expressions:
        if expression.targets and expression.timeless and expression.asked_s is None:
            visible = early & (areas[list(expression.targets)] >= VISIBLE_PX).all(axis=0)
            if visible.any():
                found.append(dataclasses.replace(expression, asked_s=float(seconds[visible.argmax()])))
    return found


def watch(decaf: Decaf, clip: EvaluationClip, expression: Referral) -> Watched:
    """Plays the clip through an OnlineSegmenter, asks at `expression.asked_s` and scores every later frame.

    Raises RuntimeError if grounding or tracking fails, ValueError if there is no frame after the question.
    """
    seconds = _clip_seconds(clip)
    assert expression.asked_s is not None and expression.targets, "from `watchable`"
    # A tolerance for rounded stamps.
    asked_at = int(np.searchsorted(seconds, expression.asked_s - 1e-6))
    if asked_at >= len(seconds) - 1:
        raise ValueError(f"asked at {expression.asked_s:g} s: expected a clip longer than {seconds[-1]:g} s")
    counting = CountingDecaf(decaf)
    outputs: list[Output] = []
    segmenter = OnlineSegmenter(cast(Decaf, counting), outputs.append, want_heatmaps=lambda: False)
    answer: QueryState | None = None
    answered_at = asked_at
    computed_s, first_mask_s = 0.0, math.nan
    switches, scores, counts, results = IdSwitches(), [], [], []
    for index, frame in enumerate(clip.frames):
        groundings, cpu_s, began_s = counting.groundings, time.process_time(), time.perf_counter()
        segmenter.observe(frame)
        if index == asked_at:
            segmenter.ask(Query("eval", expression.text))
        cpu_s = time.process_time() - cpu_s
        (result,) = (output for output in outputs if isinstance(output, FrameResult))
        if index >= asked_at and math.isnan(first_mask_s):
            computed_s += time.perf_counter() - began_s
            if result.labels.any():
                first_mask_s = seconds[index] - seconds[asked_at] + computed_s
        states = [output.state for output in outputs if isinstance(output, QueryEvent) and output.state.is_answer]
        _raise_errors(outputs)
        outputs.clear()
        if answer is None and states:
            answer, answered_at = states[-1], index
        elif answer is not None:
            objects = clip.masks_at(index)
            scores.append(score_frame(result, objects, expression.targets))
            wanted = {target: objects[target] for target in expression.targets}
            switched = switches.add(wanted, {target.id: target.mask for target in result.targets})
            counts.append((switched, counting.groundings - groundings, cpu_s))
            results.append(result)
    if answer is None:
        raise RuntimeError("the query was not answered before the clip ended")
    since = seconds[answered_at + 1 :] - seconds[answered_at]
    if not len(since):
        raise ValueError("expected frames after the answer, got none")
    areas = clip.areas(expression.targets)[:, answered_at + 1 :]
    found = np.array([score.found for score in scores])
    switched_at, grounded_at, cpu = zip(*counts)
    return Watched(
        clip.name,
        expression.text,
        expression.kind,
        expression.asked_s,
        answer == QueryState.TRACKING,
        since,
        np.array([np.nan if score.j is None else score.j for score in scores]),
        np.array([score.wrong for score in scores]),
        np.array([score.false_tracked for score in scores]),
        np.array(switched_at, np.int64),
        np.array(grounded_at, np.int64),
        np.array(cpu, np.float64),
        float(first_mask_s),
        tuple(back for row in range(len(areas)) for back in find_returns(since, areas[row], found[:, row])),
        watched_strip(_spread(results), clip.mask(expression.targets), since),
    )


class FrameScore(NamedTuple):
    """Scores of one frame; `j`, `wrong` and `false_tracked` as in Watched.

    found: for each target, whether a published mask matches it (IoU of MATCH_IOU or more).
    """

    j: float | None
    wrong: bool
    false_tracked: bool
    found: tuple[bool, ...]


def score_frame(result: FrameResult, objects: Mapping[int, np.ndarray], targets: Sequence[int]) -> FrameScore:
    """Scores the published targets of one frame.

    A TRACKED target is wrong if its IoU with the true target assigned to it is below MATCH_IOU while that is visible,
    or if it has a mask while none is left to be its own. A true target with 1 to VISIBLE_PX - 1 visible pixels that
    the mask touches excuses it.

    Args:
        objects: (H, W) bool, the visible pixels of all objects.
        targets: the true targets, keys of `objects`.
    """
    areas = {target: int(objects[target].sum()) for target in targets}
    visible = [target for target in targets if areas[target] >= VISIBLE_PX]
    truth = np.any([objects[target] for target in targets], axis=0)
    ious = np.array([[mask_iou(one.mask, objects[target]) for target in targets] for one in result.targets])
    found = [bool(column.any()) for column in (ious >= MATCH_IOU).T] if len(ious) else [False] * len(targets)
    return FrameScore(
        region_similarity(result.labels > 0, truth) if visible else None,
        any(_is_on_another(one.mask, objects, targets) for one in result.targets),
        _is_falsely_tracked(result.targets, objects, areas, visible),
        tuple(found),
    )


def _is_on_another(mask: np.ndarray, objects: Mapping[int, np.ndarray], targets: Sequence[int]) -> bool:
    overlaps = {index: int(np.count_nonzero(mask & other)) for index, other in objects.items()}
    on_targets = max(overlaps[target] for target in targets)
    return max((overlap for index, overlap in overlaps.items() if index not in targets), default=0) > on_targets


def _is_falsely_tracked(
    published: Sequence[Target], objects: Mapping[int, np.ndarray], areas: Mapping[int, int], visible: Sequence[int]
) -> bool:
    tracked = [one for one in published if one.state == TargetState.TRACKED]
    ious = np.array([[mask_iou(one.mask, objects[target]) for target in visible] for one in tracked])
    matched = assign(ious, MATCH_IOU) if ious.size else []
    right = {row for row, _ in matched}
    barely = [objects[target] for target, area in areas.items() if 0 < area < VISIBLE_PX]
    for row, one in enumerate(tracked):
        if row in right or any((one.mask & mask).any() for mask in barely):
            continue
        # An empty mask is right if every visible target has another one.
        if one.area_px or len(matched) < len(visible):
            return True
    return False


def find_returns(seconds: np.ndarray, area: np.ndarray, found: np.ndarray) -> list[Return]:
    """When a target came back into view, and how long it took to find it again.

    It is back on the first frame with VISIBLE_PX after UNSEEN_S without a visible pixel. One that is not found and
    stays visible for less than FOUND_AGAIN_S does not count.

    Args:
        seconds: (N,) float64, rising.
        area: (N,) visible pixels.
        found: (N,) bool, whether a published mask matches it.
    """
    returns: list[Return] = []
    unseen_since: float | None = None
    is_away = False
    for index, now in enumerate(seconds.tolist()):
        if area[index] == 0:
            unseen_since = now if unseen_since is None else unseen_since
            continue
        is_away = is_away or (unseen_since is not None and now - unseen_since >= UNSEEN_S - 1e-6)
        unseen_since = None
        if not is_away or area[index] < VISIBLE_PX:
            continue
        is_away = False
        gone = np.flatnonzero(area[index:] < VISIBLE_PX)
        end = index + int(gone[0]) if len(gone) else len(area)
        hits = np.flatnonzero(found[index:end])
        if len(hits):
            returns.append(Return(now, float(seconds[index + hits[0]] - now)))
        elif seconds[end - 1] - now >= FOUND_AGAIN_S - 1e-6:
            returns.append(Return(now, None))
    return returns


class CountingDecaf:
    """A Decaf that counts its groundings, for an OnlineSegmenter."""

    def __init__(self, decaf: Decaf) -> None:
        self._decaf = decaf
        self.groundings = 0

    def steps(self, *args: Any, **kwargs: Any) -> Any:
        self.groundings += 1
        return self._decaf.steps(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decaf, name)


def _clip_seconds(clip: EvaluationClip) -> np.ndarray:
    stamps = np.array([frame.stamp_ns for frame in clip.frames], np.int64)
    seconds: np.ndarray = (stamps - stamps[0]) / 1e9
    return seconds


def _raise_errors(outputs: Sequence[Output]) -> None:
    for output in outputs:
        if isinstance(output, Notice) and output.level == "error":
            raise RuntimeError(output.text)


def _spread(results: Sequence[FrameResult]) -> list[tuple[int, FrameResult]]:
    """Evenly spaced results with their place."""
    places = np.unique(np.linspace(0, len(results) - 1, _TILES).round().astype(int))
    return [(int(place), results[place]) for place in places]
