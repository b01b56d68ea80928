"""Where the masks, ids and answers of two results of one input differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from decaf_ros.comparison.results import Answer, StoredFrame, StoredResult
from decaf_ros.segmentation.overlap import assign

# From this IoU on two targets are taken for the same object on a frame.
SAME_IOU = 0.5


class DifferentInputError(ValueError):
    """The results are not of one input."""


class Pair(NamedTuple):
    """A target of each result that mean the same object; None if the other result has none."""

    a: int | None
    b: int | None

    def __str__(self) -> str:
        return " - ".join("none" if number is None else str(number) for number in self)


@dataclass(frozen=True)
class FrameDifference:
    """One frame.

    Attributes:
        stamp_ns: of the camera's image.
        seconds: since the first frame.
        iou: of the masks of each pair, in [0, 1]; pairs without a pixel in both results are left out.
        id_changes: how many targets moved to another id than on the frames before, in one of the results.
    """

    stamp_ns: int
    seconds: float
    iou: dict[Pair, float]
    id_changes: int

    @property
    def worst(self) -> float:
        """The lowest IoU; 1 if neither result has a pixel."""
        return min(self.iou.values(), default=1.0)


class AnswerPair(NamedTuple):
    """The answers to one question; None if a result has none."""

    a: Answer | None
    b: Answer | None

    @property
    def is_change(self) -> bool:
        """Whether the state or the category differs."""
        if self.a is None or self.b is None:
            return True
        return (self.a.state, self.a.category) != (self.b.state, self.b.category)

    @property
    def presence_change(self) -> float | None:
        """Absolute change of the score; None if one is not known."""
        known = self._scores
        return abs(known[0] - known[1]) if len(known) == 2 else None

    @property
    def is_score_lost(self) -> bool:
        """Whether only one of the results has a score."""
        return len(self._scores) == 1

    @property
    def _scores(self) -> list[float]:
        return [one.presence for one in self if one is not None and one.presence is not None]


@dataclass(frozen=True)
class Differences:
    """Two results of one input.

    Attributes:
        frames: those that both results have.
        only_a, only_b: number of frames that one result has alone.
        unpaired_a, unpaired_b: number of frames left out of a result, as its bag has only their masks or only their
            tracklets.
        pairs: the targets, matched over all frames.
        answers: the answers, matched by question.
    """

    frames: tuple[FrameDifference, ...]
    only_a: int
    only_b: int
    pairs: tuple[Pair, ...]
    answers: tuple[AnswerPair, ...]
    unpaired_a: int = 0
    unpaired_b: int = 0

    @property
    def missing(self) -> float:
        """Share of the frames of both results that only one has, in [0, 1]."""
        alone = self.only_a + self.only_b
        return alone / (alone + len(self.frames))

    @property
    def mean_iou(self) -> float:
        """Over all pairs and frames with a pixel in either result; 1 if there is none."""
        values = [value for frame in self.frames for value in frame.iou.values()]
        return float(np.mean(values)) if values else 1.0

    @property
    def id_changes(self) -> int:
        return sum(frame.id_changes for frame in self.frames)

    @property
    def answer_changes(self) -> int:
        return sum(pair.is_change for pair in self.answers)

    @property
    def presence_change(self) -> float:
        """The largest one among the answers with a score in both results."""
        return max((pair.presence_change or 0.0 for pair in self.answers), default=0.0)

    @property
    def lost_scores(self) -> int:
        """Number of answers with a presence score in one result alone."""
        return sum(pair.is_score_lost for pair in self.answers)

    def worst_frames(self, count: int) -> list[FrameDifference]:
        """Up to `count` frames that differ, the worst first, spread over time."""
        apart_s = max(0.5, self.frames[-1].seconds / (2 * count))
        chosen: list[FrameDifference] = []
        for frame in sorted(self.frames, key=lambda one: (one.worst, -one.id_changes, one.stamp_ns)):
            if len(chosen) == count or (frame.worst == 1.0 and not frame.id_changes):
                break
            if all(abs(frame.seconds - other.seconds) >= apart_s for other in chosen):
                chosen.append(frame)
        return chosen


def compare(a: StoredResult, b: StoredResult, some_frames: bool = False) -> Differences:
    """Compares frame by frame, by the stamps.

    The targets are matched one to one over the whole input, so that the sum of their overlaps is largest; ids need not
    be equal. Needs little memory, however long the results are.

    some_frames: compare the frames that both results have, for results of a live node. Frames of a bag with only one
    of masks and tracklets are left out.

    Raises DifferentInputError if pixels, sizes, stamps or questions show that the inputs differ, and as
    `StoredResult.frames`.
    """
    if a.digest and b.digest and a.digest != b.digest and not some_frames:
        raise DifferentInputError(
            f"different inputs: the images of {a.path} ({a.input}) and {b.path} ({b.input}) differ"
        )
    answers = _paired_answers(a, b)
    counts: dict[str, int] = {"a": 0, "b": 0}
    matched: list[_Matched] = []
    total: dict[tuple[int, int], float] = defaultdict(float)
    ids: tuple[set[int], set[int]] = set(), set()
    unpaired: tuple[list[int], list[int]] = [], []
    lists = unpaired if some_frames else (None, None)
    for first, second in _joined(a.frames(lists[0]), b.frames(lists[1])):
        if first is None or second is None:
            counts["a" if second is None else "b"] += 1
            if not some_frames:
                here, there = (a, b) if second is None else (b, a)
                stamp = (first or second).stamp_ns  # type: ignore[union-attr]
                raise DifferentInputError(
                    f"different inputs: {here.path} has a frame with stamp {stamp} ns and {there.path} has none; "
                    "--some-frames compares the others"
                )
            continue
        frame = _match(first, second, a, b)
        for key, value in frame.iou.items():
            total[key] += value
        ids[0].update(first.ids.values())
        ids[1].update(second.ids.values())
        matched.append(frame)
    if not matched:
        raise DifferentInputError(f"different inputs: {a.path} and {b.path} have no frame with one stamp")
    pairs = _pairs(total, *ids)
    start_ns = matched[0].stamp_ns
    switches_a, switches_b = _Switches(), _Switches()
    frames = []
    for frame in matched:
        same = _same(frame)
        changes = switches_a.add(same) + switches_b.add([(y, x) for x, y in same])
        frames.append(
            FrameDifference(frame.stamp_ns, (frame.stamp_ns - start_ns) / 1e9, _pair_ious(frame, pairs), changes)
        )
    lost = len(unpaired[0]), len(unpaired[1])
    return Differences(tuple(frames), counts["a"], counts["b"], tuple(pairs), answers, *lost)


class _Matched(NamedTuple):
    """IoU of targets that overlap on a frame, and the ids with any pixel."""

    stamp_ns: int
    iou: dict[tuple[int, int], float]
    a: frozenset[int]
    b: frozenset[int]


def _joined(
    ours: Iterator[StoredFrame], theirs: Iterator[StoredFrame]
) -> Iterator[tuple[StoredFrame | None, StoredFrame | None]]:
    """The frames of both results by stamp; None for a frame that a result has not."""
    first, second = next(ours, None), next(theirs, None)
    while first is not None or second is not None:
        if second is None or (first is not None and first.stamp_ns < second.stamp_ns):
            yield first, None
            first = next(ours, None)
        elif first is None or second.stamp_ns < first.stamp_ns:
            yield None, second
            second = next(theirs, None)
        else:
            yield first, second
            first, second = next(ours, None), next(theirs, None)


def _match(first: StoredFrame, second: StoredFrame, a: StoredResult, b: StoredResult) -> _Matched:
    if first.labels.shape != second.labels.shape:
        raise DifferentInputError(
            f"different inputs: at stamp {first.stamp_ns} ns {a.path} has masks of {first.labels.shape} and {b.path} "
            f"of {second.labels.shape} px"
        )
    joint = np.bincount(
        first.labels.ravel().astype(np.int64) * 256 + second.labels.ravel(), minlength=256 * 256
    ).reshape(256, 256)
    areas_a, areas_b = joint.sum(axis=1), joint.sum(axis=0)
    iou = {}
    for x, y in zip(*np.nonzero(joint[1:, 1:])):
        common = joint[x + 1, y + 1]
        key = first.ids.get(int(x) + 1, -int(x) - 1), second.ids.get(int(y) + 1, -int(y) - 1)
        iou[key] = float(common / (areas_a[x + 1] + areas_b[y + 1] - common))
    visible = (
        frozenset(frame.ids.get(int(label), -int(label)) for label in np.flatnonzero(areas) if label)
        for frame, areas in ((first, areas_a), (second, areas_b))
    )
    return _Matched(first.stamp_ns, iou, *visible)


def _pairs(total: dict[tuple[int, int], float], ids_a: set[int], ids_b: set[int]) -> list[Pair]:
    rows, columns = sorted(ids_a), sorted(ids_b)
    overlap = np.array([[total.get((x, y), 0.0) for y in columns] for x in rows]).reshape(len(rows), len(columns))
    chosen = {rows[x]: columns[y] for x, y in assign(overlap, 0.0)} if overlap.size else {}
    pairs = [Pair(x, chosen.get(x)) for x in rows]
    return pairs + [Pair(None, y) for y in columns if y not in chosen.values()]


def _pair_ious(frame: _Matched, pairs: Sequence[Pair]) -> dict[Pair, float]:
    ious = {}
    for pair in pairs:
        if pair.a in frame.a or pair.b in frame.b:
            both = pair.a is not None and pair.b is not None
            ious[pair] = frame.iou.get((pair.a, pair.b), 0.0) if both else 0.0  # type: ignore[arg-type]
    return ious


def _same(frame: _Matched) -> list[tuple[int, int]]:
    """Ids of one object on a frame."""
    return [key for key, value in frame.iou.items() if value >= SAME_IOU]


class _Switches:
    """Counts how often the partner of an id is another one than before."""

    def __init__(self) -> None:
        self._partners: dict[int, int] = {}

    def add(self, same: Sequence[tuple[int, int]]) -> int:
        switches = 0
        for number, partner in same:
            switches += self._partners.get(number, partner) != partner
            self._partners[number] = partner
        return switches


def _paired_answers(a: StoredResult, b: StoredResult) -> tuple[AnswerPair, ...]:
    """Raises DifferentInputError if the questions differ."""
    questions = [[answer.query for answer in result.answers] for result in (a, b)]
    if sorted(set(questions[0])) != sorted(set(questions[1])):
        listed = " and ".join(", ".join(map(repr, one)) or "none" for one in questions)
        raise DifferentInputError(f"different inputs: the questions are {listed}")
    pairs = []
    for query in dict.fromkeys(questions[0]):
        ours, theirs = ([one for one in result.answers if one.query == query] for result in (a, b))
        for place in range(max(len(ours), len(theirs))):
            pairs.append(
                AnswerPair(ours[place] if place < len(ours) else None, theirs[place] if place < len(theirs) else None)
            )
    return tuple(pairs)
