"""Long scenes drawn from a seed: the objects at the start, with look-alikes, and a script of events."""

from __future__ import annotations

import dataclasses

import numpy as np

from decaf_tabletop.world.camera import DISTANCE_M, View
from decaf_tabletop.world.clip import (
    CATEGORIES,
    COLORS,
    FRAME_PERIOD_S,
    LEAST_S,
    MOST_S,
    SIZES,
    SURFACES,
    TabletopObject,
)
from decaf_tabletop.world.layout import PlacedObject
from decaf_tabletop.world.plan import TABLE_M, Plan, held_route
from decaf_tabletop.world.routes import Route
from decaf_tabletop.world.scenes import Scene, draw_extents, draw_light, draw_object, rgb
from decaf_tabletop.world.script import Script

# Third entry of the random key; 0 and 1 are the short clips (`sample_scene`).
_LONG_KEY = 2
_PLACE_TRIES, _SCENE_TRIES = 80, 300
_COUNTS = {3: 0.25, 4: 0.45, 5: 0.3}
_HIDERS = ("can", "bottle", "cube", "mug")
_HIDEABLE = ("ball", "cube", "can", "plate", "cone", "mug")
# Every clip has these events.
_NEEDED = frozenset(("hide", "leave", "pass_by"))


def sample_long_scene(seed: int, seconds: float) -> Scene:
    """Draws the long scene of a seed (>= 0).

    Raises ValueError for a length outside LEAST_S..MOST_S, RuntimeError if no scene fits.
    """
    if not LEAST_S <= seconds <= MOST_S:
        raise ValueError(f"seconds: expected {LEAST_S:.0f} to {MOST_S:.0f}, got {seconds:g}")
    for attempt in range(_SCENE_TRIES):
        rng = np.random.default_rng([seed, attempt, _LONG_KEY])
        plan = _opening(rng)
        if plan is not None and _NEEDED <= set(Script(rng, plan, seconds).write()) and not plan.away:
            return _scene(rng, seed, plan, seconds)
    raise RuntimeError(f"seed {seed}: no long scene found in {_SCENE_TRIES} attempts")


def _scene(rng: np.random.Generator, seed: int, plan: Plan, seconds: float) -> Scene:
    return Scene(
        seed=seed,
        appearance_seed=int(rng.integers(2**31)),
        objects=tuple(plan.objects),
        surface=SURFACES[rng.integers(len(SURFACES))],
        table_m=TABLE_M,
        ground=rgb(rng.uniform(0.25, 0.75) * rng.uniform(0.85, 1.0, 3)),
        camera=plan.tour,
        light=draw_light(rng),
        frames=round(seconds / FRAME_PERIOD_S),
        routes=tuple(plan.routes),
    )


def _opening(rng: np.random.Generator) -> Plan | None:
    """The objects at rest; with four or more, the last one may hang above the image. None if there is no room."""
    things = _things(rng, int(rng.choice(list(_COUNTS), p=list(_COUNTS.values()))))
    view = View(
        rng.uniform(-10, 10),
        rng.uniform(38, 43),
        DISTANCE_M * rng.uniform(1.04, 1.14),
        (rng.uniform(-0.02, 0.02), rng.uniform(0.02, 0.05), 0.02),
    )
    plan = Plan((), (), view)
    hangs = len(things) > 3 and rng.uniform() < 0.6
    for thing, nominal in things:
        index = len(plan.objects)
        plan.objects.append(_drawn(rng, view, thing, nominal, np.zeros(2)))
        plan.routes.append(Route((0.0, 0.0, 0.0)))
        if hangs and index == len(things) - 1:
            place = rng.uniform((-0.2, 0.0), (0.2, 0.2))
            plan.away[index] = rng.uniform(2.0, 4.0)
            plan.routes[index] = held_route(place)
        else:
            earlier = range(index)
            places = (rng.uniform((-0.3, -0.18), (0.3, 0.3)) for _ in range(_PLACE_TRIES))
            found = next((xy for xy in places if plan.can_rest(index, xy, earlier)), None)
            if found is None:
                return None
            place = found
            plan.routes[index] = Route((float(place[0]), float(place[1]), 0.0))
        plan.objects[index] = dataclasses.replace(plan.objects[index], place_m=(float(place[0]), float(place[1])))
    return plan


def _things(rng: np.random.Generator, count: int) -> list[tuple[TabletopObject, float]]:
    """Distinct objects with nominal radii: a large one that can hide the small second one, and look-alikes."""
    while True:
        categories, colors, sizes = (rng.choice(values, count).tolist() for values in (CATEGORIES, COLORS, SIZES))
        categories[0], sizes[0] = str(rng.choice(_HIDERS)), "large"
        categories[1], sizes[1] = str(rng.choice(_HIDEABLE)), "small"
        # The third resembles one of the first two, in a longer list the fourth the other one.
        for copy, original in zip(range(2, min(count, 4)), rng.permutation(2)):
            if rng.uniform() < 0.6:
                categories[copy], sizes[copy] = categories[original], sizes[original]
            else:
                colors[copy] = colors[original]
        if len(set(zip(categories, colors, sizes))) < count:
            continue
        things = draw_extents(rng, categories, colors, sizes)
        return [things[index] for index in rng.permutation(count)]


def _drawn(
    rng: np.random.Generator, view: View, thing: TabletopObject, nominal: float, place: np.ndarray
) -> PlacedObject:
    placed = draw_object(rng, view.azimuth_deg, thing, nominal, place)
    if thing.category == "ball" and placed.pattern == "plain":  # rolling would be invisible
        placed = dataclasses.replace(placed, pattern=str(rng.choice(["rings", "bars", "dots"])))
    return placed
