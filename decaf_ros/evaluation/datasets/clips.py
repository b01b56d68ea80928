"""Clips with ground truth, and the choice of the expressions to ask about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from decaf_ros.types import Frame

# Type of expressions without a target, in every dataset; further such types begin with this word.
ABSENT = "absent"


def is_absent_kind(kind: str) -> bool:
    """Whether expressions of this type have no target."""
    return kind.partition(" ")[0] == ABSENT


@dataclass(frozen=True)
class Referral:
    """A referring expression and its meaning.

    Attributes:
        text: the expression.
        kind: its type, one of the dataset's kinds; without targets, and only then, one of `is_absent_kind`.
        targets: indices into `EvaluationClip.objects`.
        category: common category of the targets; empty if there is none or it is unknown.
        timeless: whether the meaning is the same for any part of the clip ("the red ball", not "the ball that
            stopped"). Only timeless expressions, and those with `asked_s`, are asked online.
        asked_s: time in seconds after the first frame at which it is asked about the frames before; None if its
            meaning concerns the whole clip.
    """

    text: str
    kind: str
    targets: tuple[int, ...]
    category: str = ""
    timeless: bool = False
    asked_s: float | None = None


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip with ground truth.

    Attributes:
        name: unique in the dataset.
        frames: F frames of one size, with the indices 0 to F - 1.
        objects: (K, F, H, W) bool, the visible pixels of each object. Objects may overlap.
        expressions: all expressions that may be asked.

    Raises ValueError if frames and masks do not fit together.
    """

    name: str
    frames: tuple[Frame, ...]
    objects: np.ndarray
    expressions: tuple[Referral, ...]

    def __post_init__(self) -> None:
        shape = (len(self.frames), *self.frames[0].size_hw) if self.frames else (0,)
        if not self.frames or self.objects.shape[1:] != shape or self.objects.dtype != bool:
            raise ValueError(
                f"clip {self.name}: expected frames and bool masks of shape (K, {', '.join(map(str, shape))}), "
                f"got {self.objects.dtype} {self.objects.shape}"
            )
        if any(frame.index != index for index, frame in enumerate(self.frames)):
            raise ValueError(f"clip {self.name}: expected frames with the indices 0 to {len(self.frames) - 1}")
        for expression in self.expressions:
            if is_absent_kind(expression.kind) == bool(expression.targets):
                raise ValueError(
                    f"clip {self.name}, {expression.text!r}: expected targets, or a type {ABSENT} without any, "
                    f"got type {expression.kind} and targets {expression.targets}"
                )
            if not all(0 <= target < len(self.objects) for target in expression.targets):
                raise ValueError(
                    f"clip {self.name}, {expression.text!r}: expected targets below {len(self.objects)}, "
                    f"got {expression.targets}"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the masks as bits: clips are sent from process to process."""
        bits = np.packbits(self.objects)
        return _unpickled, (type(self), self.name, self.frames, bits, self.objects.shape, self.expressions)

    def mask(self, targets: Sequence[int]) -> np.ndarray:
        """(F, H, W) bool: the union of the targets."""
        return np.asarray(self.objects[list(targets)].any(axis=0))

    def masks_at(self, frame_index: int) -> dict[int, np.ndarray]:
        """The (H, W) bool masks of all objects on one frame, by index of the object."""
        return dict(enumerate(self.objects[:, frame_index]))


def _unpickled(
    clip: type[EvaluationClip],
    name: str,
    frames: tuple[Frame, ...],
    bits: np.ndarray,
    shape: tuple[int, ...],
    expressions: tuple[Referral, ...],
) -> EvaluationClip:
    objects = np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape)
    return clip(name, frames, objects, expressions)


def masks_from_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """(K, F, H, W) bool masks of `count` objects from (F, H, W) label images: 0 background, k + 1 object k."""
    return np.asarray(labels[None] == np.arange(1, count + 1, dtype=labels.dtype).reshape(-1, 1, 1, 1))


class Dataset(Protocol):
    """Clips by index. Picklable, because other processes read them."""

    @property
    def name(self) -> str:
        """Name of the dataset in reports."""

    @property
    def scored(self) -> int:
        """Number of clips whose expressions are scored."""

    @property
    def tracking_only(self) -> int:
        """Number of further clips, used only for tracking scores: online, and SAM 2 by itself."""

    @property
    def settings(self) -> Mapping[str, object]:
        """Further settings that a report needs to be reproducible, as JSON values."""

    def clip(self, index: int) -> EvaluationClip:
        """The index-th clip; scored clips come first. Errors of reading or rendering pass through."""


class ExpressionChoice:
    """Chooses expressions so that all types are asked about equally often. Deterministic for a sequence of clips.

    Args:
        seed: seed of the random order.
        present: maximum number of expressions with targets per clip.
        absent: maximum number of expressions without targets per clip.
        kinds: types to ask; empty means all.
    """

    def __init__(self, seed: int, present: int, absent: int, kinds: Collection[str] = ()) -> None:
        self._rng = np.random.default_rng(seed)
        self._limits = {False: present, True: absent}
        self._kinds = kinds
        self._counts: Counter[str] = Counter()

    def __call__(self, clip: EvaluationClip) -> list[Referral]:
        """Chooses the expressions of the next clip, the least asked type first. No type twice if another is left."""
        candidates = self.candidates(clip)
        shuffled = [candidates[index] for index in self._rng.permutation(len(candidates))]
        chosen: list[Referral] = []
        for is_absent, limit in self._limits.items():
            clip_counts: Counter[str] = Counter()
            pool = [expression for expression in shuffled if is_absent_kind(expression.kind) == is_absent]
            for _ in range(min(limit, len(pool))):
                expression = min(pool, key=lambda one: (clip_counts[one.kind], self._counts[one.kind]))
                pool.remove(expression)
                clip_counts[expression.kind] += 1
                self._counts[expression.kind] += 1
                chosen.append(expression)
        return chosen

    def candidates(self, clip: EvaluationClip) -> list[Referral]:
        """All expressions of a clip with a type to ask."""
        return [expression for expression in clip.expressions if not self._kinds or expression.kind in self._kinds]
