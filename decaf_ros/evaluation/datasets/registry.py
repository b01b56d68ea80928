"""Finds datasets by their names: entry points of the group `decaf_ros.datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from decaf_ros.evaluation.datasets.clips import Dataset

ENTRY_POINTS = "decaf_ros.datasets"


@dataclass(frozen=True)
class Selection:
    """The part of a dataset that is evaluated.

    Attributes:
        seed: selects the clips of a dataset that makes them, and the expressions that are asked.
        count: number of clips; None means the default of the dataset.
        folder: read clips from here; None means the dataset's own place, or to make them.
        calibration: the clips that are kept apart for fitting the presence score.
    """

    seed: int = 0
    count: int | None = None
    folder: Path | None = None
    calibration: bool = False


class DatasetSource(Protocol):
    """Value of an entry point: gives datasets.

    Attributes:
        kinds: types of its expressions, in the order of a report.
        default_config: parameter file for `decaf eval` without --config, a path as `resolve_path` takes it; empty
            means the defaults.
    """

    kinds: Sequence[str]
    default_config: str

    def select(self, selection: Selection) -> Dataset:
        """The selected clips. Raises ValueError for a bad selection, OSError if clips are missing."""


def dataset_names() -> list[str]:
    """Names of all installed datasets."""
    return sorted(_points())


def find_source(name: str) -> DatasetSource:
    """Raises ValueError, with the known names, for an unknown one; ImportError for a broken installation."""
    points = _points()
    if name not in points:
        raise ValueError(
            f"--dataset: expected one of {', '.join(sorted(points)) or '(none is installed)'}, got {name!r}"
        )
    source: DatasetSource = points[name].load()
    return source


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}
