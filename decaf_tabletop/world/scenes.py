"""Scenes drawn from a seed before anything is simulated: objects, places, events, camera, light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decaf_tabletop.world.camera import DISTANCE_M, DURATION_S, CameraPath, CameraTour, View
from decaf_tabletop.world.clip import CATEGORIES, COLORS, FRAME_PERIOD_S, FRAMES, SIZES, SURFACES, TabletopObject
from decaf_tabletop.world.layout import GAP_M, Event, PlacedObject, apart, boxes, in_view, overlap
from decaf_tabletop.world.routes import FALL_M_S, Route
from decaf_tabletop.world.shapes import EXTENTS

# Radius of a ball in metres; other categories are scaled to about the same area in the image.
NOMINAL_M = {"small": (0.040, 0.046), "large": (0.066, 0.074)}
# Probability of each category as the occluder of a crossing, and of each number of objects.
_OCCLUDERS = {"can": 0.3, "bottle": 0.25, "cube": 0.2, "mug": 0.1, "ball": 0.1, "cone": 0.05}
_COUNTS = {2: 0.2, 3: 0.35, 4: 0.3, 5: 0.15}
# After that many failed attempts at a place or an event the whole scene is drawn anew.
_PLACE_ATTEMPTS, _EVENT_ATTEMPTS, _SCENE_ATTEMPTS = 60, 60, 400


@dataclass(frozen=True)
class Light:
    """ambient, diffuse: (red, green, blue) in [0, 1]. direction: the direction of the light's rays in the world."""

    ambient: tuple[float, float, float]
    diffuse: tuple[float, float, float]
    direction: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """The plan of a clip.

    Attributes:
        appearance_seed: Seed of the textures.
        table_m: Half width and half depth of the table.
        ground: RGB of the floor below the table, in [0, 1].
        crossing: (occluder, occluded), indices into `objects`; None without a planned occlusion.
        frames: Length of the clip. A CameraPath moves, if at all, during the first FRAMES.
        routes: Motion of each object in a long scene, whose objects have no event; empty in other scenes.
    """

    seed: int
    appearance_seed: int
    objects: tuple[PlacedObject, ...]
    surface: str
    table_m: tuple[float, float]
    ground: tuple[float, float, float]
    camera: CameraPath | CameraTour
    light: Light
    crossing: tuple[int, int] | None = None
    frames: int = FRAMES
    routes: tuple[Route, ...] = ()


def sample_scene(seed: int, crossing: bool = False, attempt: int = 0) -> Scene:
    """Draws the scene of a seed (>= 0).

    crossing: one object slides left or right in front of another. Only rendering shows whether it hides enough;
    another `attempt` (>= 0) gives another scene. Raises RuntimeError if no scene fits.
    """
    rng = np.random.default_rng([seed, attempt, int(crossing)])
    count = int(rng.choice(list(_COUNTS), p=list(_COUNTS.values())))
    still = not crossing and rng.uniform() < 0.3
    movers = 0 if still else int(rng.choice([1, 2], p=[0.65, 0.35])) - int(crossing)
    # Drawn before the search for a fit: drops nearly always fit and long slides seldom do, which would bias the kinds.
    kinds = rng.choice(["slide", "stop", "drop"], movers, p=[0.45, 0.27, 0.28]).tolist()
    same_color, same_category = rng.uniform() < 0.25, rng.uniform() < 0.15
    moving_camera = rng.uniform() < 0.3
    surface = SURFACES[rng.integers(len(SURFACES))]
    for _ in range(_SCENE_ATTEMPTS):
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
        raise RuntimeError(f"seed {seed}: no scene with {count} objects found in {_SCENE_ATTEMPTS} attempts")
    order = rng.permutation(count)
    ground = rgb(rng.uniform(0.25, 0.75) * rng.uniform(0.85, 1.0, 3))
    return Scene(
        seed=seed,
        appearance_seed=int(rng.integers(2**31)),
        objects=tuple(placed[index] for index in order),
        surface=surface,
        table_m=(float(rng.uniform(0.6, 0.85)), float(rng.uniform(0.46, 0.62))),
        ground=ground,
        camera=camera,
        light=draw_light(rng),
        crossing=(int(np.flatnonzero(order == 0)[0]), int(np.flatnonzero(order == 1)[0])) if crossing else None,
    )


def _camera(rng: np.random.Generator, moving: bool, crossing: bool) -> CameraPath:
    # Objects occlude each other more from a low camera.
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


def draw_light(rng: np.random.Generator) -> Light:
    ambient, diffuse = rng.uniform(0.52, 0.68), rng.uniform(0.34, 0.5)
    warmth = rng.uniform(-0.05, 0.05)
    tint = np.array([1 + warmth, 1.0, 1 - warmth])
    angle = rng.uniform(0, 2 * math.pi)
    slant = rng.uniform(0.3, 1.0)
    return Light(
        rgb(ambient * tint),
        rgb(diffuse * tint),
        (slant * math.cos(angle), slant * math.sin(angle), -1.0),
    )


def rgb(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _things(
    rng: np.random.Generator, count: int, same_color: bool, same_category: bool, crossing: bool
) -> list[tuple[TabletopObject, float]]:
    """Distinct objects with their nominal radii in metres. In a crossing the first object can hide the second."""
    while True:
        categories = rng.choice(CATEGORIES, count).tolist()
        colors = rng.choice(COLORS, count).tolist()
        sizes = rng.choice(SIZES, count).tolist()
        if crossing:
            categories[0] = str(rng.choice(list(_OCCLUDERS), p=list(_OCCLUDERS.values())))
            categories[1] = str(rng.choice(["ball", "cube", "can", "plate", "cone", "mug"]))
            sizes[:2] = ["large", "small"]
        if same_color:
            colors[-1] = colors[0]
        if same_category:
            categories[0 if crossing else -1] = categories[1 if crossing else 0]
        if len(set(zip(categories, colors, sizes))) < count:
            continue
        return draw_extents(rng, categories, colors, sizes)


def draw_extents(
    rng: np.random.Generator, categories: Sequence[str], colors: Sequence[str], sizes: Sequence[str]
) -> list[tuple[TabletopObject, float]]:
    """Objects of these categories, colours and size classes, each with its nominal size in metres."""
    things = []
    for category, color, size in zip(categories, colors, sizes):
        nominal = float(rng.uniform(*NOMINAL_M[size]))
        radius, height = EXTENTS[category]
        things.append((TabletopObject(category, color, size, radius * nominal, height * nominal), nominal))
    return things


def draw_object(
    rng: np.random.Generator, azimuth_deg: float, thing: TabletopObject, nominal: float, place: np.ndarray
) -> PlacedObject:
    """An object at rest with a random yaw and pattern. azimuth_deg: that of the camera."""
    yaw = rng.uniform(-math.pi, math.pi)
    if thing.category == "mug":
        # The handle points to the left or right of the view.
        azimuth = math.radians(azimuth_deg)
        yaw = azimuth + math.radians(rng.uniform(-50, 50)) + rng.choice([0, math.pi])
    pattern = str(rng.choice(["rings", "bars", "dots"])) if rng.uniform() < 0.3 else "plain"
    return PlacedObject(thing, nominal, (float(place[0]), float(place[1])), float(yaw), pattern, None)


def _with_event(rng: np.random.Generator, placed: PlacedObject, event: Event) -> PlacedObject:
    pattern = placed.pattern
    if placed.thing.category == "ball" and pattern == "plain" and event.kind != "drop":
        pattern = str(rng.choice(["rings", "bars", "dots"]))  # rolling would be invisible on a plain ball
    return PlacedObject(placed.thing, placed.nominal_m, placed.place_m, placed.yaw_rad, pattern, event)


def _place(
    rng: np.random.Generator,
    camera: CameraPath,
    things: list[tuple[TabletopObject, float]],
    placed: list[PlacedObject],
) -> list[PlacedObject] | None:
    """Places all remaining things beside those in `placed`, which keep their place; None if there is no room."""
    placed = list(placed)
    placed_boxes = [boxes(camera, other) for other in placed]
    for thing, nominal in things[len(placed) :]:
        for _ in range(_PLACE_ATTEMPTS):
            candidate = draw_object(
                rng, camera.start.azimuth_deg, thing, nominal, rng.uniform((-0.3, -0.2), (0.3, 0.3))
            )
            candidate_boxes = boxes(camera, candidate)
            if (
                in_view(candidate_boxes)
                and all(apart(candidate, other) for other in placed)
                and all(overlap(candidate_boxes[0], other[0]) < 0.15 for other in placed_boxes)
            ):
                placed.append(candidate)
                placed_boxes.append(candidate_boxes)
                break
        else:
            return None
    return placed


def _set_in_motion(
    rng: np.random.Generator, camera: CameraPath, placed: list[PlacedObject], kinds: list[str]
) -> list[PlacedObject] | None:
    """Gives a different resting object an event of each kind in `kinds`; None if no free path is found."""
    placed = list(placed)
    resting = [index for index, other in enumerate(placed) if other.event is None]
    for index, kind in zip(rng.permutation(resting), kinds):
        for _ in range(_EVENT_ATTEMPTS):
            candidate = _with_event(rng, placed[index], _event(rng, camera, kind))
            others = [other for other in placed if other is not placed[index]]
            candidate_boxes = boxes(camera, candidate)
            if not in_view(candidate_boxes) or not all(apart(candidate, other) for other in others):
                continue
            if all(overlap(candidate_boxes[-1], boxes(camera, other)[-1]) < 0.4 for other in others):
                placed[index] = candidate
                break
        else:
            return None
    return placed


def _event(rng: np.random.Generator, camera: CameraPath, kind: str) -> Event:
    if kind == "drop":
        lands = FRAME_PERIOD_S * rng.uniform(6.5, 25.5)
        # Starts above the image, unless it lands too early for that height.
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
    """World x and y of a velocity to the left or right in the image, or else towards or away from the camera."""
    angle = math.radians(camera.start.azimuth_deg + rng.uniform(-14, 14)) + (0 if sideways else math.pi / 2)
    angle += rng.choice([0, math.pi])
    return float(speed * math.cos(angle)), float(speed * math.sin(angle))


def _crossing_pair(
    rng: np.random.Generator, camera: CameraPath, things: list[tuple[TabletopObject, float]]
) -> list[PlacedObject] | None:
    """The first thing slides past the second, nearer to the camera; None if no such pair stays in view and apart."""
    (occluder, occluder_nominal), (occluded, occluded_nominal) = things[:2]
    reach = occluder.radius_m + occluded.radius_m
    azimuth = math.radians(camera.start.azimuth_deg)
    right, away = np.array([math.cos(azimuth), math.sin(azimuth)]), np.array([-math.sin(azimuth), math.cos(azimuth)])
    for _ in range(_PLACE_ATTEMPTS):
        place = rng.uniform((-0.12, 0.0), (0.12, 0.25))
        victim = draw_object(rng, camera.start.azimuth_deg, occluded, occluded_nominal, place)
        ahead = reach + rng.uniform(1.3, 2.5) * GAP_M
        # Distances along its path from the start to the victim, and on to the end.
        before = reach * rng.uniform(1.15, 1.8)
        after = reach * rng.uniform(1.2, 1.9)
        speed = rng.uniform(0.12, 0.22)
        duration = (before + after) / speed
        if duration > DURATION_S - 0.3:
            continue
        start = rng.uniform(0.0, DURATION_S - duration)
        side = rng.choice([-1, 1])
        velocity = side * speed * right
        event = Event("slide", start, start + duration, (float(velocity[0]), float(velocity[1])))
        start_place = place - ahead * away - side * before * right
        mover = draw_object(rng, camera.start.azimuth_deg, occluder, occluder_nominal, start_place)
        mover = _with_event(rng, mover, event)
        pair = [mover, victim]
        if all(in_view(boxes(camera, other)) for other in pair) and apart(*pair):
            return pair
    return None
