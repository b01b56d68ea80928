"""What happened in a clip, read off its ground truth: who moved where, who stopped, what can be seen."""

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
    """Per object of a clip with n objects; every array has length n unless said otherwise.

    moved, stayed: bool; who is neither moved a little and can be called neither. fell: bool, came down from above.
    towards: the main direction of what moved along the table, seen from the camera: "left", "right", "closer", "away",
    or "" where none is clear. stopped: bool, moved and then rested for PAUSE_S or more up to the end.
    moves_at_end: bool. place: (F, n, 2) float64 metres along the table, to the camera's right and away from it.
    seen: share of frames in which VISIBLE_PX or more of it can be seen.
    """

    moved: np.ndarray
    stayed: np.ndarray
    fell: np.ndarray
    towards: tuple[str, ...]
    stopped: np.ndarray
    moves_at_end: np.ndarray
    place: np.ndarray
    seen: np.ndarray


def read_events(clip: TabletopClip) -> Events:
    """Everything that expressions say about a clip's motion and places."""
    position = clip.poses[:, :, :3]
    step = np.linalg.norm(np.diff(position, axis=0), axis=2)
    moving = step > MOVING_M_S * FRAME_PERIOD_S
    path = step.sum(axis=0)
    right, forward = _table_axes(clip.camera_poses[len(clip) // 2, 3:])
    place = np.stack([position[..., :2] @ right, position[..., :2] @ forward], axis=-1)
    fell = position[:, :, 2].max(axis=0) - position[-1, :, 2] > 0.05
    pause = round(PAUSE_S / FRAME_PERIOD_S)
    moved = path > MOVED_M
    return Events(
        moved=moved,
        stayed=path < STAYED_M,
        fell=fell,
        towards=tuple(_direction(shift) if far else "" for shift, far in zip(place[-1] - place[0], moved & ~fell)),
        stopped=moved & ~moving[-pause:].any(axis=0),
        moves_at_end=moving[-3:].any(axis=0),
        place=place,
        seen=np.stack(
            [((clip.labels == k + 1).sum(axis=(1, 2)) >= VISIBLE_PX).mean() for k in range(len(clip.objects))]
        ),
    )


def besides(clip: TabletopClip, frame: int, margin_m: float) -> np.ndarray:
    """(n, n, 4) int64: of objects i and j, is j to the left of i, to the right of it, behind it, in front of it? 1: by
    more than the margin, 0: not at all, -1: a little. Seen from the camera at that frame."""
    right, forward = _table_axes(clip.camera_poses[frame, 3:])
    place = np.stack([clip.poses[frame, :, :2] @ right, clip.poses[frame, :, :2] @ forward], axis=-1)
    offset = place[None] - place[:, None]  # of j, seen from i
    along = np.stack([-offset[..., 0], offset[..., 0], offset[..., 1], -offset[..., 1]], axis=-1)
    return np.where(along > margin_m, 1, np.where(along <= 0, 0, -1))


def moving_words(clip: TabletopClip, first: int, second: int) -> tuple[str, ...]:
    """What each object does from frame `first` to `second`, seen from the camera: one of MOVING_WORDS."""
    right, forward = _table_axes(clip.camera_poses[first, 3:])
    shift = clip.poses[second, :, :3] - clip.poses[first, :, :3]
    far = MOVING_M_S * FRAME_PERIOD_S * max(second - first, 1)
    words = []
    for x, y, z in zip(shift[:, :2] @ right, shift[:, :2] @ forward, shift[:, 2]):
        if z < -far and -z > np.hypot(x, y):
            words.append("fell")
        elif np.hypot(x, y) < far:
            words.append("still")
        else:
            words.append(("left" if x < 0 else "right") if abs(x) >= abs(y) else ("closer" if y < 0 else "away"))
    return tuple(words)


MOVING_WORDS = ("still", "left", "right", "closer", "away", "fell")


def _direction(shift: np.ndarray) -> str:
    """Of a shift (right, away) in metres; empty where it is too short or too oblique to have one name."""
    x, y = shift
    if max(abs(x), abs(y)) < 0.6 * MOVED_M or min(abs(x), abs(y)) > 0.6 * max(abs(x), abs(y)):
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "closer" if y < 0 else "away"


def _table_axes(quaternion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The camera's right and forward directions along the table, unit vectors (x, y). quaternion: w, x, y, z of the
    optical frame in the world frame."""
    w, x, y, z = quaternion
    right = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z)])
    right /= np.linalg.norm(right)
    return right, np.array([-right[1], right[0]])
