"""The simulated tabletop as a dataset of `decaf eval`: clips rendered on demand or read from a folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from decaf_ros.evaluation.datasets.clips import Dataset, EvaluationClip, Referral, masks_from_labels
from decaf_ros.evaluation.datasets.registry import Selection
from decaf_tabletop.world.clip import FRAMES, KINDS, LEAST_S, MOST_S, TabletopClip, TabletopObject
from decaf_tabletop.world.expressions import expressions_of
from decaf_tabletop.world.long_expressions import long_expressions
from decaf_tabletop.world.store import clip_path, read_clip

NAME = "tabletop"
# First seeds of the ranges for reports, calibration of the presence score and further reports. Lower seeds: training.
REPORT_SEEDS, CALIBRATION_SEEDS, LATER_REPORT_SEEDS = 1_000_000, 2_000_000, 3_000_000
# Within one report's seeds, scored clips start at 0 and crossings at MOST_CLIPS.
SEEDS_PER_REPORT, MOST_CLIPS = 10_000, 5_000
EARLIER_REPORTS = (CALIBRATION_SEEDS - REPORT_SEEDS) // SEEDS_PER_REPORT
DEFAULT_CLIPS = 20
# Expression types whose targets do not depend on how much of the clip was seen.
TIMELESS_KINDS = ("explicit", "attribute", "size", "several")


class Tabletop:
    """The entry point `tabletop` of `decaf_ros.datasets`."""

    kinds: Sequence[str] = KINDS
    default_config = "package://decaf_tabletop/config/tabletop.yaml"
    every_expression = False
    submission = None

    def select(self, selection: Selection) -> Dataset:
        """See `DatasetSource.select`. A report adds one crossing, for tracking only, per four scored clips; a report on
        long clips does not."""
        if selection.split:
            raise ValueError(f"--split: {NAME} has no splits, got {selection.split!r}")
        if selection.folder is not None:
            return stored_clips(selection.folder, selection.count, selection.calibration)
        count = DEFAULT_CLIPS if selection.count is None else selection.count
        if selection.calibration:
            return calibration_clips(count)
        if selection.seconds is not None:
            return long_report_clips(selection.seed, count, selection.seconds)
        return report_clips(selection.seed, count, crossings=math.ceil(count / 4))


SOURCE = Tabletop()


@dataclass(frozen=True)
class SimulatedTabletop:
    """`scored` clips, then `tracking_only` crossings (one object occludes another). Needs MuJoCo and a renderer.

    seconds: length of long clips; None means ordinary clips.
    """

    first_seed: int
    scored: int
    tracking_only: int = 0
    name: str = NAME
    seconds: float | None = None
    has_truth: bool = field(default=True, init=False)

    @property
    def settings(self) -> Mapping[str, object]:
        """Includes the MuJoCo version, because clips of a seed differ between versions."""
        length = {} if self.seconds is None else {"seconds": self.seconds}
        return {"stored": False, "mujoco": version("mujoco"), **length}

    def clip(self, index: int) -> EvaluationClip:
        """See `Dataset.clip`."""
        from decaf_tabletop.world.simulator import make_clip, make_long_clip

        if self.seconds is not None:
            seed = self.first_seed + index
            return evaluation_clip(make_long_clip(seed, self.seconds), clip_path(Path(), seed, seconds=self.seconds))
        crossing = index >= self.scored
        seed = self.first_seed + (MOST_CLIPS + index - self.scored if crossing else index)
        return evaluation_clip(make_clip(seed, crossing=crossing), clip_path(Path(), seed, crossing))


def report_clips(seed: int, count: int, crossings: int) -> SimulatedTabletop:
    """The clips of report number `seed`. They are held out from training and from all other reports.

    Raises ValueError for a negative seed or a count outside 1..5000.
    """
    if seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {seed}")
    if not 1 <= count <= MOST_CLIPS:
        raise ValueError(f"--clips: expected 1 to {MOST_CLIPS}, got {count}")
    place = seed - EARLIER_REPORTS
    first = LATER_REPORT_SEEDS + SEEDS_PER_REPORT * place if place >= 0 else REPORT_SEEDS + SEEDS_PER_REPORT * seed
    return SimulatedTabletop(first, count, crossings)


def long_report_clips(seed: int, count: int, seconds: float) -> SimulatedTabletop:
    """The long clips of report number `seed`, with the seeds of its scored clips.

    Raises ValueError as `report_clips`, or for a length outside LEAST_S..MOST_S.
    """
    if not LEAST_S <= seconds <= MOST_S:
        raise ValueError(f"--seconds: expected {LEAST_S:g} to {MOST_S:g}, got {seconds:g}")
    return replace(report_clips(seed, count, crossings=0), seconds=seconds)


def calibration_clips(count: int) -> SimulatedTabletop:
    """Clips held out from training and reports. Raises ValueError for a count outside 1..1,000,000."""
    most = LATER_REPORT_SEEDS - CALIBRATION_SEEDS
    if not 1 <= count <= most:
        raise ValueError(f"--clips: expected 1 to {most}, got {count}")
    return SimulatedTabletop(CALIBRATION_SEEDS, count)


@dataclass(frozen=True)
class StoredTabletop:
    """Clips written by `decaf_tabletop.world.store`; all are scored.

    Attributes:
        files: one .npz file per clip.
        calibration: whether the clips calibrate the presence score rather than form a report.
    """

    files: tuple[Path, ...]
    calibration: bool
    tracking_only: int = field(default=0, init=False)
    name: str = NAME
    has_truth: bool = field(default=True, init=False)

    @property
    def settings(self) -> Mapping[str, object]:
        """The MuJoCo version that rendered stored clips is unknown."""
        return {"stored": True, "mujoco": None}

    @property
    def scored(self) -> int:
        """Number of files."""
        return len(self.files)

    def clip(self, index: int) -> EvaluationClip:
        """See `Dataset.clip`. Raises ValueError for a seed outside the range for this purpose."""
        file = self.files[index]
        clip = read_clip(file)
        held_out = CALIBRATION_SEEDS <= clip.seed < LATER_REPORT_SEEDS
        if clip.seed < REPORT_SEEDS or held_out != self.calibration:
            expected = f"{CALIBRATION_SEEDS} to {LATER_REPORT_SEEDS - 1}"
            if not self.calibration:
                expected = f"{REPORT_SEEDS} to {CALIBRATION_SEEDS - 1} or from {LATER_REPORT_SEEDS} on"
            raise ValueError(f"{file}: expected a clip with a seed from {expected}, got {clip.seed}")
        return evaluation_clip(clip, file)


def stored_clips(folder: Path, count: int | None, calibration: bool) -> StoredTabletop:
    """The first `count` clips of a folder, sorted by name; None takes all.

    Raises FileNotFoundError for a folder without clips, ValueError for a count beyond the number of clips.
    """
    files = tuple(sorted(folder.glob("clip_*.npz")))
    if not files:
        raise FileNotFoundError(f"{folder}: no clip there (clip_*.npz)")
    if count is not None and not 1 <= count <= len(files):
        raise ValueError(f"--clips: expected 1 to {len(files)} (the clips in {folder}), got {count}")
    return StoredTabletop(files[:count], calibration)


def evaluation_clip(clip: TabletopClip, file: Path) -> EvaluationClip:
    """The clip with its expressions. Its name, such as SEED or SEED_crossing, is the stem of `file` without "clip_".
    Objects of the same category or the same colour are similar."""
    name = file.stem.removeprefix("clip_")
    expressions = tuple(
        Referral(
            *(one.text, one.kind, one.targets, one.category, one.kind in TIMELESS_KINDS, one.asked_s),
            similar=has_similar(clip.objects, one.targets),
        )
        for one in (long_expressions(clip) if len(clip) > FRAMES else expressions_of(clip))
    )
    return EvaluationClip(name, clip.frames(), masks_from_labels(clip.labels, len(clip.objects)), expressions)


def has_similar(objects: Sequence[TabletopObject], targets: Sequence[int]) -> bool:
    """Whether an object that is no target has the category or the colour of one."""
    meant = [objects[index] for index in targets]
    others = [one for index, one in enumerate(objects) if index not in targets]
    return any(one.category == target.category or one.color == target.color for one in others for target in meant)
