"""Views, which are frames that enter the model in one sequence, and how the engine reads its attention."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.grounding.mllm import Layout
from decaf_ros.types import Frame


class View(NamedTuple):
    """Frames that enter the model in one sequence."""

    layout: Layout
    frames: tuple[Frame, ...]

    @property
    def units(self) -> list[tuple[Frame, ...]]:
        """The frames of every unit. The last frame is repeated to fill the last unit."""
        size = self.layout.frames_per_unit
        padded = [*self.frames, *[self.frames[-1]] * (-len(self.frames) % size)]
        return [tuple(padded[start : start + size]) for start in range(0, len(padded), size)]

    @property
    def key(self) -> Hashable:
        """Cache key: equal for equal layouts and images."""
        return self.layout, tuple(frame.digest for frame in self.frames)


def digests_of(key: Any) -> tuple[bytes, ...]:
    """Digests of the frames in the key of a view or of a unit, which they end."""
    digests: tuple[bytes, ...] = key[-1]
    return digests


@dataclass(frozen=True)
class ReadOptions:
    """How the engine reads the attention, and how much of an answer it decodes.

    Attributes:
        start_layer: first layer of the rollout, from 0.
        method: see `rollout_steps`.
        block: see `rollout_steps`.
        kernel: see `rollout_steps`.
        max_new_tokens: length limit of the answer; 0 decodes nothing.
    """

    start_layer: int
    method: str = "v_max"
    block: int = 64
    kernel: str = "auto"
    max_new_tokens: int = 0


class ViewResult(NamedTuple):
    """Result of one prompt about one view.

    Attributes:
        map: rollout of the visual tokens, (t, h, w) float32.
        answer: decoded text, "" if none was requested.
        finished: whether the answer ended within its limit of tokens.
    """

    map: np.ndarray
    answer: str
    finished: bool
