"""Options of the 3D geometry of targets (`decaf_ros.space`)."""

from __future__ import annotations

from dataclasses import dataclass

from decaf_ros.config.fields import Checked, option


@dataclass(frozen=True)
class SpaceConfig(Checked):
    """Which depth pixels of a mask are used."""

    min_m: float = option(0.1, "smaller depths, in metres, are invalid", 0.001, 1000.0, live=True)
    max_m: float = option(10.0, "larger depths, in metres, are invalid", 0.01, 1000.0, live=True)
    erode_px: int = option(
        1, "pixels removed at the edge of a mask, where depth mixes with the background", 0, 50, live=True
    )
    edge_step: float = option(
        0.02,
        "step between neighbouring pixels, as a share of their depth, that is an edge in depth",
        0.001,
        1.0,
        live=True,
    )
    min_points: int = option(30, "a target with fewer points has no position", 3, 1000000, live=True)
    min_share: float = option(
        0.1, "a target with a smaller share of valid depth in its mask has no position", 0.0, 1.0, live=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_m >= self.max_m:
            raise ValueError(f"SpaceConfig.min_m: expected less than max_m ({self.max_m:g}), got {self.min_m:g}")
