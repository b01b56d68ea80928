"""Clips drawn without a simulator: flat shaded shapes that slide over a textured ground."""

from __future__ import annotations

import cv2
import numpy as np

from decaf_tabletop.world.clip import FRAME_PERIOD_S, FRAMES, IMAGE_HW, TabletopClip, TabletopObject

SHAPES = ("disc", "box", "can", "cone")


def drawn_clip(seed: int, frames: int = FRAMES) -> TabletopClip:
    """Draws 2 to 5 shapes; about 60 % of them slide, and nearer ones occlude farther ones. Reproducible by seed.

    Only images, labels and stamps are meaningful; poses, camera and categories are placeholders.
    """
    rng = np.random.default_rng(seed)
    height, width = IMAGE_HW
    ground = _ground(rng)
    count = int(rng.integers(2, 6))
    shapes = [_Shape(rng, frames) for _ in range(count)]
    pan = rng.normal(0, 0.6, 2) * (rng.random() < 0.5)
    images, labels = np.empty((frames, height, width, 3), np.uint8), np.zeros((frames, height, width), np.uint8)
    noise = rng.uniform(0, 4)
    for index in range(frames):
        shift = np.float32([[1, 0, pan[0] * index], [0, 1, pan[1] * index]])
        image = cv2.warpAffine(ground, shift, (width, height), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
        places = [shape.track[index] + pan * index for shape in shapes]
        for number in sorted(range(count), key=lambda k: places[k][1] + shapes[k].half_height):
            shapes[number].draw(image, labels[index], places[number], number + 1)
        image += rng.normal(0, noise, (height, width, 1))
        images[index] = image.clip(0, 255)
    return TabletopClip(
        seed=seed,
        images=images,
        labels=labels,
        stamps_ns=np.arange(frames, dtype=np.int64) * round(FRAME_PERIOD_S * 1e9),
        objects=(TabletopObject("ball", "red", "small", 0.03, 0.06),) * count,
        poses=np.zeros((frames, count, 7)),
        camera_poses=np.zeros((frames, 7)),
        intrinsics=np.eye(3),
        surface="wood",
    )


class _Shape:
    def __init__(self, rng: np.random.Generator, frames: int) -> None:
        height, width = IMAGE_HW
        self.kind = SHAPES[rng.integers(len(SHAPES))]
        self.half_width = rng.uniform(10, 34)  # pixels
        self.half_height = self.half_width * rng.uniform(0.6, 1.5 if self.kind != "disc" else 1.0)
        self.angle = rng.uniform(-0.5, 0.5) if self.kind == "box" else 0.0
        self.colors = np.stack([_color(rng), _color(rng)])
        self.pattern = ("plain", "plain", "band", "stripes", "checks", "rim")[rng.integers(6)]
        self.light = rng.uniform(-0.5, 0.5, 2)
        start = rng.uniform((20, 40), (width - 20, height - 20))
        speed = rng.normal(0, 5, 2) * (rng.random() < 0.6)
        self.track = start + np.arange(frames)[:, None] * speed

    def draw(self, image: np.ndarray, labels: np.ndarray, centre: np.ndarray, label: int) -> None:
        """Draws onto image (H, W, 3) float32 and labels (H, W) uint8; the soft shadow is not labelled."""
        mask = self._outline(labels.shape, *centre)
        shadow = cv2.GaussianBlur(np.roll(mask, (3, 5), (0, 1)).astype(np.float32), (0, 0), 4)
        image *= 1 - 0.35 * shadow[..., None]
        rows, columns = np.nonzero(mask)
        x, y = (columns - centre[0]) / self.half_width, (rows - centre[1]) / self.half_height
        second_color = {
            "plain": np.zeros(len(x), bool),
            "band": np.abs(y) < 0.3,
            "stripes": np.sin(6 * x) > 0.3,
            "checks": np.sin(5 * x) * np.sin(5 * y) > 0,
            "rim": np.maximum(np.abs(x), np.abs(y)) > 0.75,
        }[self.pattern]
        shade = 1 + self.light[0] * x / 2 + self.light[1] * y / 2
        image[rows, columns] = self.colors[second_color.astype(int)] * shade[:, None]
        labels[rows, columns] = label

    def _outline(self, shape: tuple[int, int], x: float, y: float) -> np.ndarray:
        mask = np.zeros(shape, np.uint8)
        half, tall = self.half_width, self.half_height
        if self.kind == "disc":
            cv2.ellipse(mask, ((x, y), (2 * half, 2 * tall), 0), 1, -1)
        elif self.kind == "can":
            cv2.rectangle(mask, (round(x - half), round(y - tall)), (round(x + half), round(y + tall)), 1, -1)
            for end in (y - tall, y + tall):
                cv2.ellipse(mask, ((x, end), (2 * half, 0.7 * half), 0), 1, -1)
        else:
            corners = [(0, -tall), (half, tall), (-half, tall)]
            if self.kind == "box":
                corners = [(-half, -tall), (half, -tall), (half, tall), (-half, tall)]
            turn = np.array([[np.cos(self.angle), -np.sin(self.angle)], [np.sin(self.angle), np.cos(self.angle)]])
            cv2.fillPoly(mask, [(np.array(corners) @ turn + (x, y)).round().astype(np.int32)], 1)
        return mask


def _ground(rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: tinted noise at several scales, sometimes with stripes."""
    height, width = IMAGE_HW
    texture = np.zeros((height, width), np.float32)
    for scale in (2, 6, 20, 60):
        grain = rng.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        texture += rng.uniform(0, 14) * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width]
    if rng.random() < 0.5:
        direction, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
        wave = np.sin(2 * np.pi * (x * np.cos(direction) + y * np.sin(direction)) / period)
        texture += rng.uniform(0, 18) * (np.sign(wave) if rng.random() < 0.5 else wave)
    image = texture[..., None] * rng.uniform(0.7, 1.3, 3) + rng.uniform(40, 215, 3)
    return image.clip(0, 255).astype(np.uint8)


def _color(rng: np.random.Generator) -> np.ndarray:
    hsv = np.uint8([[[rng.integers(180), rng.integers(0, 256), rng.integers(30, 250)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
