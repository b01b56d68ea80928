"""Which clips may be trained on."""

from __future__ import annotations

import re
from pathlib import Path

# From here on clips are to measure on, while something is trained or afterwards.
VALIDATION_SEEDS = 900_000


def training_clips(folder: Path) -> list[Path]:
    """The clips that `python -m decaf_ros.tabletop.store` wrote there, by seed.

    Raises FileNotFoundError where there is none, ValueError where one has a seed to measure on.
    """
    files = sorted(folder.glob("clip_*.npz"))
    if not files:
        raise FileNotFoundError(f"{folder}: expected clips of `python -m decaf_ros.tabletop.store`")
    for file in files:
        seed = int(re.match(r"clip_(\d+)", file.name).group(1))
        if seed >= VALIDATION_SEEDS:
            raise ValueError(f"{file}: expected seeds below {VALIDATION_SEEDS}, those from there on are to measure on")
    return files
