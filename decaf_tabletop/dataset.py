"""The simulated tabletop: clips made as they are wanted, or read from a folder where they were kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from decaf_ros.evaluation.datasets.clips import EvaluationClip
from decaf_tabletop.world.clip import TabletopClip
from decaf_tabletop.world.expressions import expressions_of
from decaf_tabletop.world.store import clip_path, read_clip

# Clips with a seed below the first were trained on. Reports take seeds up to the next bound, the fit of the presence
# score those up to the last, and later reports those from there on.
REPORT_SEEDS, CALIBRATION_SEEDS, LATER_REPORT_SEEDS = 1_000_000, 2_000_000, 3_000_000
# Of one report: the scored clips, and after them those in which one object passes before another.
SEEDS_A_REPORT, MOST_CLIPS = 10_000, 5_000
EARLIER_REPORTS = (CALIBRATION_SEEDS - REPORT_SEEDS) // SEEDS_A_REPORT


@dataclass(frozen=True)
class SimulatedTabletop:
    """`scored` clips with the seeds from first_seed on, then `crossings` more in which an object is hidden for a time.

    Needs MuJoCo and a renderer.
    """

    first_seed: int
    scored: int
    crossings: int = 0
    name: str = "tabletop"

    def clip(self, index: int) -> EvaluationClip:
        """See `Dataset.clip`."""
        from decaf_tabletop.world.simulator import make_clip

        crossing = index >= self.scored
        seed = self.first_seed + (MOST_CLIPS + index - self.scored if crossing else index)
        return evaluation_clip(make_clip(seed, crossing=crossing), clip_path(Path(), seed, crossing))


def report_clips(seed: int, count: int, crossings: int) -> SimulatedTabletop:
    """The clips of report number `seed`: never trained on, and none of them in another report.

    Raises ValueError for a negative seed or a count outside 1..5000.
    """
    if seed < 0:
        raise ValueError(f"--seed: expected 0 or more, got {seed}")
    if not 1 <= count <= MOST_CLIPS:
        raise ValueError(f"--clips: expected 1 to {MOST_CLIPS}, got {count}")
    place = seed - EARLIER_REPORTS
    first = LATER_REPORT_SEEDS + SEEDS_A_REPORT * place if place >= 0 else REPORT_SEEDS + SEEDS_A_REPORT * seed
    return SimulatedTabletop(first, count, crossings)


def calibration_clips(count: int) -> SimulatedTabletop:
    """Clips that are neither trained on nor in any report. Raises ValueError for a count outside 1..1,000,000."""
    most = LATER_REPORT_SEEDS - CALIBRATION_SEEDS
    if not 1 <= count <= most:
        raise ValueError(f"--clips: expected 1 to {most}, got {count}")
    return SimulatedTabletop(CALIBRATION_SEEDS, count)


@dataclass(frozen=True)
class StoredTabletop:
    """Clips that `decaf_tabletop.world.store` wrote; all are scored.

    calibration: whether they are for the fit of the presence score, and not for a report. A clip with a seed of another
    purpose is refused: it may have been trained on.
    """

    files: tuple[Path, ...]
    calibration: bool
    crossings: int = field(default=0, init=False)
    name: str = "tabletop"

    @property
    def scored(self) -> int:
        return len(self.files)

    def clip(self, index: int) -> EvaluationClip:
        """See `Dataset.clip`. Raises ValueError for a clip with a seed of another purpose."""
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
    """The first `count` clips of a folder in order of their names, all of them without a count.

    Raises FileNotFoundError for a folder without a clip, ValueError for a count that it does not hold.
    """
    files = tuple(sorted(folder.glob("clip_*.npz")))
    if not files:
        raise FileNotFoundError(f"{folder}: no clip there (clip_*.npz)")
    if count is not None and not 1 <= count <= len(files):
        raise ValueError(f"--clips: expected 1 to {len(files)}, which {folder} holds, got {count}")
    return StoredTabletop(files[:count], calibration)


def evaluation_clip(clip: TabletopClip, file: Path) -> EvaluationClip:
    """With its expressions. file: which it is or would be, for its name: SEED or SEED_crossing."""
    name = file.stem.removeprefix("clip_")
    return EvaluationClip(name, clip.frames(), clip.labels, tuple(expressions_of(clip)))
