"""The configuration: one frozen dataclass per stage, and the only place that defines defaults.

Dotted field names (`segmentation.point_threshold`) are the ROS parameter names and the keys of the YAML files.
Every option has a description, a range and a flag: may it change while the node runs (`live`)?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from decaf_ros.config.fields import Checked, Option, option
from decaf_ros.config.method import (
    EngineConfig,
    GroundingConfig,
    MllmConfig,
    PresenceConfig,
    Sam2Config,
    SegmentationConfig,
)
from decaf_ros.config.space import SpaceConfig
from decaf_ros.config.stream import (
    NodeConfig,
    OutputsConfig,
    QueriesConfig,
    RegroundingConfig,
    TrackingConfig,
    WindowConfig,
    camera_names,
)
from decaf_ros.types.checks import shown

__all__ = [
    "DecafConfig",
    "EngineConfig",
    "GroundingConfig",
    "MllmConfig",
    "NodeConfig",
    "Option",
    "OutputsConfig",
    "PresenceConfig",
    "QueriesConfig",
    "RegroundingConfig",
    "Sam2Config",
    "SegmentationConfig",
    "SpaceConfig",
    "TrackingConfig",
    "WindowConfig",
    "camera_names",
    "options",
    "replace",
]


@dataclass(frozen=True)
class DecafConfig(Checked):
    """The whole configuration."""

    mllm: MllmConfig = MllmConfig()
    grounding: GroundingConfig = GroundingConfig()
    engine: EngineConfig = EngineConfig()
    sam2: Sam2Config = Sam2Config()
    segmentation: SegmentationConfig = SegmentationConfig()
    presence: PresenceConfig = PresenceConfig()
    window: WindowConfig = WindowConfig()
    tracking: TrackingConfig = TrackingConfig()
    regrounding: RegroundingConfig = RegroundingConfig()
    queries: QueriesConfig = QueriesConfig()
    outputs: OutputsConfig = OutputsConfig()
    space: SpaceConfig = SpaceConfig()
    node: NodeConfig = NodeConfig()
    cameras: tuple[str, ...] = option(
        (),
        "names of several cameras that share the models, such as [wrist, head]; each has topics of its own, such as "
        "wrist/image and wrist/masks; leave it out for one camera without a name",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", camera_names(self.cameras))
        if self.window.min_frames > self.window.size:
            raise ValueError(
                f"window.min_frames: expected at most window.size ({self.window.size}), got {self.window.min_frames}"
            )


def options(config: DecafConfig) -> Iterator[Option]:
    """Every option of the configuration, in order, by dotted name."""
    for stage in dataclasses.fields(config):
        section = getattr(config, stage.name)
        if not dataclasses.is_dataclass(section):
            yield Option(stage.name, section, **stage.metadata)
            continue
        for field in dataclasses.fields(section):
            yield Option(f"{stage.name}.{field.name}", getattr(section, field.name), **field.metadata)


def replace(config: DecafConfig, changes: Mapping[str, Any]) -> DecafConfig:
    """A copy with the dotted names in `changes` set. Raises ValueError for an unknown name or a bad value."""
    known = {option.name for option in options(config)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(f"unknown option {shown(', '.join(unknown))}; docs/parameters.md lists all options")
    changed: dict[str, Any] = {}
    for name, value in changes.items():
        stage, _, field = name.partition(".")
        if field:
            value = dataclasses.replace(changed.get(stage, getattr(config, stage)), **{field: value})
        changed[stage] = value
    return dataclasses.replace(config, **changed)
