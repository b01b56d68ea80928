"""Drawn clips with ground truth, and a Decaf with scripted answers."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
from sam2_scenes import grid_masks

from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.datasets.clips import ABSENT, EvaluationClip, Referral, masks_from_labels
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.types import (
    AttentionMaps,
    Frame,
    Grounding,
    PointPrompts,
    Presence,
    Segmentation,
    Tracklet,
    TrackletScores,
)
from decaf_tabletop.world.clip import TabletopClip, TabletopObject

SIZE_HW = (96, 128)
RGB = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 210)}
RADIUS = 14


def drawn_clip(seed: int, frames: int = 8) -> TabletopClip:
    """Three balls; the first moves to the right, the others stay. The poses match the images."""
    height, width = SIZE_HW
    images = np.random.default_rng(seed).integers(90, 130, (frames, height, width, 3), dtype=np.uint8)
    labels = np.zeros((frames, height, width), np.uint8)
    poses = np.zeros((frames, 3, 7))
    poses[..., 3] = 1
    for index in range(frames):
        for k, color in enumerate(RGB):
            x, y = 20 + 42 * k + (2 * index if k == 0 else 0), 30 + 16 * k
            cv2.circle(images[index], (x, y), RADIUS, RGB[color], -1)
            cv2.circle(labels[index], (x, y), RADIUS, k + 1, -1)
            poses[index, k, :3] = x / 128, 1 - y / 96, RADIUS / 128
    camera = np.zeros((frames, 7))
    camera[:, 3] = 1
    return TabletopClip(
        seed=seed,
        images=images,
        labels=labels,
        stamps_ns=10**9 + np.arange(frames) * 10**8,
        objects=tuple(TabletopObject("ball", color, "small", 0.1, 0.2) for color in RGB),
        poses=poses,
        camera_poses=camera,
        intrinsics=np.eye(3),
        surface="wood",
    )


EXPRESSIONS = (
    Referral("the red ball", "explicit", (0,), "ball", timeless=True),
    Referral("the green object", "attribute", (1,), "ball", timeless=True),
    Referral("the object that moves", "motion", (0,), "ball"),
    Referral("the balls in front", "several", (1, 2), "ball", timeless=True),
    Referral("the black cone", ABSENT, ()),
    Referral("the mug", ABSENT, ()),
)


def evaluation_clip(name: str = "one", frames: int = 8, expressions=EXPRESSIONS) -> EvaluationClip:
    clip = drawn_clip(0, frames)
    return EvaluationClip(name, clip.frames(), masks_from_labels(clip.labels, 3), tuple(expressions))


class DrawnClips:
    """A dataset of identical drawn clips; with `last_expression`, the last clip has only that expression."""

    name = "drawn"
    tracking_only = 0
    settings: dict = {}

    def __init__(self, scored: int, last_expression: Referral | None = None) -> None:
        self.scored, self._last_expression = scored, last_expression

    def clip(self, index: int) -> EvaluationClip:
        is_last = self._last_expression and index == self.scored - 1
        return evaluation_clip(f"clip{index}", expressions=[self._last_expression] if is_last else EXPRESSIONS)


def presence(score: float) -> Presence:
    return Presence(score, *[score] * 6)


class KnownDecaf:
    """The interface of Decaf on drawn clips. Its maps point at the centre of the first tracked object.

    answers: by query: (tracked objects, presence score, category), or an exception to raise.
    """

    def __init__(self, config: DecafConfig, answers: dict) -> None:
        self.config = config
        self.answers = answers
        self.sam2 = None
        self.grounder = SimpleNamespace(mllm=None)
        self.labels = drawn_clip(0).labels

    def segment(self, window, query, dense=None, progress=None) -> Segmentation:
        answer = self.answers[query]
        if isinstance(answer, Exception):
            raise answer
        objects, score, category = answer
        labels = self.labels[[frame.index for frame in window.frames]]
        fused = np.zeros((len(window), 12, 16), np.float32)
        for place in range(len(window)):
            if objects:
                rows, columns = (labels[place] == objects[0] + 1).nonzero()
                fused[place, int(rows.mean()) // 8, int(columns.mean()) // 8] = 1
        nothing = PointPrompts(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
        tracklets = tuple(self._tracklet(labels == k + 1, k) for k in objects)
        dense_labels = coarse = None
        if dense is not None:
            coarse = coarse_masks(fused, labels.shape[1:])
            all_labels = self.labels[: len(dense)]
            dense_labels = np.zeros_like(all_labels)
            for number, k in enumerate(objects, 1):
                dense_labels[all_labels == k + 1] = number
        grounding = Grounding(AttentionMaps(fused), category, (category, "ball", "cube") if category else ())
        return Segmentation(
            window, query, grounding, nothing, nothing, tracklets, tracklets, presence(score), coarse, dense_labels
        )

    @staticmethod
    def _tracklet(masks: np.ndarray, k: int) -> Tracklet:
        return Tracklet(grid_masks(masks), 0, (0.1 * k, 0.5), TrackletScores(0.9, 0.9, 1.0, 0.93), 0.8, 5.0)


def frame(index: int) -> Frame:
    return Frame(np.zeros((*SIZE_HW, 3), np.uint8), 10**9 + index * 10**8, "camera", index)
