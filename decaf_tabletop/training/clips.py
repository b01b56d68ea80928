"""Which clips may be trained on, and which may be measured on."""

from __future__ import annotations

import re
from pathlib import Path

# From here on clips are to measure on, while something is trained or afterwards.
VALIDATION_SEEDS = 900_000


def training_clips(folder: Path) -> list[Path]:
    """The clips that `python -m decaf_tabletop.world.store` wrote there, by seed.

    Raises FileNotFoundError where there is none, ValueError where one has a seed to measure on.
    """
    files = _clips(folder)
    for file in files:
        if _seed(file) >= VALIDATION_SEEDS:
            raise ValueError(f"{file}: expected seeds below {VALIDATION_SEEDS}, those from there on are to measure on")
    return files


def validation_clips(folder: Path) -> list[Path]:
    """The same, of clips to measure on. Raises ValueError where one may have been trained on."""
    files = _clips(folder)
    for file in files:
        if _seed(file) < VALIDATION_SEEDS:
            raise ValueError(f"{file}: expected seeds from {VALIDATION_SEEDS} on, those below may be trained on")
    return files


def _clips(folder: Path) -> list[Path]:
    files = sorted(folder.glob("clip_*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected clips of `python -m decaf_tabletop.world.store`")
    return files


def _seed(file: Path) -> int:
    return int(re.match(r"clip_(\d+)", file.name).group(1))
