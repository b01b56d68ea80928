"""The targets of an expression where their masks are known, and the scores of masks and maps against them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.metrics import MaskScore, Pointing, mask_score, point_precision, pointing, robustness
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.types import Window


class Truth(NamedTuple):
    """The targets of an expression, on the frames whose masks are known. Without targets all masks are empty.

    Attributes:
        frames: N indices of the clip.
        masks: (N, H, W) bool.
        key_frames: indices of the key frames in the window.
        key_masks: (len(key_frames), H, W) bool.
        foreground: (N, H, W) bool, all objects that count for the robustness score; None without one.
    """

    frames: list[int]
    masks: np.ndarray
    key_frames: list[int]
    key_masks: np.ndarray
    foreground: np.ndarray | None

    @classmethod
    def of(cls, clip: EvaluationClip, expression: Referral, window: Window) -> Truth:
        """Decodes the masks. Raises ValueError as `ObjectMasks.at`."""
        targets = expression.targets or ()
        frames = list(range(len(clip.frames)) if expression.scored is None else expression.scored)
        known = {frame: place for place, frame in enumerate(frames)}
        masks = clip.mask(targets, frames)
        places = [place for place, frame in enumerate(window.frames) if frame.index in known]
        key_masks = masks[[known[window.frames[place].index] for place in places]]
        foreground = None
        if clip.foreground is not None:
            foreground = np.stack([clip.foreground.at(frame, [0])[0] for frame in frames])
        return cls(frames, masks, places, key_masks, foreground)

    def score(self, labels: np.ndarray) -> MaskScore:
        """J and F of (F, H, W) label images of the whole clip."""
        return mask_score(labels[self.frames] > 0, self.masks)

    def score_coarse(self, coarse: np.ndarray) -> MaskScore | None:
        """J and F of masks of the map alone (the paper's "Attn Mask"), (T, H, W) bool on the key frames; None if the
        masks of no key frame are known."""
        return mask_score(coarse[self.key_frames], self.key_masks) if self.key_frames else None

    def score_map(self, fused: np.ndarray) -> MaskScore | None:
        """As `score_coarse`, by Otsu's threshold. fused: (T, h, w) float32."""
        return self.score_coarse(coarse_masks(fused, self.masks.shape[1:]))

    def map_j(self, fused: np.ndarray) -> float:
        """J of `score_map`; 0 if the masks of no key frame are known."""
        score = self.score_map(fused)
        return 0.0 if score is None else score.j

    def pointing(self, fused: np.ndarray) -> Pointing | None:
        """None if no target is visible on a key frame with known masks."""
        return pointing(fused[self.key_frames], self.key_masks)

    def points(self, fused: np.ndarray) -> dict[int, float]:
        """PP@K by K; empty if no key frame has known masks."""
        return point_precision(fused[self.key_frames], self.key_masks) if self.key_frames else {}

    def robustness(self, labels: np.ndarray) -> float | None:
        """Robustness score of label images of the whole clip; None without a foreground."""
        return None if self.foreground is None else robustness(labels[self.frames] > 0, self.masks, self.foreground)

    def on_key_frames(self, count: int) -> np.ndarray:
        """(count, H, W) bool: the masks on all key frames; empty where they are not known."""
        masks = np.zeros((count, *self.masks.shape[1:]), bool)
        masks[self.key_frames] = self.key_masks
        return masks
