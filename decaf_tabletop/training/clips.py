"""Separates training clips from measurement clips by seed."""

from __future__ import annotations

import re
from pathlib import Path

# First seed reserved for measurement: validation, and above it calibration and reports (decaf_tabletop/dataset.py).
VALIDATION_SEEDS = 900_000


def training_clips(folder: Path) -> list[Path]:
    """Clip files in `folder`, written by `python -m decaf_tabletop.world.store`, in file name order.

    Raises FileNotFoundError if there are none, ValueError if one has a measurement seed.
    """
    files = _clips(folder)
    for file in files:
        if _seed(file) >= VALIDATION_SEEDS:
            raise ValueError(f"{file}: expected seeds below {VALIDATION_SEEDS}, the others are for measurement")
    return files


def validation_clips(folder: Path) -> list[Path]:
    """Like `training_clips` for measurement clips. Raises ValueError if one has a training seed."""
    files = _clips(folder)
    for file in files:
        if _seed(file) < VALIDATION_SEEDS:
            raise ValueError(f"{file}: expected seeds from {VALIDATION_SEEDS} on, lower ones may be trained on")
    return files


def _clips(folder: Path) -> list[Path]:
    files = sorted(folder.glob("clip_*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected clips of `python -m decaf_tabletop.world.store`")
    return files


def _seed(file: Path) -> int:
    return int(re.match(r"clip_(\d+)", file.name).group(1))
