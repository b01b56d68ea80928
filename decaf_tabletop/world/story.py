"""The scripted scene and the questions of `make demo`."""

from __future__ import annotations

from decaf_tabletop.world.camera import DISTANCE_M, CameraPath, View
from decaf_tabletop.world.clip import Expression, TabletopObject
from decaf_tabletop.world.layout import Event, PlacedObject
from decaf_tabletop.world.routes import FALL_M_S
from decaf_tabletop.world.scenes import Light, Scene
from decaf_tabletop.world.shapes import EXTENTS

FRAMES = 276
# Not drawn from a seed.
NO_SEED = -1
_VIEW = View(0.0, 40.0, 1.08 * DISTANCE_M, (0.0, 0.04, 0.02))
_BALL, _MUG, _CAN, _CUBE, _CONE = range(5)
_NOMINAL_M = {"small": 0.044, "large": 0.067}

# Each question concerns about the last three seconds.
QUESTIONS = (
    Expression("the purple cone", "explicit", (_CONE,), "cone", 3.2),
    Expression("the object that moved right", "motion", (_BALL,), "ball", 6.2),
    Expression("the largest object", "size", (_CAN,), "can", 9.2),
    Expression("the one that was dropped", "temporal", (_MUG,), "mug", 12.2),
    Expression("the green mug", "absent", (), "", 15.2),
    # The can later hides it for a second and uncovers it again.
    Expression("the white object", "attribute", (_CUBE,), "cube", 17.2),
    Expression("the one that stopped", "temporal", (_CAN,), "can", 22.4),
    Expression("the object left of the cone", "relation", (_MUG,), "mug", 25.2),
)


def story() -> Scene:
    """A red ball rolls to the right far behind a purple cone. A blue mug is dropped. A large green can slides to the
    left in front of a white cube and stops. The camera stands still."""
    return Scene(
        seed=NO_SEED,
        appearance_seed=3,
        objects=(
            _placed("ball", "red", "small", (-0.19, 0.28), "rings", Event("slide", 4.4, 6.9, (0.145, 0.0))),
            _placed("mug", "blue", "small", (-0.185, -0.06), "plain", _drop(11.0), -0.6),
            _placed("can", "green", "large", (0.17, -0.055), "plain", Event("slide", 19.2, 21.4, (-0.092, 0.0))),
            _placed("cube", "white", "small", (0.082, 0.06), "plain", None, 0.5),
            _placed("cone", "purple", "small", (-0.115, 0.06), "plain", None),
        ),
        surface="wood",
        table_m=(0.7, 0.55),
        ground=(0.4, 0.4, 0.38),
        camera=CameraPath(_VIEW, _VIEW),
        light=Light((0.6, 0.6, 0.6), (0.42, 0.42, 0.42), (0.4, 0.5, -1.0)),
        frames=FRAMES,
    )


def _drop(lands_s: float, height_m: float = 0.5) -> Event:
    return Event("drop", lands_s - height_m / FALL_M_S, lands_s, (0.0, 0.0))


def _placed(
    category: str,
    color: str,
    size: str,
    place_m: tuple[float, float],
    pattern: str,
    event: Event | None,
    yaw_rad: float = 0.0,
) -> PlacedObject:
    nominal = _NOMINAL_M[size]
    radius, height = EXTENTS[category]
    thing = TabletopObject(category, color, size, radius * nominal, height * nominal)
    return PlacedObject(thing, nominal, place_m, yaw_rad, pattern, event)
