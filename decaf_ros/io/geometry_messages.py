"""Points and poses as messages of geometry_msgs. `make`: see `decaf_ros.io.messages`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def point(make: Callable[..., Any], xyz: Sequence[float] | np.ndarray) -> Any:
    """geometry_msgs/Point, metres."""
    return make("geometry_msgs/msg/Point", **_named("xyz", xyz))


def vector(make: Callable[..., Any], xyz: Sequence[float] | np.ndarray) -> Any:
    """geometry_msgs/Vector3."""
    return make("geometry_msgs/msg/Vector3", **_named("xyz", xyz))


def pose(make: Callable[..., Any], xyz: np.ndarray, quaternion: np.ndarray) -> Any:
    """geometry_msgs/Pose. quaternion: x, y, z, w."""
    orientation = make("geometry_msgs/msg/Quaternion", **_named("xyzw", quaternion))
    return make("geometry_msgs/msg/Pose", position=point(make, xyz), orientation=orientation)


def _named(names: str, values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values)}
