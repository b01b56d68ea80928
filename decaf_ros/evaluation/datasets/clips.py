"""What every dataset gives: clips, expressions about them, and what these mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from decaf_ros.types import Frame

# The type of expressions that mean nothing in their clip.
ABSENT = "absent"


class Referral(Protocol):
    """An expression and what it means.

    kind: its type; `absent` where there is no such thing. targets: places in the clip's label images, label - 1.
    category: what the targets are; empty where that is not one word.
    """

    text: str
    kind: str
    targets: tuple[int, ...]
    category: str


@dataclass(frozen=True, eq=False)
class EvaluationClip:
    """frames: F of one size, their index counting from 0. labels: (F, H, W) uint8: 0 background, k + 1 the k-th object
    where it is visible. expressions: all that may be asked about the clip."""

    name: str
    frames: tuple[Frame, ...]
    labels: np.ndarray
    expressions: tuple[Referral, ...]

    def __post_init__(self) -> None:
        wanted = (len(self.frames), *self.frames[0].size_hw) if self.frames else (0,)
        if not self.frames or self.labels.shape != wanted or self.labels.dtype != np.uint8:
            raise ValueError(
                f"clip {self.name}: expected frames and uint8 labels of shape {wanted}, "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        if any(frame.index != place for place, frame in enumerate(self.frames)):
            raise ValueError(f"clip {self.name}: expected frames with the indices 0 to {len(self.frames) - 1}")

    def mask(self, targets: Sequence[int]) -> np.ndarray:
        """(F, H, W) bool, where any of the targets is visible."""
        table = np.zeros(256, bool)
        table[[target + 1 for target in targets]] = True
        return table[self.labels]


class Dataset(Protocol):
    """Clips by number. Another process may ask for them: it has to be picklable.

    scored: how many clips are to be scored; crossings: how many more there are in which an object is hidden for a time.
    """

    name: str
    scored: int
    crossings: int

    def clip(self, index: int) -> EvaluationClip:
        """The index-th of the scored clips, and then of the others. Raises what reading or making it raises."""


class ExpressionChoice:
    """Chooses which expressions of a clip are asked, so that each type comes up about as often as the others.

    present, absent: the most expressions a clip with and without targets. kinds: the types that are asked at all, all
    of them if empty. The same clips in the same order give the same choice.
    """

    def __init__(self, seed: int, present: int, absent: int, kinds: Collection[str] = ()) -> None:
        self._rng = np.random.default_rng(seed)
        self._most = {False: present, True: absent}
        self._kinds = kinds
        self._asked: Counter[str] = Counter()

    def __call__(self, clip: EvaluationClip) -> list[Referral]:
        """Those of the next clip. The type that was asked least comes first, and twice only if there is no other."""
        known = self.known(clip)
        waiting = [known[place] for place in self._rng.permutation(len(known))]
        chosen: list[Referral] = []
        for is_absent, most in self._most.items():
            here: Counter[str] = Counter()
            pool = [one for one in waiting if (one.kind == ABSENT) == is_absent]
            for _ in range(min(most, len(pool))):
                best = min(pool, key=lambda one: (here[one.kind], self._asked[one.kind]))
                pool.remove(best)
                here[best.kind] += 1
                self._asked[best.kind] += 1
                chosen.append(best)
        return chosen

    def known(self, clip: EvaluationClip) -> list[Referral]:
        """All that may be asked about a clip."""
        return [one for one in clip.expressions if not self._kinds or one.kind in self._kinds]
