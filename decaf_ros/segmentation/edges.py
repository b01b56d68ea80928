"""Moves the edges of one object's masks to those of the image, frame by frame (GrabCut; Rother et al., 2004).

SAM 2 decodes masks on a grid of a quarter of its input, and spreads over what hides an object. Where colours tell the
object from its surroundings, the pixels near the edge say more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

_ROUNDS = 2
# A mask shows the whole object if it has the usual area, up to this share, and this share of its colours is known.
_SAME_AREA, _SAME_COLOURS = 0.1, 0.8
# The usual area shrinks by this share a second, as an object that goes away does, and is forgotten, with the colours,
# if a target that is surely seen had no such mask for so long.
_SHRINKS, _CHANGED_S = 0.2, 5.0
# Below this, neither colours nor a change say anything.
_LEAST_PX = 20
# If more of the object has colours of its surroundings, colours do not tell.
_MOST_COMMON = 0.3
# The corrected mask of a whole object has to keep this IoU. That of a part has to keep these shares of the area, and so
# much of what is taken away has to have colours of the surroundings.
_LEAST_IOU = 0.6
_LEAST_SHARE, _MOST_SHARE = 0.25, 1.35
_LEAST_EXPLAINED = 0.7
# Pixels that are looked at; more are looked at in a smaller copy, as long as its pixels are finer than the mask grid.
_MOST_PX = 200 * 200
# Size of a GrabCut colour model.
_MODEL = (1, 65)


class _Whole(NamedTuple):
    """The last mask of the whole object. near: (H, W) uint8, 1 where the mask was, or near it."""

    area_px: float
    colours: np.ndarray  # for GrabCut
    shares: np.ndarray  # as of `_shares`
    near: np.ndarray
    stamp_ns: int


class Edges:
    """The colours and place of one object.

    cell_px: side of a cell of SAM 2's mask grid, in pixels of the image.
    """

    def __init__(self, cell_px: float) -> None:
        self._reach = max(2, round(cell_px))
        self._whole: _Whole | None = None

    def correct(self, image: np.ndarray, mask: np.ndarray, stamp_ns: int, is_sure: bool) -> np.ndarray:
        """The object's mask on the next frame, with corrected edges; as it is, where colours do not tell.

        Only pixels within about a cell of the mask's edge change; if the mask shows a part of the object, or something
        else too, also others that have not the object's colours, and those near the last mask of the whole.

        image: (H, W, 3) uint8. mask: (H, W) bool. is_sure: the mask clearly is the object's; its colours are learned.
        Returns (H, W) bool. The same calls give the same masks.
        """
        area = int(np.count_nonzero(mask))
        if area < _LEAST_PX:
            return mask
        if self._whole is not None and self._whole.near.shape != mask.shape:
            self._whole = None
        shares = _shares(image[mask])
        known = self._known(area, shares, stamp_ns, is_sure)
        near: np.ndarray = cv2.dilate(mask.astype(np.uint8), _disc(self._reach))
        if known is not None and np.count_nonzero(mask & (known.near > 0)) >= area / 2:
            near = np.maximum(near, known.near)
        corrected, colours = self._cut(image, mask, near, shares, known)
        if known is None and is_sure and colours is not None:
            usual = 0.0
            if self._whole is not None:
                usual = self._whole.area_px * (1 - _SHRINKS) ** (max(0, stamp_ns - self._whole.stamp_ns) / 1e9)
            place = cv2.dilate(corrected.astype(np.uint8), _disc(self._reach))
            self._whole = _Whole(max(area, usual), colours, shares, place, stamp_ns)
        return corrected

    def _known(self, area: int, shares: np.ndarray, stamp_ns: int, is_sure: bool) -> _Whole | None:
        """The whole object as known, if the mask shows a part of it or something else too; None: it shows the whole."""
        whole = self._whole
        if whole is None:
            return None
        if is_sure and stamp_ns - whole.stamp_ns > _CHANGED_S * 1e9:
            self._whole = None
            return None
        is_usual = abs(area - whole.area_px) <= _SAME_AREA * whole.area_px
        return None if is_usual and _common(shares, whole.shares) >= _SAME_COLOURS else whole

    def _cut(
        self, image: np.ndarray, mask: np.ndarray, near: np.ndarray, shares: np.ndarray, known: _Whole | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """GrabCut of the pixels in `near`; those in a ring around it are background. shares: the colours in the mask.
        Returns the mask (H, W) bool, and the object's colours; None: the mask stays."""
        around = cv2.dilate(near, _disc(2 * self._reach + 2)) > 0
        box = np.s_[_span(np.any(around, axis=1)), _span(np.any(around, axis=0))]
        labels: np.ndarray = np.where(near[box] > 0, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
        labels[mask[box]] = cv2.GC_PR_FGD
        core = cv2.erode(mask[box].astype(np.uint8), _disc(self._reach)) > 0
        if known is None and np.count_nonzero(core) >= _LEAST_PX:
            labels[core] = cv2.GC_FGD
        pixels = np.ascontiguousarray(image[box])
        ring = _shares(pixels[around[box] & (near[box] == 0)])
        own = shares if known is None else known.shares
        scale = min(1.0, (_MOST_PX / labels.size) ** 0.5)
        if scale * self._reach < 1.5 or not ring.any() or _common(own, ring) > _MOST_COMMON:
            return mask, None
        if scale < 1:
            size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
            small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        else:
            small = pixels
        if not (labels == cv2.GC_BGD).any() or not _is_object(labels).any():
            return mask, None
        found, colours = _colour_cut(small, labels, known)
        if scale < 1:
            found = cv2.resize(found.astype(np.float32), mask[box].shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            found &= near[box] > 0
            if known is None:
                found |= core
        if not _is_plausible(mask[box], found, pixels, ring, known is not None):
            return mask, None
        corrected = np.zeros_like(mask)
        corrected[box] = found
        return corrected, colours


def _colour_cut(pixels: np.ndarray, labels: np.ndarray, known: _Whole | None) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool: the object's pixels; and its colours, learned here if the whole of it is not known."""
    grab_cut: Any = cv2.grabCut  # its types demand the mask for learning
    cv2.setRNGSeed(0)  # the colour clusters begin at random
    background, colours = np.zeros(_MODEL), np.zeros(_MODEL)
    learning = labels if known is None else labels.copy()
    grab_cut(pixels, learning, None, background, colours, _ROUNDS, cv2.GC_INIT_WITH_MASK)
    if known is not None:
        colours = known.colours.copy()
        grab_cut(pixels, labels, None, background, colours, _ROUNDS, cv2.GC_EVAL_FREEZE_MODEL)
    return _is_object(labels), colours


def _is_plausible(mask: np.ndarray, found: np.ndarray, pixels: np.ndarray, ring: np.ndarray, is_part: bool) -> bool:
    area, new, common = np.count_nonzero(mask), np.count_nonzero(found), np.count_nonzero(mask & found)
    if not is_part:
        return bool(common >= _LEAST_IOU * (area + new - common))
    if common == 0 or not max(_LEAST_PX, _LEAST_SHARE * area) <= new <= _MOST_SHARE * area:
        return False
    # Light may have changed, or another side of the object turned up.
    away = _bins(pixels[mask & ~found])
    return not len(away) or float((ring[away] > 0).mean()) >= _LEAST_EXPLAINED


def _is_object(labels: np.ndarray) -> np.ndarray:
    return np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))


def _bins(pixels: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 colours to (N,) numbers of 8 x 8 x 8 bins."""
    numbers: np.ndarray = (pixels >> 5).astype(np.int64) @ np.array([64, 8, 1])
    return numbers


def _shares(pixels: np.ndarray) -> np.ndarray:
    """(512,) float64: the share of each bin among (N, 3) uint8 colours; zeros for none."""
    shares: np.ndarray = np.bincount(_bins(pixels), minlength=512) / max(1, len(pixels))
    return shares


def _common(first: np.ndarray, second: np.ndarray) -> float:
    """The share in which two sets of colours agree (histogram intersection)."""
    return float(np.minimum(first, second).sum())


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _span(used: Any) -> slice:
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)
