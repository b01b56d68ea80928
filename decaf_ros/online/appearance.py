"""Whether a mask can still be its target: what the target looks like, how large it is, where it just was."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from decaf_ros.config import TrackingConfig
from decaf_ros.segmentation.overlap import are_apart, mask_iou
from decaf_ros.segmentation.search import Example
from decaf_ros.types import Frame

# From this value on, `tracking.appearance_margin` is off.
MARGIN_OFF = 2.0
# Descriptors kept: the first ones for good, the others as a ring.
_FIRST, _SAMPLES = 3, 12
# Accepted frames between two samples.
_SAMPLE_EVERY = 5
# Share of the typical area that has to be visible to learn from a mask: a sliver beside an occluder is no good sample.
_LEARN_AREA = 0.6
# Accepted masks from which on the size of a target is known.
_SIZE_KNOWN = 5
# A mask may have this multiple of the largest typical area, at first and once the size is known.
_MAX_AREA_AT_FIRST, _MAX_AREA = 2.0, 1.3
# If the target was visible at most _RECENT_S ago, a mask may be larger, as a camera may come near: by _MAX_GROWTH at
# once, with the shape of the last mask of a usual size: an IoU of _SAME_SHAPE after stretching, by at most _MAX_STRETCH
# more on one axis than on the other. Its centre may move by _MAX_STEP typical widths.
_MAX_GROWTH, _SAME_SHAPE, _MAX_STRETCH, _MAX_STEP, _RECENT_S = 1.3, 0.8, 1.15, 2.0, 0.5
# A mask that does not clearly look like the target may be this much larger than usual: what hides a target makes its
# mask smaller, while a mask that grows takes in another object.
_DOUBTFUL_AREA = 1.2
# After this many seconds of doubtful masks the margin is a third: a leak that outlives its target looks less alike.
_DOUBTED_S = 1.0
# Accepted masks from which on its first masks no longer say how large it may be: they may have shown other things, too.
_FIRST_FORGOTTEN = 30
# A target that is found again may have an area between these shares of the largest typical one: it may be nearer, or
# turned.
_LEAST_FOUND, _MOST_FOUND, _MOST_NEARER = 0.2, 1.5, 3.0
# Weight of the newest frame in the moving averages.
_NEWEST = 0.1


class Appearance:
    """Memory of one target's confirmed masks, bounded.

    area_px: how large it may be besides, at first: the first mask may show a part of it, at the border of the image.
    """

    def __init__(self, area_px: float = 0.0) -> None:
        self._samples: list[np.ndarray] = []
        self._learned = 0
        self._accepted = 0
        self._usual_similarity = 1.0
        self._typical_area, self._largest_area = 0.0, area_px
        self._area = 0.0
        self._shape = np.zeros((0, 0), bool)
        self._centre_xy = np.zeros(2)
        self._seen_ns = self._alike_ns = 0

    def similarity(self, look: np.ndarray | None) -> float | None:
        """Largest similarity to a sample, in [-1, 1]; None without evidence: no descriptor, or no sample yet."""
        if look is None or not self._samples or not look.any():
            return None
        return max(float(look @ sample) for sample in self._samples)

    def looks_different(self, look: np.ndarray | None, config: TrackingConfig) -> bool:
        """Whether a descriptor is less similar than the target's own masks usually are, by `appearance_margin`."""
        similarity = self.similarity(look)
        return similarity is not None and similarity < self._usual_similarity - config.appearance_margin

    def looks_alike(self, look: np.ndarray | None, config: TrackingConfig) -> bool:
        """Whether a descriptor is as similar as the target's own masks usually are, up to a sixth of the margin."""
        return self._is_within(config.appearance_margin / 6, look)

    def is_doubtful(self, look: np.ndarray | None, config: TrackingConfig) -> bool:
        """Whether there is evidence, and it does not look alike. Never if `appearance_margin` is off."""
        is_off = config.appearance_margin >= MARGIN_OFF
        return not is_off and self.similarity(look) is not None and not self.looks_alike(look, config)

    def _is_within(self, margin: float, look: np.ndarray | None) -> bool:
        similarity = self.similarity(look)
        return similarity is not None and similarity >= self._usual_similarity - margin

    def _is_unlike_most(self, margin: float, look: np.ndarray) -> bool:
        """Whether at least half of the samples are unlike a descriptor: the others may show a leak into its object."""
        similarities = np.array(self._samples) @ look
        return bool(similarities.size) and float(np.median(similarities)) < self._usual_similarity - margin

    def contradicts(self, frame: Frame, mask: np.ndarray, look: np.ndarray | None, config: TrackingConfig) -> bool:
        """Whether a non-empty (H, W) bool mask on the next frame cannot be this target: it looks different, is too
        large, or is too far from where the target was a moment ago. After a second of doubtful masks it has to be more
        similar. One that was hidden for longer may be anywhere, so it has to look alike: SAM 2 then tends to take what
        hid it, or another object of its kind."""
        if not self._samples and not self._typical_area:
            return False
        is_doubtful = self.is_doubtful(look, config)
        is_recent = self.is_recent(frame)
        largest = _MAX_AREA if self._accepted >= _SIZE_KNOWN else _MAX_AREA_AT_FIRST
        most = (_DOUBTFUL_AREA if is_doubtful else largest) * self._largest_area
        area = np.count_nonzero(mask)
        comes_near = is_recent and not is_doubtful and area <= _MAX_GROWTH * self._area
        is_doubted = (frame.stamp_ns - self._alike_ns) / 1e9 > _DOUBTED_S
        if is_doubted and is_doubtful and not self._is_within(config.appearance_margin / 3, look):
            return True
        if self.looks_different(look, config) or (area > most and not (comes_near and _same_shape(mask, self._shape))):
            return True
        if not is_recent:
            # A mask without a descriptor, such as a speck, speaks for nothing.
            is_off = config.appearance_margin >= MARGIN_OFF
            return bool(self._samples) and not is_off and not self.looks_alike(look, config)
        return bool(np.linalg.norm(_centre(mask) - self._centre_xy) > _MAX_STEP * self._typical_area**0.5)

    def follow_camera(self, shift_xy: np.ndarray) -> None:
        """The image moved by (x, y) pixels since the last frame: the target is expected there."""
        self._centre_xy = self._centre_xy + shift_xy

    def is_recent(self, frame: Frame) -> bool:
        """Whether the target was visible a moment ago."""
        return (frame.stamp_ns - self._seen_ns) / 1e9 <= _RECENT_S

    def is_too_large(self, area_px: float, may_be_nearer: bool) -> bool:
        """Whether a mask that was found elsewhere is too large to be the target, as far as its size is known.

        may_be_nearer: the target was away for long, and the mask clearly looks like it.
        """
        most = _MOST_NEARER if may_be_nearer else _MOST_FOUND
        return self._accepted >= _SIZE_KNOWN and area_px > most * self._largest_area

    @property
    def count(self) -> int:
        """Number of sure masks it has accepted."""
        return self._accepted

    @property
    def example(self) -> Example | None:
        """The object to look for; None without a descriptor."""
        return Example(np.mean(self._samples, axis=0), self._typical_area) if self._samples else None

    def choose(
        self,
        masks: np.ndarray,
        looks: np.ndarray,
        config: TrackingConfig,
        in_place: Collection[int] = (),
        followed: Collection[int] = (),
    ) -> int | None:
        """Which of (K, H, W) bool masks with their (K, C) descriptors is the target: the one that looks most like it.

        One that nothing else speaks for has to have a usual size, be similar up to a twelfth of the margin, and not be
        unlike most samples. With the mask that the target had a moment ago (`in_place`, by index) it may be less
        similar, by a third. With the mask that SAM 2 gives for the target now (`followed`), by a sixth, and it may
        be larger: the target was never seen whole. None if there is no such mask, or if two that are apart qualify.
        """
        areas = masks.sum(axis=(1, 2))
        fit = []
        for index in np.flatnonzero(areas >= self._largest_area * _LEAST_FOUND).tolist():
            if index in in_place:
                share, most = 3, _MAX_AREA
            else:
                share, most = (6, _MOST_NEARER) if index in followed else (12, _MOST_FOUND)
            if areas[index] > self._largest_area * most:
                continue
            if share == 12 and self._is_unlike_most(config.appearance_margin / 3, looks[index]):
                continue
            if self._is_within(config.appearance_margin / share, looks[index]):
                fit.append(index)
        best = max(fit, key=lambda index: self.similarity(looks[index]) or 0.0, default=None)
        if best is None or any(are_apart(masks[best], masks[other]) for other in fit):
            return None
        return int(best)

    def find(self, mask: np.ndarray) -> None:
        """The target was found again as a (H, W) bool mask, whose area is from now on the typical one."""
        self._typical_area = float(np.count_nonzero(mask))
        self._largest_area = max(self._largest_area, self._typical_area)

    def accept(
        self, frame: Frame, mask: np.ndarray, look: np.ndarray | None, config: TrackingConfig, has_strays: bool = False
    ) -> bool:
        """Takes in a confirmed mask. Returns whether it is sure: it clearly looks like the target, is no sliver, and
        SAM 2 masked nothing apart from it (`has_strays`).

        Learns only from sure masks, so that doubtful ones cannot shift the memory to another object.
        """
        area = float(np.count_nonzero(mask))
        self._centre_xy, self._seen_ns, self._area = _centre(mask), frame.stamp_ns, area
        if area <= _MAX_AREA * self._largest_area or not self._shape.size:
            self._shape = mask
        similarity = self.similarity(look)
        is_sliver = area < _LEARN_AREA * self._typical_area
        is_doubtful = self.is_doubtful(look, config)
        if not is_doubtful:
            self._alike_ns = frame.stamp_ns
        is_sure = not (is_sliver or has_strays or is_doubtful)
        if is_sure:
            # At first the mean, so that the size is right once it counts as known.
            self._typical_area += max(_NEWEST, 1 / (self._accepted + 1)) * (area - self._typical_area)
            is_past = self._accepted == _FIRST_FORGOTTEN
            self._largest_area = self._typical_area if is_past else max(self._largest_area, self._typical_area)
            if similarity is not None:
                self._usual_similarity += _NEWEST * (similarity - self._usual_similarity)
            if self._accepted % _SAMPLE_EVERY == 0 and look is not None and look.any():
                self._learn(look)
            self._accepted += 1
        return is_sure

    def _learn(self, look: np.ndarray) -> None:
        if len(self._samples) < _SAMPLES:
            self._samples.append(look)
        else:
            self._samples[_FIRST + self._learned % (_SAMPLES - _FIRST)] = look
        self._learned += 1


def _same_shape(mask: np.ndarray, before: np.ndarray) -> bool:
    """Whether two non-empty (H, W) bool masks are the same but for place and size. A leak grows to one side."""
    crop, old = mask[_box(mask)], before[_box(before)].astype(np.uint8)
    stretch = np.array(crop.shape) / old.shape
    if stretch.max() > _MAX_STRETCH * stretch.min():
        return False
    return mask_iou(cv2.resize(old, crop.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0, crop) >= _SAME_SHAPE


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of a non-empty (H, W) bool mask."""
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _centre(mask: np.ndarray) -> np.ndarray:
    """(x, y) of a non-empty (H, W) bool mask, in pixels."""
    rows, columns = _box(mask)
    return np.array([columns.start + columns.stop - 1, rows.start + rows.stop - 1]) / 2
