"""Parts of objects: where a mug's handle and a bottle's neck are seen, and questions about them.

A layer of its own, computed from a clip's depth and poses: scenes, images and labels of a seed stay as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from decaf_tabletop.world.clip import TabletopClip
from decaf_tabletop.world.shapes import EXTENTS, MUG_BODY

PARTS = {"mug": "handle", "bottle": "neck"}
# In units of the nominal radius, as in `shapes`: height above a bottle's centre from which it is a neck, where the
# shoulder is half as wide as the body; distance from a mug's wall from which it is a handle, beyond depth's error.
_NECK_FROM, _HANDLE_OFF = 0.65, 0.04
# A part is asked about if it has so many visible pixels in so many frames.
PART_PX, PART_SHARE = 30, 0.5


@dataclass(frozen=True)
class PartQuestion:
    """A question about a part.

    Attributes:
        text: such as "the handle of the red mug".
        target: index of the object in `TabletopClip.objects`.
        part: such as "handle".
    """

    text: str
    target: int
    part: str


def part_labels(clip: TabletopClip) -> np.ndarray:
    """(F, H, W) uint8: k where the part of the object `objects[k - 1]` is visible, 0 elsewhere.

    Raises ValueError for a clip without depth.
    """
    if clip.depth_m is None:
        raise ValueError("part_labels: expected a clip with depth (make_clip(seed, depth=True)), got one without")
    layer = np.zeros_like(clip.labels)
    for k, thing in enumerate(clip.objects):
        if thing.category not in PARTS:
            continue
        unit_m = thing.radius_m / EXTENTS[thing.category][0]
        for frame in range(len(clip)):
            rows, columns = np.nonzero(clip.labels[frame] == k + 1)
            if len(rows):
                local = _local_points(clip, frame, k, rows, columns) / unit_m
                on_part = _ON_PART[thing.category](local)
                layer[frame, rows[on_part], columns[on_part]] = k + 1
    return layer


def part_questions(clip: TabletopClip, layer: np.ndarray) -> list[PartQuestion]:
    """One question for each part that is seen well enough, naming its object unambiguously: by its category, or by
    colour and category.

    layer: from `part_labels`.
    """
    categories = Counter(thing.category for thing in clip.objects)
    names = Counter((thing.color, thing.category) for thing in clip.objects)
    questions = []
    for k, thing in enumerate(clip.objects):
        seen = ((layer == k + 1).sum(axis=(1, 2)) >= PART_PX).mean()
        if thing.category not in PARTS or seen < PART_SHARE or names[thing.color, thing.category] > 1:
            continue
        name = thing.category if categories[thing.category] == 1 else f"{thing.color} {thing.category}"
        part = PARTS[thing.category]
        questions.append(PartQuestion(f"the {part} of the {name}", k, part))
    return questions


def _local_points(clip: TabletopClip, frame: int, k: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """(n, 3) float64: the surface at these pixels in the object's own frame, in metres."""
    assert clip.depth_m is not None
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=1).astype(float)
    optical = pixels @ np.linalg.inv(clip.intrinsics).T * clip.depth_m[frame, rows, columns, None]
    camera, body = clip.camera_poses[frame], clip.poses[frame, k]
    world = _rotation(camera).apply(optical) + camera[:3]
    return np.asarray(_rotation(body).inv().apply(world - body[:3]))


def _rotation(pose: np.ndarray) -> Rotation:
    """pose: (7,), with a quaternion w, x, y, z."""
    return Rotation.from_quat(pose[[4, 5, 6, 3]])


def _on_handle(points: np.ndarray) -> np.ndarray:
    radius, axis_x = MUG_BODY
    away = np.hypot(points[:, 0] - axis_x, points[:, 1]) > radius + _HANDLE_OFF
    return np.asarray(away & (points[:, 0] > axis_x))


def _on_neck(points: np.ndarray) -> np.ndarray:
    return np.asarray(points[:, 2] > _NECK_FROM)


_ON_PART = {"mug": _on_handle, "bottle": _on_neck}
