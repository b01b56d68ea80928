"""Events of a clip from its ground truth: motion, direction, stops, visibility."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decaf_tabletop.world.clip import FRAME_PERIOD_S, TabletopClip

MOVING_M_S = 0.03
MOVED_M, STAYED_M = 0.08, 0.01
PAUSE_S = 0.8
VISIBLE_PX = 80


@dataclass(frozen=True, eq=False)
class Events:
    """Events per object of a clip with n objects; arrays are (n,) unless stated.

    Attributes:
        moved: bool; path length above MOVED_M.
        stayed: bool; path length below STAYED_M. An object that neither moved nor stayed is ambiguous.
        fell: bool; ended at least 0.05 m below its highest point.
        direction: Main direction of an object that moved along the table, seen from the camera: "left", "right",
            "closer", "away", or "" if none is clear.
        stopped: bool; moved, then rested for at least PAUSE_S until the end.
        moves_at_end: bool.
        table_xy: (F, n, 2) float64, metres along the table: to the camera's right, away from the camera.
        visible_share: float64, share of frames with at least VISIBLE_PX visible pixels.
    """

    moved: np.ndarray
    stayed: np.ndarray
    fell: np.ndarray
    direction: tuple[str, ...]
    stopped: np.ndarray
    moves_at_end: np.ndarray
    table_xy: np.ndarray
    visible_share: np.ndarray


def read_events(clip: TabletopClip) -> Events:
    """Derives the facts about motion and places that expressions use."""
    position = clip.poses[:, :, :3]
    step = np.linalg.norm(np.diff(position, axis=0), axis=2)
    moving = step > MOVING_M_S * FRAME_PERIOD_S
    path = step.sum(axis=0)
    right, forward = _table_axes(clip.camera_poses[len(clip) // 2, 3:])
    table_xy = np.stack([position[..., :2] @ right, position[..., :2] @ forward], axis=-1)
    fell = position[:, :, 2].max(axis=0) - position[-1, :, 2] > 0.05
    pause = round(PAUSE_S / FRAME_PERIOD_S)
    moved = path > MOVED_M
    return Events(
        moved=moved,
        stayed=path < STAYED_M,
        fell=fell,
        direction=tuple(
            _direction(shift) if slid else "" for shift, slid in zip(table_xy[-1] - table_xy[0], moved & ~fell)
        ),
        stopped=moved & ~moving[-pause:].any(axis=0),
        moves_at_end=moving[-3:].any(axis=0),
        table_xy=table_xy,
        visible_share=np.stack(
            [((clip.labels == k + 1).sum(axis=(1, 2)) >= VISIBLE_PX).mean() for k in range(len(clip.objects))]
        ),
    )


def side_relations(clip: TabletopClip, frame: int, margin_m: float) -> np.ndarray:
    """(n, n, 4) int64: whether object j is left of, right of, behind, in front of object i, seen from the camera.

    1: by more than the margin. 0: no. -1: by less than the margin (ambiguous).
    """
    right, forward = _table_axes(clip.camera_poses[frame, 3:])
    table_xy = np.stack([clip.poses[frame, :, :2] @ right, clip.poses[frame, :, :2] @ forward], axis=-1)
    offset = table_xy[None] - table_xy[:, None]  # from i to j
    along = np.stack([-offset[..., 0], offset[..., 0], offset[..., 1], -offset[..., 1]], axis=-1)
    return np.where(along > margin_m, 1, np.where(along <= 0, 0, -1))


def moving_words(clip: TabletopClip, first: int, second: int) -> tuple[str, ...]:
    """Each object's motion from frame `first` to `second`, seen from the camera, as one of MOVING_WORDS."""
    right, forward = _table_axes(clip.camera_poses[first, 3:])
    shift = clip.poses[second, :, :3] - clip.poses[first, :, :3]
    least_m = MOVING_M_S * FRAME_PERIOD_S * max(second - first, 1)
    words = []
    for x, y, z in zip(shift[:, :2] @ right, shift[:, :2] @ forward, shift[:, 2]):
        if z < -least_m and -z > np.hypot(x, y):
            words.append("fell")
        elif np.hypot(x, y) < least_m:
            words.append("still")
        else:
            words.append(("left" if x < 0 else "right") if abs(x) >= abs(y) else ("closer" if y < 0 else "away"))
    return tuple(words)


MOVING_WORDS = ("still", "left", "right", "closer", "away", "fell")


def _direction(shift: np.ndarray) -> str:
    """Names the direction of a shift (right, away) in metres; "" if it is too short or too oblique."""
    x, y = shift
    if max(abs(x), abs(y)) < 0.6 * MOVED_M or min(abs(x), abs(y)) > 0.6 * max(abs(x), abs(y)):
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "closer" if y < 0 else "away"


def _table_axes(quaternion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The camera's right and forward directions along the table as unit vectors (x, y).

    quaternion: w, x, y, z of the optical frame in the world frame.
    """
    w, x, y, z = quaternion
    right = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z)])
    right /= np.linalg.norm(right)
    return right, np.array([-right[1], right[0]])
