"""What happens in a clip, decided by its seed before anything is simulated: objects, places, events, camera, light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from decaf_tabletop.world.camera import DISTANCE_M, DURATION_S, CameraPath, View
from decaf_tabletop.world.clip import CATEGORIES, COLORS, FRAME_PERIOD_S, FRAMES, SIZES, SURFACES, TabletopObject
from decaf_tabletop.world.layout import GAP_M, Event, PlacedObject, apart, boxes, in_view, overlap
from decaf_tabletop.world.shapes import EXTENTS

# Half the width of a ball; that of the other categories is chosen for about the same area in the image.
NOMINAL_M = {"small": (0.040, 0.046), "large": (0.066, 0.074)}
FALL_M_S = 0.5
# What hides other things, and how often.
_PASSING = {"can": 0.3, "bottle": 0.25, "cube": 0.2, "mug": 0.1, "ball": 0.1, "cone": 0.05}
_COUNTS = {2: 0.2, 3: 0.35, 4: 0.3, 5: 0.15}
# Attempts, before the whole scene is drawn anew.
_PLACES, _EVENTS, _SCENES = 60, 60, 400


@dataclass(frozen=True)
class Light:
    """ambient, diffuse: (red, green, blue) in [0, 1]; direction: where the light goes."""

    ambient: tuple[float, float, float]
    diffuse: tuple[float, float, float]
    direction: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """appearance_seed: of the textures. crossing: (who passes, whom it hides), indices into `objects`; None where no
    such thing is meant to happen. table_m: half width and half depth; ground: RGB of the floor below, in [0, 1].
    frames: of the clip; its camera moves, if at all, during the first FRAMES."""

    seed: int
    appearance_seed: int
    objects: tuple[PlacedObject, ...]
    surface: str
    table_m: tuple[float, float]
    ground: tuple[float, float, float]
    camera: CameraPath
    light: Light
    crossing: tuple[int, int] | None = None
    frames: int = FRAMES


def sample_scene(seed: int, crossing: bool = False, attempt: int = 0) -> Scene:
    """The scene of a seed (>= 0). crossing: one object slides left or right in front of another; whether it hides it
    well is not known before it is rendered, hence `attempt` (>= 0), which gives another scene."""
    rng = np.random.default_rng([seed, attempt, int(crossing)])
    count = int(rng.choice(list(_COUNTS), p=list(_COUNTS.values())))
    still = not crossing and rng.uniform() < 0.3
    movers = 0 if still else int(rng.choice([1, 2], p=[0.65, 0.35])) - int(crossing)
    # Chosen before what fits is looked for: drops fit nearly always, long ways seldom.
    kinds = rng.choice(["slide", "stop", "drop"], movers, p=[0.45, 0.27, 0.28]).tolist()
    same_color, same_category = rng.uniform() < 0.25, rng.uniform() < 0.15
    moving_camera = rng.uniform() < 0.3
    surface = SURFACES[rng.integers(len(SURFACES))]
    for _ in range(_SCENES):
        camera = _camera(rng, moving_camera, crossing)
        things = _things(rng, count, same_color, same_category, crossing)
        placed = _crossing_pair(rng, camera, things) if crossing else []
        if placed is not None:
            placed = _place(rng, camera, things, placed)
        if placed is not None:
            placed = _set_in_motion(rng, camera, placed, kinds)
        if placed is not None:
            break
    else:
        raise RuntimeError(f"seed {seed}: no scene with {count} objects found in {_SCENES} attempts")
    order = rng.permutation(count)
    ground = tuple(float(value) for value in rng.uniform(0.25, 0.75) * rng.uniform(0.85, 1.0, 3))
    return Scene(
        seed=seed,
        appearance_seed=int(rng.integers(2**31)),
        objects=tuple(placed[index] for index in order),
        surface=surface,
        table_m=(float(rng.uniform(0.6, 0.85)), float(rng.uniform(0.46, 0.62))),
        ground=ground,
        camera=camera,
        light=_light(rng),
        crossing=(int(np.flatnonzero(order == 0)[0]), int(np.flatnonzero(order == 1)[0])) if crossing else None,
    )


def _camera(rng: np.random.Generator, moving: bool, crossing: bool) -> CameraPath:
    # From lower down, things hide each other better.
    elevation = rng.uniform(38, 43) if crossing else rng.uniform(38, 55)
    start = View(
        rng.uniform(-12, 12),
        elevation,
        DISTANCE_M * rng.uniform(0.92, 1.08),
        (rng.uniform(-0.02, 0.02), rng.uniform(0.0, 0.04), 0.02),
    )
    if not moving:
        return CameraPath(start, start)
    turn = rng.uniform(3, 8) * rng.choice([-1, 1])
    pan = rng.uniform(-0.025, 0.025, 2)
    end = View(
        start.azimuth_deg + turn,
        float(np.clip(elevation + rng.uniform(-3, 3), 38, 55)),
        start.distance_m * rng.uniform(0.96, 1.04),
        (start.target_m[0] + pan[0], start.target_m[1] + pan[1], 0.02),
    )
    return CameraPath(start, end)


def _light(rng: np.random.Generator) -> Light:
    ambient, diffuse = rng.uniform(0.52, 0.68), rng.uniform(0.34, 0.5)
    warmth = rng.uniform(-0.05, 0.05)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    angle = rng.uniform(0, 2 * math.pi)
    slant = rng.uniform(0.3, 1.0)
    return Light(
        tuple(float(value) for value in ambient * tint),
        tuple(float(value) for value in diffuse * tint),
        (slant * math.cos(angle), slant * math.sin(angle), -1.0),
    )


def _things(
    rng: np.random.Generator, count: int, same_color: bool, same_category: bool, crossing: bool
) -> list[tuple[TabletopObject, float]]:
    """Objects and their nominal radii, no two alike. For a crossing, the first one can hide the second."""
    while True:
        categories = rng.choice(CATEGORIES, count).tolist()
        colors = rng.choice(COLORS, count).tolist()
        sizes = rng.choice(SIZES, count).tolist()
        if crossing:
            categories[0] = str(rng.choice(list(_PASSING), p=list(_PASSING.values())))
            categories[1] = str(rng.choice(["ball", "cube", "can", "plate", "cone", "mug"]))
            sizes[:2] = ["large", "small"]
        if same_color:
            colors[-1] = colors[0]
        if same_category:
            categories[0 if crossing else -1] = categories[1 if crossing else 0]
        if len(set(zip(categories, colors, sizes))) < count:
            continue
        things = []
        for category, color, size in zip(categories, colors, sizes):
            nominal = float(rng.uniform(*NOMINAL_M[size]))
            radius, height = EXTENTS[category]
            things.append((TabletopObject(category, color, size, radius * nominal, height * nominal), nominal))
        return things


def _placed(rng: np.random.Generator, camera: CameraPath, thing: TabletopObject, nominal: float, place) -> PlacedObject:
    yaw = rng.uniform(-math.pi, math.pi)
    if thing.category == "mug":
        # The handle to the left or right of the camera's view.
        start = math.radians(camera.start.azimuth_deg)
        yaw = start + math.radians(rng.uniform(-50, 50)) + rng.choice([0, math.pi])
    pattern = str(rng.choice(["rings", "bars", "dots"])) if rng.uniform() < 0.3 else "plain"
    return PlacedObject(thing, nominal, (float(place[0]), float(place[1])), float(yaw), pattern, None)


def _with_event(rng: np.random.Generator, placed: PlacedObject, event: Event) -> PlacedObject:
    pattern = placed.pattern
    if placed.thing.category == "ball" and pattern == "plain" and event.kind != "drop":
        pattern = str(rng.choice(["rings", "bars", "dots"]))  # else it could not be seen rolling
    return PlacedObject(placed.thing, placed.nominal_m, placed.place_m, placed.yaw_rad, pattern, event)


def _place(
    rng: np.random.Generator,
    camera: CameraPath,
    things: list[tuple[TabletopObject, float]],
    placed: list[PlacedObject],
) -> list[PlacedObject] | None:
    """All of the things on the table, those that are in `placed` already as they are; None if there is no room."""
    placed = list(placed)
    taken = [boxes(camera, other) for other in placed]
    for thing, nominal in things[len(placed) :]:
        for _ in range(_PLACES):
            candidate = _placed(rng, camera, thing, nominal, rng.uniform((-0.3, -0.2), (0.3, 0.3)))
            found = boxes(camera, candidate)
            if (
                in_view(found)
                and all(apart(candidate, other) for other in placed)
                and all(overlap(found[0], other[0]) < 0.15 for other in taken)
            ):
                placed.append(candidate)
                taken.append(found)
                break
        else:
            return None
    return placed


def _set_in_motion(
    rng: np.random.Generator, camera: CameraPath, placed: list[PlacedObject], kinds: list[str]
) -> list[PlacedObject] | None:
    """An event of each kind for one of those at rest; None if their paths are not free."""
    placed = list(placed)
    idle = [index for index, other in enumerate(placed) if other.event is None]
    for index, kind in zip(rng.permutation(idle), kinds):
        for _ in range(_EVENTS):
            candidate = _with_event(rng, placed[index], _event(rng, camera, kind))
            rest = [other for other in placed if other is not placed[index]]
            found = boxes(camera, candidate)
            if not in_view(found) or not all(apart(candidate, other) for other in rest):
                continue
            if all(overlap(found[-1], boxes(camera, other)[-1]) < 0.4 for other in rest):
                placed[index] = candidate
                break
        else:
            return None
    return placed


def _event(rng: np.random.Generator, camera: CameraPath, kind: str) -> Event:
    if kind == "drop":
        lands = FRAME_PERIOD_S * rng.uniform(6.5, 25.5)
        # From above the view, unless there is no time to fall as far.
        height = rng.uniform(0.35, 0.6)
        return Event("drop", max(0.0, lands - height / FALL_M_S), lands, (0.0, 0.0))
    if kind == "stop":
        start, end = 0.0, DURATION_S * rng.uniform(0.36, 0.64)
    else:
        duration = rng.uniform(0.8, 3.1)
        start = rng.uniform(0.0, max(0.1, DURATION_S - min(duration, 2.4)))
        end = start + duration
    return Event(kind, start, end, _velocity(rng, camera, rng.uniform(0.08, 0.22), rng.uniform() < 0.6))


def _velocity(rng: np.random.Generator, camera: CameraPath, speed: float, sideways: bool) -> tuple[float, float]:
    """Left or right in the image, else towards or away from the camera; in the world's x and y."""
    angle = math.radians(camera.start.azimuth_deg + rng.uniform(-14, 14)) + (0 if sideways else math.pi / 2)
    angle += rng.choice([0, math.pi])
    return float(speed * math.cos(angle)), float(speed * math.sin(angle))


def _crossing_pair(
    rng: np.random.Generator, camera: CameraPath, things: list[tuple[TabletopObject, float]]
) -> list[PlacedObject] | None:
    """The first thing slides past the second one, nearer to the camera; None if it would leave the view."""
    (passing, passing_nominal), (hidden, hidden_nominal) = things[:2]
    azimuth = math.radians(camera.start.azimuth_deg)
    right, away = np.array([math.cos(azimuth), math.sin(azimuth)]), np.array([-math.sin(azimuth), math.cos(azimuth)])
    for _ in range(_PLACES):
        place = rng.uniform((-0.12, 0.0), (0.12, 0.25))
        victim = _placed(rng, camera, hidden, hidden_nominal, place)
        ahead = passing.radius_m + hidden.radius_m + rng.uniform(1.3, 2.5) * GAP_M
        # Starts beside it and ends as far or farther on the other side.
        before = (passing.radius_m + hidden.radius_m) * rng.uniform(1.15, 1.8)
        after = (passing.radius_m + hidden.radius_m) * rng.uniform(1.2, 1.9)
        speed = rng.uniform(0.12, 0.22)
        duration = (before + after) / speed
        if duration > DURATION_S - 0.3:
            continue
        start = rng.uniform(0.0, DURATION_S - duration)
        side = rng.choice([-1, 1])
        event = Event("slide", start, start + duration, tuple(float(value) for value in side * speed * right))
        mover = _placed(rng, camera, passing, passing_nominal, place - ahead * away - side * before * right)
        mover = _with_event(rng, mover, event)
        pair = [mover, victim]
        if all(in_view(boxes(camera, other)) for other in pair) and apart(*pair):
            return pair
    return None
