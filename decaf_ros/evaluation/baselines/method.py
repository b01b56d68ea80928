"""The interface of a method that the evaluation can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from decaf_ros.config import DecafConfig
from decaf_ros.grounding.grounder import OtherQueries
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.stages import Progress, Steps, no_progress
from decaf_ros.types import Frame, Segmentation, Window

# Score of a fused map (T, h, w) float32 against the truth; higher is better.
Score = Callable[[np.ndarray], float]


class Models(NamedTuple):
    """The loaded models, which all methods share."""

    mllm: Mllm
    sam2: Sam2


class Method(Protocol):
    """A method with the signature of `decaf_ros.pipeline.Decaf`, which is one itself.

    The evaluation sets `config` on a shallow copy (`copy.copy`) before it asks. `Segmentation.coarse_masks` are scored
    as the attention mask (None: the method has none), `dense_labels` as the SAM mask.
    """

    config: DecafConfig
    sam2: Sam2

    def segment(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
    ) -> Segmentation:
        """As `Decaf.segment`."""

    def steps(
        self,
        window: Window,
        query: str,
        dense: Sequence[Frame] | None = None,
        progress: Progress = no_progress,
        others: OtherQueries = tuple,
    ) -> Steps[Segmentation]:
        """As `Decaf.steps`."""


@runtime_checkable
class Judged(Protocol):
    """A method that chooses among several maps by the truth: an upper bound. The evaluation calls `judge` first."""

    def judge(self, score: Score) -> None:
        """Sets the score by which the next answers' maps are chosen."""
