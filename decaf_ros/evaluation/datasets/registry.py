"""Finds datasets by name: those of this package, and entry points of the group `decaf_ros.datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol

from decaf_ros.evaluation.datasets.clips import Dataset

ENTRY_POINTS = "decaf_ros.datasets"
# Modules with a `SOURCE`. Not registered by the installation, so that a checkout has them too.
BENCHMARKS = ("folder", "long_rvos", "mevis", "reasonvos", "ref_davis17", "ref_youtube_vos", "revos")


@dataclass(frozen=True)
class Selection:
    """The part of a dataset that is evaluated.

    Attributes:
        seed: selects the clips, if the dataset renders them, and the expressions to ask.
        count: number of clips; None means the default of the dataset.
        folder: folder with stored clips; None means the dataset's own folder, or rendered clips.
        calibration: select the clips reserved for fitting the presence score.
        seconds: length of rendered long clips, for `decaf eval --long`; None means ordinary clips.
        split: part of a benchmark; empty means its default.
    """

    seed: int = 0
    count: int | None = None
    folder: Path | None = None
    calibration: bool = False
    seconds: float | None = None
    split: str = ""


class DatasetSource(Protocol):
    """The value of an entry point: selects clips of one dataset.

    Attributes:
        kinds: types of expressions, in the order of a report.
        default_config: parameter file of `decaf eval` without --config, a path for `resolve_path`; empty means
            default parameters.
        every_expression: whether all expressions are asked, as a benchmark demands, not a few of each clip.
        submission: folder in the zip file that a benchmark's server expects, with a slash at its end, or empty; None:
            there is no server.
    """

    kinds: Sequence[str]
    default_config: str
    every_expression: bool
    submission: str | None

    def select(self, selection: Selection) -> Dataset:
        """The selected clips. Raises ValueError for a bad selection, OSError if clips are missing."""


def dataset_names() -> list[str]:
    """Names of all installed datasets."""
    return sorted(_points())


def find_source(name: str) -> DatasetSource:
    """Loads the entry point of a dataset.

    Raises ValueError for an unknown name or an entry point that cannot be loaded.
    """
    points = _points()
    if name not in points:
        raise ValueError(
            f"--dataset: expected one of {', '.join(sorted(points)) or '(none is installed)'}, got {name!r}"
        )
    try:
        source: DatasetSource = points[name].load()
    except Exception as error:  # whatever another package raises
        raise ValueError(f"--dataset {name}: cannot be loaded from {points[name].value}: {error}") from error
    return source


def _points() -> dict[str, EntryPoint]:
    folder = "decaf_ros.evaluation.datasets"
    own = [EntryPoint(name, f"{folder}.{name}:SOURCE", ENTRY_POINTS) for name in BENCHMARKS]
    return {point.name: point for point in (*own, *entry_points(group=ENTRY_POINTS))}
