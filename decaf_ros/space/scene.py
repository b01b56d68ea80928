"""The targets of one frame in space, in the camera's frame or another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from decaf_ros.space.camera import Camera
from decaf_ros.space.objects import TargetGeometry
from decaf_ros.types import FrameResult, Place, Target


@dataclass(frozen=True, eq=False)
class Scene:
    """A frame's targets with depth.

    camera: of the frame's image. depth_m: (H, W) float32 in metres, NaN invalid.
    geometry: by target id, in the camera's optical frame.
    frame_id: frame of the outputs. transform: (4, 4), takes points from the camera's optical frame to it.
    """

    result: FrameResult
    camera: Camera
    depth_m: np.ndarray
    geometry: Mapping[int, TargetGeometry]
    frame_id: str
    transform: np.ndarray = field(default_factory=lambda: np.eye(4))

    def in_frame(self, frame_id: str, transform: np.ndarray) -> Scene:
        return dataclasses.replace(self, frame_id=frame_id, transform=transform)

    @property
    def placed(self) -> list[tuple[Target, TargetGeometry]]:
        """The targets that have a position, in the result's order."""
        both = [(target, self.geometry[target.id]) for target in self.result.targets if target.id in self.geometry]
        return [(target, geometry) for target, geometry in both if geometry.position is not None]

    @property
    def best(self) -> tuple[Target, TargetGeometry] | None:
        """The target with a position that has the highest combined score; the first one of equals."""
        return max(self.placed, key=lambda pair: pair[0].scores.combined, default=None)

    def moved(self, points: np.ndarray) -> np.ndarray:
        """Points of the camera's optical frame in the frame of the outputs, (..., 3) float64."""
        return np.asarray(points @ self.transform[:3, :3].T + self.transform[:3, 3])

    def quaternion(self, axes: np.ndarray) -> np.ndarray:
        """(4,) x, y, z, w: a rotation (3, 3) in the camera's optical frame, in the frame of the outputs."""
        return np.asarray(Rotation.from_matrix(self.transform[:3, :3] @ axes).as_quat())


def with_places(result: FrameResult, geometry: Mapping[int, TargetGeometry]) -> FrameResult:
    """The result with the places of the targets that have a position."""

    def located(target: Target) -> Target:
        found = geometry.get(target.id)
        if found is None or found.position is None or found.box is None:
            return target
        place = Place(tuple(found.position.tolist()), tuple(found.box.size.tolist()))
        return dataclasses.replace(target, place=place)

    return dataclasses.replace(result, targets=tuple(map(located, result.targets)))
