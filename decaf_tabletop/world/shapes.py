"""Meshes of the objects, mostly surfaces of revolution about the vertical axis.

Texture rows run along the profile, so each material (paint, metal, dark inside) is a range of rows. Lengths are in
units of the object's nominal radius (`scenes.NOMINAL_M`), which gives all categories about the same silhouette area at
the same size. The origin is the centre of the smallest upright cylinder around the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Radius and height of the smallest upright cylinder around each category.
EXTENTS = {
    "ball": (1.0, 2.0),
    "cube": (0.76 * math.sqrt(2), 1.52),
    "can": (0.74, 1.95),
    "bottle": (0.62, 3.1),
    "plate": (1.2, 0.3),
    "cone": (0.98, 2.1),
    "mug": (1.08, 1.5),
}
# Materials of a strip. Only PAINT carries a pattern; PLAIN is paint without one.
PAINT, PLAIN, METAL, DARK = "paint", "plain", "metal", "dark"
MUG_BODY = (0.74, -0.34)  # radius of the mug's body and x of its axis; the handle is at +x
_SEGMENTS = 32
# This share of the texture's rows, at its start, is plain paint for parts not made by revolution (a handle).
PLAIN_ROWS = 0.06


@dataclass(frozen=True)
class Mesh:
    """A textured triangle mesh.

    Attributes:
        vertices, normals: (v, 3) float64.
        coordinates: (v, 2) float64, texture coordinates in [0, 1]: around the axis, along the profile.
        faces: (f, 3) int, counter-clockwise seen from outside.
        rows: (begin, end, material) of each strip of the profile, as texture coordinates in [0, 1].
    """

    vertices: np.ndarray
    normals: np.ndarray
    coordinates: np.ndarray
    faces: np.ndarray
    rows: tuple[tuple[float, float, str], ...]


def mesh(category: str) -> Mesh:
    """The mesh of a category. Raises KeyError for a category outside CATEGORIES."""
    return _MESHES[category]


def _revolve(strips: list[tuple[list[tuple[float, float]], str]], axis_x: float = 0.0) -> Mesh:
    """A surface of revolution about the vertical axis at x = axis_x.

    strips: (radius, height) points and material of each smooth part, from the bottom's centre outwards and up. Adjacent
    strips meet in a sharp edge.
    """
    lengths = [sum(math.dist(a, b) for a, b in zip(points, points[1:])) for points, _ in strips]
    total = sum(lengths)
    vertices, normals, coordinates, faces, rows = [], [], [], [], []
    angles = np.linspace(0, 2 * math.pi, _SEGMENTS + 1)
    begin, count = PLAIN_ROWS, 0
    for (points, material), length in zip(strips, lengths):
        profile = np.array(points, float)
        along = np.gradient(profile, axis=0) if len(profile) > 2 else np.repeat(np.diff(profile, axis=0), 2, axis=0)
        outwards = np.stack([along[:, 1], -along[:, 0]], axis=1)
        outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
        steps = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(profile, axis=0), axis=1))]) / length
        share = (1 - PLAIN_ROWS) * length / total
        for (radius, height), (radial, up), step in zip(profile, outwards, steps):
            cos, sin, one = np.cos(angles), np.sin(angles), np.ones_like(angles)
            vertices.append(np.stack([radius * cos + axis_x, radius * sin, height * one], axis=1))
            normals.append(np.stack([radial * cos, radial * sin, up * one], axis=1))
            coordinates.append(np.stack([angles / (2 * math.pi), (begin + share * step) * one], axis=1))
        for row in range(len(profile) - 1):
            low = count + row * (_SEGMENTS + 1) + np.arange(_SEGMENTS)
            high = low + _SEGMENTS + 1
            # A triangle with two corners on the axis has no area.
            if profile[row, 0] > 1e-9:
                faces.append(np.stack([low, low + 1, high + 1], axis=1))
            if profile[row + 1, 0] > 1e-9:
                faces.append(np.stack([low, high + 1, high], axis=1))
        rows.append((begin, begin + share, material))
        begin += share
        count += len(profile) * (_SEGMENTS + 1)
    return Mesh(
        np.concatenate(vertices),
        np.concatenate(normals),
        np.concatenate(coordinates),
        np.concatenate(faces),
        tuple(rows),
    )


def _ball() -> Mesh:
    arc = [(math.sin(a), -math.cos(a)) for a in np.linspace(0, math.pi, 19)]
    arc[0], arc[-1] = (0.0, -1.0), (0.0, 1.0)
    return _revolve([(arc, PAINT)])


def _cube() -> Mesh:
    half = 0.76
    vertices: list[np.ndarray] = []
    normals, coordinates, faces = [], [], []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            normal = np.zeros(3)
            normal[axis] = sign
            across = np.roll([1.0, 0, 0], (axis + 1) % 3)
            up = np.cross(normal, across)
            corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            faces.append(np.array([[0, 1, 2], [0, 2, 3]]) + len(vertices) * 4)
            vertices.append(np.array([half * (normal + a * across + b * up) for a, b in corners]))
            normals.append(np.tile(normal, (4, 1)))
            coordinates.append(
                np.array([[(a + 1) / 2, PLAIN_ROWS + (1 - PLAIN_ROWS) * (b + 1) / 2] for a, b in corners])
            )
    return Mesh(
        np.concatenate(vertices),
        np.concatenate(normals),
        np.concatenate(coordinates),
        np.concatenate(faces),
        ((PLAIN_ROWS, 1.0, PAINT),),
    )


def _can() -> Mesh:
    radius, half = EXTENTS["can"][0], EXTENTS["can"][1] / 2
    rim, inner = 0.14, radius - 0.1
    return _revolve(
        [
            ([(0, -half), (radius, -half)], METAL),
            ([(radius, -half), (radius, rim - half)], METAL),
            ([(radius, rim - half), (radius, half - rim)], PAINT),
            ([(radius, half - rim), (radius, half)], METAL),
            ([(radius, half), (inner, half)], METAL),
            ([(inner, half), (inner, half - 0.06)], METAL),
            ([(inner, half - 0.06), (0, half - 0.06)], METAL),
        ]
    )


def _bottle() -> Mesh:
    radius, half = EXTENTS["bottle"][0], EXTENTS["bottle"][1] / 2
    neck, shoulder, cap = 0.21, 0.35, half - 0.32
    curve = [
        (neck + (radius - neck) * (1 + math.cos(math.pi * p)) / 2, shoulder + 0.6 * p) for p in np.linspace(0, 1, 8)
    ]
    return _revolve(
        [
            ([(0, -half), (radius, -half)], PLAIN),
            ([(radius, -half), (radius, shoulder)], PAINT),
            (curve, PLAIN),
            ([(neck, shoulder + 0.6), (neck, cap)], PLAIN),
            ([(neck, cap), (neck + 0.06, cap)], METAL),
            ([(neck + 0.06, cap), (neck + 0.06, half)], METAL),
            ([(neck + 0.06, half), (0, half)], METAL),
        ]
    )


def _plate() -> Mesh:
    radius, half = EXTENTS["plate"][0], EXTENTS["plate"][1] / 2
    return _revolve(
        [
            ([(0, -half), (0.7, -half)], PLAIN),
            ([(0.7, -half), (radius, half - 0.06)], PLAIN),
            ([(radius, half - 0.06), (radius, half)], PLAIN),
            ([(radius, half), (radius - 0.07, half)], PLAIN),
            ([(radius - 0.07, half), (0.72, -half + 0.07)], PAINT),
            ([(0.72, -half + 0.07), (0, -half + 0.07)], PLAIN),
        ]
    )


def _cone() -> Mesh:
    radius, half = EXTENTS["cone"][0], EXTENTS["cone"][1] / 2
    tip = 0.04
    strips = [([(0, -half), (radius, -half)], PLAIN), ([(radius, -half), (tip, half)], PAINT)]
    return _revolve([*strips, ([(tip, half), (0, half)], PLAIN)])


def _mug() -> Mesh:
    outer, half = EXTENTS["mug"][0], EXTENTS["mug"][1] / 2
    radius, axis_x = MUG_BODY
    inner = radius - 0.1
    body = _revolve(
        [
            ([(0, -half), (radius, -half)], PLAIN),
            ([(radius, -half), (radius, half)], PAINT),
            ([(radius, half), (inner, half)], PLAIN),
            ([(inner, half), (inner, half - 0.35)], DARK),
            ([(inner, half - 0.35), (0, half - 0.35)], DARK),
        ],
        axis_x,
    )
    # The handle: a tube along an arc in the plane y = 0 with its ends inside the wall.
    thick, begin = 0.11, axis_x + radius - 0.05
    reach, rise = outer - thick - begin, 0.46
    vertices, normals = [], []
    around = np.linspace(0, 2 * math.pi, 9)
    for angle in np.linspace(-math.pi / 2, math.pi / 2, 13):
        centre = np.array([begin + reach * math.cos(angle), 0, rise * math.sin(angle)])
        ahead = np.array([-reach * math.sin(angle), 0, rise * math.cos(angle)])
        side = np.array([ahead[2], 0, -ahead[0]]) / np.linalg.norm(ahead)
        normal = np.cos(around)[:, None] * side + np.sin(around)[:, None] * np.array([0, 1.0, 0])
        vertices.append(centre + thick * normal)
        normals.append(normal)
    low = (np.arange(12)[:, None] * 9 + np.arange(8)).reshape(-1) + len(body.vertices)
    faces = np.concatenate([np.stack([low, low + 1, low + 10], axis=1), np.stack([low, low + 10, low + 9], axis=1)])
    return Mesh(
        np.concatenate([body.vertices, *vertices]),
        np.concatenate([body.normals, *normals]),
        np.concatenate([body.coordinates, np.full((13 * 9, 2), (0.5, PLAIN_ROWS / 2))]),
        np.concatenate([body.faces, faces]),
        body.rows,
    )


_MESHES = {
    "ball": _ball(),
    "cube": _cube(),
    "can": _can(),
    "bottle": _bottle(),
    "plate": _plate(),
    "cone": _cone(),
    "mug": _mug(),
}
