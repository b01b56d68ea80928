"""MuJoCo model of a scene. Each object has a textured mesh for rendering and a primitive geom for collisions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from decaf_tabletop.world.camera import FOVY_DEG
from decaf_tabletop.world.clip import IMAGE_HW
from decaf_tabletop.world.layout import PlacedObject
from decaf_tabletop.world.routes import FALL_M_S, GRAVITY
from decaf_tabletop.world.scenes import Scene
from decaf_tabletop.world.shapes import mesh
from decaf_tabletop.world.textures import object_texture, paint, surface_texture

TIMESTEP_S = 0.005
MASS_KG = 0.3
CAMERA = "eye"


def visual_name(index: int) -> str:
    """Name of the rendered geom of `scene.objects[index]`."""
    return f"seen_{index}"


def body_name(index: int) -> str:
    return f"object_{index}"


def joint_name(index: int, axis: str) -> str:
    """Name of a slide joint; axis: "x", "y" or "z" of the world."""
    return f"object_{index}_{axis}"


def has_drive(placed: PlacedObject) -> bool:
    """Whether velocity servos drive the object's x and y: true for all but dropped objects."""
    return placed.event is None or placed.event.kind != "drop"


def world_xml(scene: Scene) -> tuple[str, dict[str, bytes]]:
    """The model as MJCF, and its texture files by name."""
    rng = np.random.default_rng(scene.appearance_seed)
    files = {"table.png": _png(surface_texture(scene.surface, rng))}
    assets, bodies, actuators = [], [], []
    for index, placed in enumerate(scene.objects):
        texture = object_texture(mesh(placed.thing.category), paint(placed.thing.color, rng), placed.pattern, rng)
        files[f"object_{index}.png"] = _png(texture)
        assets.append(_mesh_xml(index, placed))
        bodies.append(_body_xml(index, placed))
        if has_drive(placed):
            for name in (joint_name(index, axis) for axis in "xy"):
                actuators.append(f'<velocity joint="{name}" name="{name}" kv="800" forcerange="-4 4"/>')
    height, width = IMAGE_HW
    half_width, half_depth = scene.table_m
    light = scene.light
    # The texture covers 1.2 m whatever the size of the table.
    repeat = f"{half_width / 0.6:.5f} {half_depth / 0.6:.5f}"
    xml = f"""<mujoco model="tabletop">
<compiler angle="radian"/>
<option timestep="{TIMESTEP_S}" gravity="0 0 {-GRAVITY}" integrator="implicitfast"/>
<statistic extent="1" center="0 0 0"/>
<visual>
  <global offwidth="{width}" offheight="{height}"/>
  <quality offsamples="0" shadowsize="0"/>
  <map znear="0.02" zfar="30"/>
  <headlight ambient="{_numbers(light.ambient)}" diffuse="0 0 0" specular="0 0 0"/>
</visual>
<asset>
  <texture name="table" type="2d" file="table.png"/>
  <material name="table" texture="table" texrepeat="{repeat}" specular="0" shininess="0" reflectance="0"/>
  {" ".join(assets)}
</asset>
<worldbody>
  <light directional="true" castshadow="false" dir="{_numbers(light.direction)}" ambient="0 0 0"
    diffuse="{_numbers(light.diffuse)}" specular="0.25 0.25 0.25"/>
  <camera name="{CAMERA}" fovy="{FOVY_DEG}"/>
  <geom name="table" type="plane" size="{half_width} {half_depth} 0.1" material="table" friction="0.3 0.005 0.0001"/>
  <geom name="floor" type="plane" size="12 12 0.1" pos="0 0 -0.7" rgba="{_numbers(scene.ground)} 1"
    contype="0" conaffinity="0"/>
  {" ".join(bodies)}
</worldbody>
<actuator>{" ".join(actuators)}</actuator>
</mujoco>"""
    return xml, files


def start_height_m(placed: PlacedObject) -> float:
    """Height of the object's centre above the table at the start of the clip.

    A dropped object starts at the height from which it lands at event.end_s: with linear drag its speed approaches
    FALL_M_S with the time constant FALL_M_S / g.
    """
    half = placed.thing.height_m / 2
    if placed.event is None or placed.event.kind != "drop":
        return half
    fall_s, constant_s = placed.event.end_s - placed.event.start_s, FALL_M_S / GRAVITY
    return half + FALL_M_S * (fall_s - constant_s * (1 - math.exp(-fall_s / constant_s)))


def _mesh_xml(index: int, placed: PlacedObject) -> str:
    shape = mesh(placed.thing.category)
    shiny = "0.1" if placed.thing.category == "cone" else "0.4"
    return (
        f'<texture name="paint_{index}" type="2d" file="object_{index}.png"/>'
        f'<material name="paint_{index}" texture="paint_{index}" specular="{shiny}" shininess="0.5" reflectance="0"/>'
        f'<mesh name="shape_{index}" inertia="shell" vertex="{_numbers((placed.nominal_m * shape.vertices).ravel())}" '
        f'normal="{_numbers(shape.normals.ravel())}" texcoord="{_numbers(shape.coordinates.ravel())}" '
        f'face="{" ".join(map(str, shape.faces.ravel()))}"/>'
    )


def _body_xml(index: int, placed: PlacedObject) -> str:
    thing = placed.thing
    half = thing.height_m / 2
    dropped = not has_drive(placed)
    ball = thing.category == "ball"
    if ball:
        collision_geom = f'type="sphere" size="{thing.radius_m}"'
    elif thing.category == "cube":
        collision_geom = f'type="box" size="{_numbers([half] * 3)}"'
    else:
        collision_geom = f'type="cylinder" size="{thing.radius_m} {half}"'
    # Drag for a terminal speed of FALL_M_S.
    damping = MASS_KG * GRAVITY / FALL_M_S if dropped else 1.0
    # Joint axes are given in the body frame; undo the yaw to align them with the world.
    cos, sin = math.cos(placed.yaw_rad), math.sin(placed.yaw_rad)
    joints = "".join(
        f'<joint name="{joint_name(index, axis)}" type="slide" axis="{direction}" damping="{drag}"/>'
        for axis, direction, drag in (("x", f"{cos} {-sin} 0", 0), ("y", f"{sin} {cos} 0", 0), ("z", "0 0 1", damping))
    )
    rotation_joint = (
        f'<joint type="ball" damping="{0.002 if dropped else 0.00001}"/>'
        if ball
        else '<joint type="hinge" axis="0 0 1" damping="0.01"/>'
    )
    friction = "0.9 0.005 0.0001" if ball else "0.3 0.005 0.0001"
    return (
        f'<body name="{body_name(index)}" pos="{_numbers((*placed.place_m, start_height_m(placed)))}" '
        f'euler="0 0 {placed.yaw_rad}">{joints}{rotation_joint}'
        f'<geom name="{visual_name(index)}" type="mesh" mesh="shape_{index}" material="paint_{index}" mass="0" '
        f'contype="0" conaffinity="0" group="1"/>'
        f'<geom {collision_geom} mass="{MASS_KG}" group="4" friction="{friction}" priority="1"/></body>'
    )


def _png(rgb: np.ndarray) -> bytes:
    return cv2.imencode(".png", rgb[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)
