"""Camera moves of long scenes."""

from __future__ import annotations

import dataclasses

import numpy as np

from decaf_tabletop.world.camera import DISTANCE_M, View
from decaf_tabletop.world.plan import Plan

_TRIES = 60


def turn(rng: np.random.Generator, plan: Plan) -> bool:
    """The camera moves to another view of the table. False if none fits."""
    for _ in range(_TRIES):
        view = _near(rng, plan.view, rng.choice([-1, 1]) * rng.uniform(8, 20))
        if abs(view.azimuth_deg) < 28 and plan.camera_may_rest_at(view):
            end_s = plan.time_s + rng.uniform(1.5, 3.0)
            plan.follow(view, plan.time_s, end_s)
            plan.time_s = end_s
            return True
    return False


def look_away(rng: np.random.Generator, plan: Plan) -> bool:
    """The camera looks beside the scene for seconds and back, maybe from another side. False if that does not fit."""
    right, _ = plan.axes()
    side, x, y = rng.choice([-1, 1]), *plan.view.target_m[:2]
    shift = side * rng.uniform(0.75, 0.9) * right
    aside = dataclasses.replace(plan.view, target_m=(float(x + shift[0]), float(y + shift[1]), plan.view.target_m[2]))
    back = _near(rng, plan.view, rng.uniform(-10, 10)) if rng.uniform() < 0.5 else plan.view
    if not (
        plan.camera_may_rest_at(back)
        and all(plan.out_of_view(index, plan.routes[index].end_m, aside) for index in plan.on_table)
    ):
        return False
    away_s = plan.time_s + rng.uniform(0.9, 1.4)
    back_s = away_s + rng.uniform(1.5, 4.0)
    end_s = back_s + rng.uniform(0.9, 1.4)
    plan.follow(aside, plan.time_s, away_s)
    plan.follow(back, back_s, end_s)
    plan.time_s = end_s
    return True


def _near(rng: np.random.Generator, view: View, turn_deg: float) -> View:
    x, y, z = view.target_m
    return View(
        view.azimuth_deg + turn_deg,
        float(np.clip(view.elevation_deg + rng.uniform(-2, 2), 38, 44)),
        float(np.clip(view.distance_m * rng.uniform(0.97, 1.04), DISTANCE_M, 1.16 * DISTANCE_M)),
        (
            float(np.clip(x + rng.uniform(-0.02, 0.02), -0.03, 0.03)),
            float(np.clip(y + rng.uniform(-0.02, 0.02), 0.01, 0.06)),
            z,
        ),
    )
