"""The hands that move the objects of a long scene in MuJoCo."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from decaf_tabletop.world.routes import FALL_M_S, GRAVITY, Route
from decaf_tabletop.world.world import MASS_KG, TIMESTEP_S, joint_name

# Pull towards the planned position in 1/s, and vertical force per speed in N s/m.
_PULL, _HOLD = 4.0, 25.0


class Hands:
    """Moves the objects of a compiled MuJoCo scene along their routes.

    The drives of x and y follow the plan. A held object is carried by a vertical force; a dropped one falls with drag.
    """

    def __init__(self, model: Any, data: Any, routes: tuple[Route, ...], duration_s: float) -> None:
        self._data = data
        count = math.ceil(duration_s / TIMESTEP_S) + 2
        times = np.arange(count) * TIMESTEP_S
        # (S, n, 3) displacement from the start, as the joints measure it, and (S, n) whether the object is held.
        self._position = np.stack([route.at(times) for route in routes], axis=1)
        self._velocity = np.gradient(self._position, TIMESTEP_S, axis=0)
        self._held = np.stack([route.is_held(times) for route in routes], axis=1)
        self._falling = (self._position[..., 2] > 0) & ~self._held
        joints = [[model.joint(joint_name(index, axis)) for axis in "xyz"] for index in range(len(routes))]
        self._qpos = np.array([[joint.qposadr[0] for joint in axes] for axes in joints])
        self._dofs = np.array([[joint.dofadr[0] for joint in axes] for axes in joints])
        drives = [[model.actuator(joint_name(index, axis)).id for axis in "xy"] for index in range(len(routes))]
        self._drives = np.array(drives)
        start = np.array([route.start_m for route in routes])
        # The joints of x and y start at 0 on the table.
        self._origin = np.concatenate([start[:, :2], np.zeros((len(routes), 1))], axis=1)
        data.qpos[self._qpos[:, 2]] = start[:, 2]

    def apply(self, time_s: float) -> None:
        """Sets controls and forces for the next step."""
        step = round(time_s / TIMESTEP_S)
        data = self._data
        error = self._position[step] - self._origin - data.qpos[self._qpos]
        speed = self._velocity[step] + _PULL * error
        data.ctrl[self._drives] = speed[:, :2]
        vertical = data.qvel[self._dofs[:, 2]]
        carry = MASS_KG * GRAVITY + _HOLD * (speed[:, 2] - vertical)
        drag = -MASS_KG * GRAVITY / FALL_M_S * vertical
        data.qfrc_applied[self._dofs[:, 2]] = np.select([self._held[step], self._falling[step]], [carry, drag], 0.0)
