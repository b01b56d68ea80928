"""Clips with ground truth, and the choice of the expressions to ask about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol

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
        targets: indices into `EvaluationClip.objects`; None if they are not public.
        category: common category of the targets; empty if there is none or it is unknown.
        timeless: whether the meaning is the same for any part of the clip ("the red ball", not "the ball that
            stopped"). Only timeless expressions, and those with `asked_s`, are asked online.
        asked_s: time in seconds after the first frame at which it is asked about the frames before; None if its
            meaning concerns the whole clip.
        name: unique in the clip; names the expression in a submission to a server.
        subset: part of the dataset. A dataset's score is the mean over its subsets.
        scored: indices of the frames whose masks are known; None: all.
        similar: whether the clip shows an object that is no target and resembles one; None if it is unknown.
    """

    text: str
    kind: str
    targets: tuple[int, ...] | None
    category: str = ""
    timeless: bool = False
    asked_s: float | None = None
    name: str = ""
    subset: str = ""
    scored: tuple[int, ...] | None = None
    similar: bool | None = None


class ObjectMasks(Protocol):
    """The visible pixels of K objects on F frames, wherever they are stored. Picklable."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(K, F, H, W)."""

    def at(self, frame: int, objects: Sequence[int]) -> np.ndarray:
        """(len(objects), H, W) bool, on one frame. Raises ValueError, naming the file, if it cannot be read."""


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip with ground truth.

    Attributes:
        name: unique in the dataset.
        frames: F frames of one size, with the indices 0 to F - 1.
        objects: (K, F, H, W) bool, the visible pixels of each object. Objects may overlap.
        expressions: all expressions that may be asked.
        foreground: (1, F, H, W) bool, all objects that count for the robustness score; None without one.
        frame_names: F names of the frames in a submission to a server; empty: their indices with five digits.

    Raises ValueError if frames and masks do not fit together.
    """

    name: str
    frames: Sequence[Frame]
    objects: np.ndarray | ObjectMasks
    expressions: tuple[Referral, ...]
    foreground: ObjectMasks | None = None
    frame_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = (len(self.frames), *self.frames[0].size_hw) if self.frames else (0,)
        for masks in (self.objects, *((self.foreground,) if self.foreground is not None else ())):
            dtype = masks.dtype if isinstance(masks, np.ndarray) else np.dtype(bool)
            if not self.frames or masks.shape[1:] != shape or dtype.kind != "b":
                raise ValueError(
                    f"clip {self.name}: expected frames and bool masks of shape (K, {', '.join(map(str, shape))}), "
                    f"got {dtype} {masks.shape}"
                )
        # Frames in files are numbered by their reader; decoding all of them takes long.
        if isinstance(self.frames, tuple) and any(frame.index != index for index, frame in enumerate(self.frames)):
            raise ValueError(f"clip {self.name}: expected frames with the indices 0 to {len(self.frames) - 1}")
        for expression in self.expressions:
            if expression.targets is None:
                continue
            if is_absent_kind(expression.kind) == bool(expression.targets):
                raise ValueError(
                    f"clip {self.name}, {expression.text!r}: expected targets, or a type {ABSENT} without any, "
                    f"got type {expression.kind} and targets {expression.targets}"
                )
            if not all(0 <= target < self.count for target in expression.targets):
                raise ValueError(
                    f"clip {self.name}, {expression.text!r}: expected targets below {self.count}, "
                    f"got {expression.targets}"
                )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the masks as bits: clips are sent from process to process."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if isinstance(self.objects, np.ndarray):
            values["objects"] = _Bits(np.packbits(self.objects), self.objects.shape)
        return _unpickled, (type(self), values)

    @property
    def count(self) -> int:
        """K, the number of objects."""
        return int(self.objects.shape[0])

    def at(self, frame: int, objects: Sequence[int]) -> np.ndarray:
        """(len(objects), H, W) bool: objects on one frame."""
        if isinstance(self.objects, np.ndarray):
            return np.asarray(self.objects[list(objects), frame])
        return self.objects.at(frame, objects)

    def mask(self, targets: Sequence[int], frames: Sequence[int] | None = None) -> np.ndarray:
        """(len(frames), H, W) bool: the union of the targets. frames: indices; None: all."""
        wanted = range(len(self.frames)) if frames is None else frames
        union = np.zeros((len(wanted), *self.objects.shape[2:]), bool)
        for place, frame in enumerate(wanted):
            np.any(self.at(frame, targets), axis=0, out=union[place])
        return union

    def masks_at(self, frame_index: int) -> dict[int, np.ndarray]:
        """The (H, W) bool masks of all objects on one frame, by index of the object."""
        return dict(enumerate(self.at(frame_index, range(self.count))))

    def areas(self, objects: Sequence[int]) -> np.ndarray:
        """(len(objects), F) int64: visible pixels."""
        counts = [np.count_nonzero(self.at(frame, objects), axis=(1, 2)) for frame in range(len(self.frames))]
        areas: np.ndarray = np.array(counts, np.int64).reshape(len(self.frames), len(objects)).T
        return areas


class _Bits(NamedTuple):
    bits: np.ndarray
    shape: tuple[int, ...]


def _unpickled(clip: type[EvaluationClip], values: dict[str, Any]) -> EvaluationClip:
    if isinstance(values["objects"], _Bits):
        bits, shape = values["objects"]
        values["objects"] = np.unpackbits(bits, count=math.prod(shape)).view(bool).reshape(shape)
    return clip(**values)


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
    def has_truth(self) -> bool:
        """Whether the targets are public."""

    @property
    def settings(self) -> Mapping[str, object]:
        """Further settings that a report needs to be reproducible, as JSON values."""

    def clip(self, index: int) -> EvaluationClip:
        """The index-th clip; scored clips come first. Errors of reading or rendering pass through."""


class ExpressionChoice:
    """Chooses expressions so that all types are asked about equally often. Deterministic for a sequence of clips.

    Args:
        seed: seed of the random order.
        present: maximum number of expressions with targets per clip; None: every expression, in its own order.
        absent: maximum number of expressions without targets per clip.
        kinds: types to ask; empty means all.
    """

    def __init__(self, seed: int, present: int | None, absent: int = 0, kinds: Collection[str] = ()) -> None:
        self._rng = np.random.default_rng(seed)
        self._limits = None if present is None else {False: present, True: absent}
        self._kinds = kinds
        self._counts: Counter[str] = Counter()

    def __call__(self, clip: EvaluationClip) -> list[Referral]:
        """Chooses the expressions of the next clip, the least asked type first. No type twice if another is left."""
        candidates = self.candidates(clip)
        if self._limits is None:
            return candidates
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
