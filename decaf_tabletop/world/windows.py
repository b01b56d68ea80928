"""Stretches of long clips, as long as what a question looks back over, and training clips made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from decaf_tabletop.world.clip import FRAME_PERIOD_S, FRAMES, TabletopClip
from decaf_tabletop.world.events import VISIBLE_PX, read_events
from decaf_tabletop.world.expressions import MIN_VISIBLE_SHARE

WINDOW = FRAMES - 1
# A hand puts objects down more slowly than this; dropped ones are faster.
FALLING_M_S = 0.35
# Windows for training: their distance in frames, and the relative frequency of those in which something moves or falls.
_EVERY, _APART = 5, 10
_MOVING_WEIGHT, _FALLING_WEIGHT = 4.0, 8.0


def window_before(clip: TabletopClip, last: int, objects: Sequence[int]) -> TabletopClip:
    """WINDOW frames up to the frame `last`, with only these objects."""
    frames = slice(last - WINDOW + 1, last + 1)
    new_label = np.zeros(len(clip.objects) + 1, np.uint8)
    new_label[np.array(objects, int) + 1] = 1 + np.arange(len(objects))
    arrays = ("images", "stamps_ns", "camera_poses")
    return dataclasses.replace(
        clip,
        **{name: getattr(clip, name)[frames] for name in arrays},
        labels=new_label[clip.labels[frames]],
        poses=clip.poses[frames][:, list(objects)],
        objects=tuple(clip.objects[index] for index in objects),
        depth_m=None,
    )


def camera_rests(window: TabletopClip) -> bool:
    """Whether the camera moves by less than a millimetre, or a thousandth of its quaternion."""
    return bool(np.ptp(window.camera_poses, axis=0).max() <= 1e-3)


def visible_shares(window: TabletopClip) -> np.ndarray:
    """(n,) float64: share of the frames on which at least VISIBLE_PX pixels of each object are visible."""
    areas = np.stack([(window.labels == k + 1).sum(axis=(1, 2)) for k in range(len(window.objects))])
    return np.asarray((areas >= VISIBLE_PX).mean(axis=1))


def fall_m_s(window: TabletopClip) -> np.ndarray:
    """(n,) float64: each object's fastest descent between two frames, in metres per second."""
    return np.asarray(-np.diff(window.poses[:, :, 2], axis=0).min(axis=0) / FRAME_PERIOD_S)


def training_windows(clip: TabletopClip, most: int) -> list[tuple[int, TabletopClip]]:
    """At most `most` windows of a long clip that can be trained on like short clips, each with its last frame.

    The camera rests, and every object is visible for at least MIN_VISIBLE_SHARE of the window or not at all (then the
    window's clip does not list it). Nothing is put down, which no expression names. Those with motion are preferred.
    """
    possible: list[tuple[int, TabletopClip, float]] = []
    for last in range(WINDOW - 1, len(clip), _EVERY):
        everything = window_before(clip, last, range(len(clip.objects)))
        if not camera_rests(everything):
            continue
        shares = visible_shares(everything)
        seen = np.flatnonzero(shares > 0)
        if len(seen) < 2 or (shares[seen] < MIN_VISIBLE_SHARE).any():
            continue
        window = window_before(clip, last, seen.tolist())
        events = read_events(window)
        if (events.fell & (fall_m_s(window) < FALLING_M_S)).any():
            continue
        weight = _FALLING_WEIGHT if events.fell.any() else _MOVING_WEIGHT if events.moved.any() else 1.0
        possible.append((last, window, weight))
    # Must differ from the other keys of a seed (`expressions_of`, `sample_long_scene`, `long_expressions`).
    rng = np.random.default_rng([clip.seed, 0, 0, 0, 3])
    chosen: list[tuple[int, TabletopClip]] = []
    while possible and len(chosen) < most:
        weights = np.array([weight for *_, weight in possible])
        last, window, _ = possible[int(rng.choice(len(possible), p=weights / weights.sum()))]
        chosen.append((last, window))
        possible = [one for one in possible if abs(one[0] - last) >= _APART]
    return sorted(chosen, key=lambda one: one[0])
