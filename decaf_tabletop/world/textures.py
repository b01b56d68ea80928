"""Procedural textures of the table top and the objects."""

from __future__ import annotations

import cv2
import numpy as np

from decaf_tabletop.world.shapes import DARK, METAL, PAINT, Mesh

# RGB, easy to tell apart.
PAINTS = {
    "red": (205, 28, 36),
    "green": (38, 150, 56),
    "blue": (36, 72, 205),
    "yellow": (242, 214, 34),
    "purple": (128, 44, 165),
    "orange": (246, 122, 14),
    "white": (240, 240, 238),
    "black": (30, 30, 33),
}
_SIDE = 512


def surface_texture(surface: str, rng: np.random.Generator) -> np.ndarray:
    """(512, 512, 3) uint8, RGB: a random texture of 1.2 m of table top. Raises KeyError for an unknown surface."""
    picture = _SURFACES[surface](rng) * rng.uniform(0.88, 1.08)
    return np.clip(picture, 0, 255).astype(np.uint8)


def paint(color: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """A random shade of the named colour, RGB."""
    shade = np.array(PAINTS[color], float) * rng.uniform(0.93, 1.05) + rng.normal(0, 3.0, 3)
    red, green, blue = (int(value) for value in np.clip(shade, 0, 255))
    return red, green, blue


def object_texture(mesh: Mesh, rgb: tuple[int, int, int], pattern: str, rng: np.random.Generator) -> np.ndarray:
    """(128, 128, 3) uint8, RGB: rows run along the mesh's profile.

    pattern: "plain", "rings" (along the rows), "bars" (across them) or "dots", in a darker shade of `rgb`, or a lighter
    one if `rgb` is black.
    """
    side = 128
    base = np.array(rgb, float)
    # A weaker contrast on white, or it looks grey.
    mark = base * (0.72 if base.min() > 150 else 0.58) if base.max() > 60 else base + 62
    picture = np.tile(base, (side, side, 1))
    across, along = np.meshgrid((np.arange(side) + 0.5) / side, (np.arange(side) + 0.5) / side)
    phase = rng.uniform()
    for first, last, material in mesh.rows:
        rows = (along >= first) & (along < last)
        if material == METAL:
            picture[rows] = 0.2 * base + 0.8 * np.array((172, 174, 178))
        elif material == DARK:
            picture[rows] = 0.15 * base + 8
        elif material == PAINT and pattern != "plain":
            part = (along - first) / (last - first)
            # An integer number of repeats around the axis leaves no seam.
            if pattern == "rings":
                marked = (part * 3.5 + phase) % 1 < 0.42
            elif pattern == "bars":
                marked = (across * 6 + phase) % 1 < 0.42
            else:
                x, y = (across * 6 + phase) % 1 - 0.5, (part * 3) % 1 - 0.5
                marked = x * x + y * y < 0.085
            picture[rows & marked] = mark
    return picture.clip(0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, cells: int | tuple[int, int], octaves: int = 1) -> np.ndarray:
    """(512, 512) value noise in about [0, 1] with `cells` along (rows, columns); each octave doubles them."""
    rows, columns = (cells, cells) if isinstance(cells, int) else cells
    total, weight = np.zeros((_SIDE, _SIDE), np.float32), 0.0
    for octave in range(octaves):
        coarse = rng.random((min(rows << octave, _SIDE), min(columns << octave, _SIDE)), np.float32)
        total += cv2.resize(coarse, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC) / (1 << octave)
        weight += 1 / (1 << octave)
    return total / weight


def _blend(part: np.ndarray, low: tuple[int, ...], high: tuple[int, ...]) -> np.ndarray:
    """Interpolates from RGB `low` to `high`, with `part` (H, W) clipped to [0, 1]."""
    start, end = np.array(low, float), np.array(high, float)
    blended: np.ndarray = start + np.clip(part, 0, 1)[..., None] * (end - start)
    return blended


def _wood(rng: np.random.Generator) -> np.ndarray:
    planks, per_row = 7, _SIDE // 7 + 1
    grain = 0.55 * _noise(rng, (90, 4), 2) + 0.45 * _noise(rng, (16, 3))
    tone = np.repeat(rng.uniform(-0.16, 0.16, planks), per_row)[:_SIDE, None]
    picture = _blend((grain - 0.25) * 1.6 + tone, (104, 66, 36), (188, 136, 84))
    picture[np.arange(_SIDE) % per_row < 2] *= 0.5
    return picture


def _marble(rng: np.random.Generator) -> np.ndarray:
    warp = _noise(rng, 4, 4)
    veins = np.abs(np.sin((np.linspace(0, 5, _SIDE)[:, None] + np.linspace(0, 3, _SIDE) + 7 * warp) * np.pi / 1.6))
    return _blend(veins**0.45, (70, 74, 82), (196, 198, 202)) * (0.93 + 0.12 * _noise(rng, 6, 2))[..., None]


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = 0.7 * _noise(rng, (70, 170)) + 0.3 * _noise(rng, 10)
    return _blend((blades - 0.2) * 1.6, (44, 70, 26), (122, 152, 66))


def _sand(rng: np.random.Generator) -> np.ndarray:
    ripple = np.sin(np.linspace(0, 2 * np.pi * 14, _SIDE)[:, None] + 9 * _noise(rng, 4))
    grains = rng.random((_SIDE, _SIDE), np.float32)
    return _blend(0.5 + 0.22 * ripple + 0.5 * (grains - 0.5), (176, 148, 104), (226, 204, 160))


def _brick(rng: np.random.Generator) -> np.ndarray:
    tall, wide, joint = 32, 80, 4
    rows, columns = np.indices((_SIDE, _SIDE))
    course = rows // tall
    shifted = columns + (course % 2) * wide // 2
    tones = rng.uniform(0, 1, (_SIDE // tall + 1, _SIDE // wide + 2))
    picture = _blend(0.7 * tones[course, shifted // wide] + 0.4 * _noise(rng, 120), (112, 62, 50), (168, 100, 80))
    picture[(rows % tall < joint) | (shifted % wide < joint)] = (176, 170, 160)
    return picture


def _cloth(rng: np.random.Generator) -> np.ndarray:
    cells = int(rng.integers(12, 17))
    stripes = (np.arange(_SIDE) * cells // _SIDE) % 2
    weave = 0.97 + 0.06 * _noise(rng, 128)
    return _blend((stripes[:, None] + stripes) / 2, (206, 216, 224), (92, 132, 158)) * weave[..., None]


_SURFACES = {"wood": _wood, "marble": _marble, "grass": _grass, "sand": _sand, "brick": _brick, "cloth": _cloth}
