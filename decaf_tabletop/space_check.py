"""Measures the 3D geometry of targets on simulated clips: python -m decaf_tabletop.space_check --clips 20.

Masks are the true ones, or spilled over their edge; depth is that of a simulated stereo camera. Two truths:

- visible: the points of the exact depth in the true mask. Their mean is the true centroid; the upright box of the least
  area around them is the true box.
- whole: the object itself, its centre and its sides, for objects that are seen whole.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from decaf_ros.space.boxes import Box
from decaf_ros.space.camera import Camera, pixel_rays
from decaf_ros.space.objects import TargetGeometry, TargetMeasurer
from decaf_tabletop.space_picture import cloud_picture
from decaf_tabletop.world.camera import CameraPath
from decaf_tabletop.world.clip import CATEGORIES, TabletopClip, TabletopObject
from decaf_tabletop.world.depth_noise import measured_clip
from decaf_tabletop.world.scenes import Scene, sample_scene
from decaf_tabletop.world.shapes import EXTENTS, mesh
from decaf_tabletop.world.simulator import play_scene

# Smaller masks are left out: cut off by the image, or nearly hidden.
_LEAST_PX = 100
# An object is seen whole if its mask covers this share of its outline.
_WHOLE = 0.85


class Sample(NamedTuple):
    """One object on one frame. Lengths in metres, errors of sides as shares; NaN: no position, or no such truth."""

    category: str
    distance: float
    visible_error: float
    visible_sides: np.ndarray
    whole_error: float
    box_centre_error: float
    whole_sides: np.ndarray
    turn_deg: float


def moved_back(scene: Scene, distance_m: float) -> Scene:
    """The scene with its camera at another distance from the middle of the table."""
    views = (dataclasses.replace(view, distance_m=distance_m) for view in (scene.camera.start, scene.camera.end))
    return dataclasses.replace(scene, camera=CameraPath(*views))


def camera_of(clip: TabletopClip) -> Camera:
    """The clip's camera, without distortion."""
    height, width = clip.labels.shape[1:]
    matrix = clip.intrinsics
    return Camera(width, height, matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2], frame_id="camera_optical")


def true_poses(clip: TabletopClip, frame: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In the camera's optical frame: (n, 3) centres, (n, 3, 3) axes of the objects as columns, (3,) up in the world."""
    pose = clip.camera_poses[frame]
    to_camera = Rotation.from_quat(np.roll(pose[3:], -1)).inv()
    objects = Rotation.from_quat(np.roll(clip.poses[frame, :, 3:], -1, axis=-1))
    centres = to_camera.apply(clip.poses[frame, :, :3] - pose[:3])
    return centres, (to_camera * objects).as_matrix(), to_camera.apply([0, 0, 1])


def samples(clip: TabletopClip, spill_px: int) -> Iterator[Sample]:
    """Measures all objects on all frames of a clip with exact depth."""
    camera, measurer = camera_of(clip), TargetMeasurer()
    last: dict[int, np.ndarray] = {}
    measured_m = measured_clip(clip).depth_m
    for frame, (labels, exact) in enumerate(zip(clip.labels, clip.depth_m)):
        true_masks = {index: labels == index + 1 for index in range(len(clip.objects))}
        true_masks = {index: mask for index, mask in true_masks.items() if mask.sum() >= _LEAST_PX}
        found = measurer.measure(spilled(true_masks, spill_px), measured_m[frame], camera)
        centres, axes, up = true_poses(clip, frame)
        for index, geometry in found.items():
            thing = clip.objects[index]
            points = surface(exact, true_masks[index], camera)
            turn = turned_deg(last.get(index), geometry)
            if geometry.box is not None:
                last[index] = geometry.box.axes
            whole = is_whole(thing, centres[index], axes[index], true_masks[index], camera)
            yield compared(thing, geometry, points, up, centres[index], axes[index], whole)._replace(turn_deg=turn)


def write_picture(path: Path, clip: TabletopClip, spill_px: int) -> None:
    """Draws the last frame. Raises OSError if the file cannot be written."""
    camera, labels, depth = camera_of(clip), clip.labels[-1], measured_clip(clip).depth_m[-1]
    masks = spilled({index: labels == index + 1 for index in range(len(clip.objects))}, spill_px)
    found = TargetMeasurer().measure(masks, depth, camera)
    picture = cloud_picture(clip.images[-1], depth, masks, found, camera)
    encoded = cv2.imencode(".png", picture[..., ::-1])[1]
    path.write_bytes(encoded.tobytes())


def spilled(masks: dict[int, np.ndarray], spill_px: int) -> dict[int, np.ndarray]:
    """The masks, larger by so many pixels to all sides."""
    window = np.ones((2 * spill_px + 1,) * 2, np.uint8)
    return {key: cv2.dilate(mask.view(np.uint8), window).view(bool) for key, mask in masks.items()}


def surface(exact_m: np.ndarray, mask: np.ndarray, camera: Camera) -> np.ndarray:
    """(n, 3): the points of a mask."""
    return np.column_stack([pixel_rays(camera)[mask] * exact_m[mask][:, None], exact_m[mask]])


def turned_deg(last: np.ndarray | None, geometry: TargetGeometry) -> float:
    """The angle between a box's axes and those before, in degrees."""
    if last is None or geometry.box is None:
        return np.nan
    return float(np.degrees(Rotation.from_matrix(geometry.box.axes @ last.T).magnitude()))


def compared(
    thing: TabletopObject,
    geometry: TargetGeometry,
    points: np.ndarray,
    up: np.ndarray,
    centre: np.ndarray,
    axes: np.ndarray,
    whole: bool,
) -> Sample:
    """The errors of one measurement."""
    nothing = np.full(3, np.nan)
    distance = float(np.linalg.norm(centre))
    if geometry.position is None or geometry.box is None:
        return Sample(thing.category, distance, np.nan, nothing, np.nan, np.nan, nothing, np.nan)
    true_axes, sides = upright_sides(points, up)
    return Sample(
        thing.category,
        distance,
        float(np.linalg.norm(geometry.position - points.mean(axis=0))),
        side_errors(geometry.box, true_axes, sides),
        float(np.linalg.norm(geometry.position - centre)) if whole else np.nan,
        float(np.linalg.norm(geometry.box.centre - centre)) if whole else np.nan,
        side_errors(geometry.box, axes, whole_sides(thing)) if whole else nothing,
        np.nan,
    )


def upright_sides(points: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Axes, as columns, and sides of the upright box of the least area around exact points."""
    east = np.cross(up, [0.0, 0.0, 1.0])
    east /= np.linalg.norm(east)
    level = np.column_stack([east, np.cross(up, east)])
    _, (first, second), angle = cv2.minAreaRect((points @ level).astype(np.float32))
    angle = np.radians(angle)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([level @ turn, up]), np.array([first, second, np.ptp(points @ up)])


def whole_sides(thing: TabletopObject) -> np.ndarray:
    """(3,) metres along the object's own axes."""
    return np.ptp(mesh(thing.category).vertices, axis=0) * thing.radius_m / EXTENTS[thing.category][0]


def side_errors(box: Box, axes: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """(3,): relative errors of the sides, each compared with the true axis nearest to it."""
    along = np.abs(axes.T @ box.axes)
    upright = int(along[2].argmax())
    first, second = ((upright + 1) % 3, (upright + 2) % 3)
    if along[0, second] > along[0, first]:
        first, second = second, first
    return np.abs(box.size[[first, second, upright]] / sides - 1)


def is_whole(thing: TabletopObject, centre: np.ndarray, axes: np.ndarray, mask: np.ndarray, camera: Camera) -> bool:
    """Whether the mask covers the outline of the object's mesh."""
    vertices = mesh(thing.category).vertices * thing.radius_m / EXTENTS[thing.category][0] @ axes.T + centre
    pixels = vertices @ camera.matrix.T
    hull = cv2.convexHull((pixels[:, :2] / pixels[:, 2:]).astype(np.float32))
    return bool(mask.sum() > _WHOLE * cv2.contourArea(hull))


def report(found: list[Sample]) -> str:
    """Errors by category as a table: median and 95th percentile."""
    rows = [
        f"{'':9}{'':>6}{'no':>5}{'metres':>8}{'centroid cm':>14}{'box size %':>14}{'turn deg':>12}"
        f"{'seen':>7}{'centre cm':>14}{'box centre cm':>15}{'box size %':>14}",
        f"{'category':9}{'count':>6}{'pos.':>5}{'away':>8}{'visible':>14}{'visible':>14}{'a frame':>12}"
        f"{'whole':>7}{'whole':>14}{'whole':>15}{'whole':>14}",
    ]
    groups = {category: [sample for sample in found if sample.category == category] for category in CATEGORIES}
    for name, group in {**groups, "all": found}.items():
        if not group:
            continue
        column = {field: np.array([getattr(sample, field) for sample in group]) for field in Sample._fields}
        lost = int(np.isnan(column["visible_error"]).sum())
        whole = len(group) - int(np.isnan(column["whole_error"]).sum())
        rows.append(
            f"{name:9}{len(group):6}{lost:5}{np.median(column['distance']):8.2f}"
            f"{_spread(column['visible_error'], 100, 2):>14}{_spread(column['visible_sides'].mean(axis=1), 100, 1):>14}"
            f"{_spread(column['turn_deg'], 1, 2):>12}{whole:7}{_spread(column['whole_error'], 100, 2):>14}"
            f"{_spread(column['box_centre_error'], 100, 2):>15}"
            f"{_spread(column['whole_sides'].mean(axis=1), 100, 1):>14}"
        )
    return "\n".join(rows)


def _spread(values: np.ndarray, scale: float, digits: int) -> str:
    values = values[~np.isnan(values)]
    if not len(values):
        return "-"
    middle, most = np.percentile(values * scale, (50, 95))
    return f"{middle:.{digits}f}, {most:.{digits}f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.space_check",
        description="Errors of the 3D geometry of targets on simulated clips, median and 95th percentile by category. "
        "Seeds from 900000 on belong to no training.",
    )
    add = parser.add_argument
    add("--seed", type=int, default=900000, help="seed of the first clip (%(default)s)")
    add("--clips", type=int, default=20, help="number of clips (%(default)s)")
    add("--distance", type=float, default=1.0, metavar="M", help="metres from the camera to the table (%(default)s)")
    add("--spill", type=int, default=0, metavar="PX", help="pixels that masks go beyond their objects (%(default)s)")
    add("--picture", type=Path, metavar="PNG", help="also draw the points of the first clip, from the front and above")
    args = parser.parse_args(arguments)
    for name, low, high in (("seed", 0, None), ("clips", 1, None), ("distance", 0.3, 5.0), ("spill", 0, 20)):
        value = getattr(args, name)
        if value < low or (high is not None and value > high):
            bounds = f"{low} or more" if high is None else f"{low} to {high}"
            parser.error(f"--{name}: expected {bounds}, got {value}")
    found: list[Sample] = []
    try:
        for seed in range(args.seed, args.seed + args.clips):
            clip = play_scene(moved_back(sample_scene(seed), args.distance), depth=True)
            found += samples(clip, args.spill)
            if seed == args.seed and args.picture is not None:
                write_picture(args.picture, clip, args.spill)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"space_check: {error}", file=sys.stderr)
        return 1
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
