"""Clips with known answers, and the choice of the expressions that are asked about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from decaf_ros.types import Frame

# Type of the expressions without a target, in every dataset.
ABSENT = "absent"


@dataclass(frozen=True)
class Referral:
    """A referring expression and its meaning.

    Attributes:
        text: the expression.
        kind: its type, one of the dataset's kinds; ABSENT if and only if there are no targets.
        targets: indices into `EvaluationClip.objects`.
        category: category of all targets; empty if there is none or it is unknown.
        timeless: whether the meaning is the same for any part of the clip, as that of "the red ball" and unlike that
            of "the ball that stopped". Online, only these are asked.
    """

    text: str
    kind: str
    targets: tuple[int, ...]
    category: str = ""
    timeless: bool = False


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """A clip with ground truth.

    Attributes:
        name: unique in its dataset.
        frames: F frames of one size; their indices are 0 to F - 1.
        objects: (K, F, H, W) bool, the visible pixels of each object. Masks of objects may overlap.
        expressions: everything that may be asked about the clip.
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
        if any(frame.index != place for place, frame in enumerate(self.frames)):
            raise ValueError(f"clip {self.name}: expected frames with the indices 0 to {len(self.frames) - 1}")

    def mask(self, targets: Sequence[int]) -> np.ndarray:
        """(F, H, W) bool: the union of the targets."""
        return np.asarray(self.objects[list(targets)].any(axis=0))

    def masks_at(self, place: int) -> dict[int, np.ndarray]:
        """The (H, W) bool mask of each object on one frame, by its index."""
        return dict(enumerate(self.objects[:, place]))


def masks_from_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """(K, F, H, W) bool masks of `count` objects from (F, H, W) label images: 0 background, k + 1 object k."""
    return np.asarray(labels[None] == np.arange(1, count + 1, dtype=labels.dtype).reshape(-1, 1, 1, 1))


class Dataset(Protocol):
    """Clips by number. Other processes ask for them, so it has to be picklable."""

    @property
    def name(self) -> str:
        """Name of the dataset in reports."""

    @property
    def kinds(self) -> Sequence[str]:
        """Types of its expressions, in the order of a report."""

    @property
    def scored(self) -> int:
        """Number of clips whose expressions are scored."""

    @property
    def tracking_only(self) -> int:
        """Number of further clips for tracking scores alone: online, and SAM 2 by itself."""

    @property
    def settings(self) -> Mapping[str, object]:
        """What else a report has to name so that it can be repeated, as JSON values."""

    def clip(self, index: int) -> EvaluationClip:
        """The index-th clip, scored ones first. Raises whatever reading or rendering it raises."""


class ExpressionChoice:
    """Chooses the expressions of each clip so that all types are asked about equally often.

    The same clips in the same order give the same choice.

    Args:
        seed: of the random order.
        present: most expressions per clip with targets.
        absent: most expressions per clip without targets.
        kinds: types that are asked; empty means all.
    """

    def __init__(self, seed: int, present: int, absent: int, kinds: Collection[str] = ()) -> None:
        self._rng = np.random.default_rng(seed)
        self._most = {False: present, True: absent}
        self._kinds = kinds
        self._counts: Counter[str] = Counter()

    def __call__(self, clip: EvaluationClip) -> list[Referral]:
        """The expressions of the next clip. The least asked type comes first, and twice only if there is no other."""
        candidates = self.candidates(clip)
        shuffled = [candidates[place] for place in self._rng.permutation(len(candidates))]
        chosen: list[Referral] = []
        for is_absent, most in self._most.items():
            counts_here: Counter[str] = Counter()
            pool = [one for one in shuffled if (one.kind == ABSENT) == is_absent]
            for _ in range(min(most, len(pool))):
                best = min(pool, key=lambda one: (counts_here[one.kind], self._counts[one.kind]))
                pool.remove(best)
                counts_here[best.kind] += 1
                self._counts[best.kind] += 1
                chosen.append(best)
        return chosen

    def candidates(self, clip: EvaluationClip) -> list[Referral]:
        """All expressions of a clip whose type is asked."""
        return [one for one in clip.expressions if not self._kinds or one.kind in self._kinds]
