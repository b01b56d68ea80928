"""Planned routes of objects through a long scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GRAVITY = 9.81
# Terminal speed of a dropped object.
FALL_M_S = 0.5
# Objects that are held this high are outside the image of every camera of a long scene.
AWAY_M = 0.6
_RAMP_S = 0.15
_FALL_CONSTANT_S = FALL_M_S / GRAVITY


@dataclass(frozen=True)
class Leg:
    """One motion of one object to `end_m`: x, y on the table and the height of its base above it, in metres.

    kind: "slide" (a ball rolls), "lift", "carry" (at height AWAY_M), "lower", or "drop" (free fall with drag).
    """

    kind: str
    start_s: float
    end_s: float
    end_m: tuple[float, float, float]


@dataclass(frozen=True)
class Route:
    """The planned motion of one object: where it starts, as in `Leg.end_m`, and its legs in order of time."""

    start_m: tuple[float, float, float]
    legs: tuple[Leg, ...] = ()

    @property
    def end_m(self) -> tuple[float, float, float]:
        return self.legs[-1].end_m if self.legs else self.start_m

    def with_legs(self, *legs: Leg) -> Route:
        return Route(self.start_m, (*self.legs, *legs))

    def at(self, times_s: np.ndarray) -> np.ndarray:
        """(T, 3) planned positions in metres, as in `Leg.end_m`."""
        positions = np.tile(np.array(self.start_m), (len(times_s), 1))
        begin = np.array(self.start_m)
        for leg in self.legs:
            end = np.array(leg.end_m)
            moving = times_s >= leg.start_s
            progress = _progress(times_s[moving] - leg.start_s, leg.end_s - leg.start_s)
            positions[moving] = begin + progress[:, None] * (end - begin)
            if leg.kind == "drop":
                fallen = fall_m(times_s[moving] - leg.start_s)
                positions[moving, 2] = np.maximum(begin[2] - fallen, 0.0)
            begin = end
        return positions

    def is_held(self, times_s: np.ndarray) -> np.ndarray:
        """(T,) bool: whether a hand holds the object above the table."""
        held = np.full(len(times_s), self.start_m[2] > 0)
        for leg in self.legs:
            if leg.kind in ("lift", "drop"):
                held[times_s >= leg.start_s] = leg.kind == "lift"
            elif leg.kind == "lower":
                held[times_s >= leg.end_s] = False
        return held


def fall_m(times_s: np.ndarray) -> np.ndarray:
    """Depth fallen after a release, with linear drag for a terminal speed of FALL_M_S."""
    fallen: np.ndarray = FALL_M_S * (times_s - _FALL_CONSTANT_S * (1 - np.exp(-times_s / _FALL_CONSTANT_S)))
    return fallen


def fall_s(height_m: float) -> float:
    """Duration of a fall from a height that is large against the braking distance."""
    return height_m / FALL_M_S + _FALL_CONSTANT_S


def travel_s(distance_m: float, speed_m_s: float) -> float:
    """Duration of a leg with its ramps."""
    return distance_m / speed_m_s + _RAMP_S


def _progress(times_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Share of the way in [0, 1]: constant speed between two ramps."""
    ramp = min(_RAMP_S, duration_s / 2)
    t = np.clip(times_s, 0.0, duration_s)
    cruise = 1 / (duration_s - ramp)
    begin, end = np.minimum(t, ramp), np.maximum(t - (duration_s - ramp), 0.0)
    middle = np.clip(t - ramp, 0.0, duration_s - 2 * ramp)
    progress: np.ndarray = cruise * (begin**2 / (2 * ramp) + middle + end - end**2 / (2 * ramp))
    return progress
