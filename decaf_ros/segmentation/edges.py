"""Moves the edges of one object's masks to those of the image, frame by frame (GrabCut; Rother et al., 2004).

SAM 2 decodes masks on a grid of a quarter of its input, and spreads over what hides an object. Where colours tell the
object from its surroundings, the pixels near the edge say more.
"""

from __future__ import annotations

import cv2
import numpy as np

_ROUNDS = 2
# A mask of less than this share of the usual area shows a part of the object: colours are those of earlier masks then.
_PART_SHARE = 0.9
# How much of the usual area is forgotten with a frame: an object that goes away becomes smaller for good.
_FORGOTTEN = 0.02
# Below this, neither colours nor a change say anything.
_LEAST_PX = 20
# The corrected mask of a whole object has to keep this IoU, that of a part these shares of the area.
_LEAST_IOU = 0.6
_LEAST_SHARE, _MOST_SHARE = 0.25, 1.35
# Pixels that are looked at; more are looked at in a smaller copy, as long as its pixels are finer than the mask grid.
_MOST_PX = 200 * 200
# Size of a GrabCut colour model.
_MODEL = (1, 65)


class Edges:
    """The colours and place of one object.

    cell_px: side of a cell of SAM 2's mask grid, in pixels of the image.
    """

    def __init__(self, cell_px: float) -> None:
        self._reach = max(2, round(cell_px))
        self._usual_px = 0.0
        self._colours: np.ndarray | None = None
        self._whole: np.ndarray | None = None  # (H, W) uint8: 1 where the last mask of the whole object was, or near it

    def correct(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The object's mask on the next frame, with corrected edges; as it is, where colours do not tell.

        Only pixels within about a cell of the mask's edge change; if the mask shows a part of the object, also those
        near the last mask of the whole.

        image: (H, W, 3) uint8. mask: (H, W) bool. Returns (H, W) bool. The same calls give the same masks.
        """
        area = int(np.count_nonzero(mask))
        if area < _LEAST_PX:
            return mask
        is_whole = area >= _PART_SHARE * self._usual_px or self._colours is None
        bytes_ = mask.astype(np.uint8)
        near = cv2.dilate(bytes_, _disc(self._reach))
        if not is_whole and self._whole is not None and self._is_near_whole(mask, area):
            near |= self._whole
        corrected = self._cut(image, mask, near, is_whole)
        if is_whole:
            self._usual_px = max(area, (1 - _FORGOTTEN) * self._usual_px)
            self._whole = cv2.dilate(corrected.astype(np.uint8), _disc(self._reach))
        else:
            self._usual_px *= 1 - _FORGOTTEN
        return corrected

    def _is_near_whole(self, mask: np.ndarray, area: int) -> bool:
        assert self._whole is not None
        return self._whole.shape == mask.shape and np.count_nonzero(mask & (self._whole > 0)) >= area / 2

    def _cut(self, image: np.ndarray, mask: np.ndarray, near: np.ndarray, is_whole: bool) -> np.ndarray:
        """GrabCut of the pixels in `near`; those in a ring around it are background."""
        around = cv2.dilate(near, _disc(2 * self._reach + 2))
        box = np.s_[_span(around.any(axis=1)), _span(around.any(axis=0))]
        labels = np.where(near[box] > 0, cv2.GC_PR_BGD, cv2.GC_BGD).astype(np.uint8)
        labels[mask[box]] = cv2.GC_PR_FGD
        core = cv2.erode(mask[box].astype(np.uint8), _disc(self._reach)) > 0
        if is_whole and np.count_nonzero(core) >= _LEAST_PX:
            labels[core] = cv2.GC_FGD
        pixels = np.ascontiguousarray(image[box])
        scale = min(1.0, (_MOST_PX / labels.size) ** 0.5)
        if scale * self._reach < 1.5:
            return mask
        if scale < 1:
            size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        if not (labels == cv2.GC_BGD).any() or not (labels & 1).any():  # GC_FGD, GC_PR_FGD are odd
            return mask
        found = self._colour_cut(pixels, labels, is_whole)
        if scale < 1:
            found = cv2.resize(found.astype(np.float32), mask[box].shape[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
            found = np.where(near[box] > 0, found & ~core | core if is_whole else found, False)
        return self._accepted(mask, box, found, is_whole)

    def _colour_cut(self, pixels: np.ndarray, labels: np.ndarray, is_whole: bool) -> np.ndarray:
        """(h, w) bool: the object's pixels. Learns its colours where they are seen whole."""
        cv2.setRNGSeed(0)  # its colour clusters begin at random
        background, colours = np.zeros(_MODEL), np.zeros(_MODEL)
        known, rounds = self._colours, _ROUNDS
        learning = labels if is_whole or known is None else labels.copy()
        cv2.grabCut(pixels, learning, None, background, colours, rounds, cv2.GC_INIT_WITH_MASK)
        if is_whole or known is None:
            self._colours = colours
        else:
            cv2.grabCut(pixels, labels, None, background, known.copy(), rounds, cv2.GC_EVAL_FREEZE_MODEL)
        return (labels & 1) > 0

    def _accepted(self, mask: np.ndarray, box: tuple[slice, slice], found: np.ndarray, is_whole: bool) -> np.ndarray:
        area, new = np.count_nonzero(mask), np.count_nonzero(found)
        common = np.count_nonzero(mask[box] & found)
        if is_whole:
            is_plausible = common >= _LEAST_IOU * (area + new - common)
        else:
            is_plausible = max(_LEAST_PX, _LEAST_SHARE * area) <= new <= _MOST_SHARE * area and common > 0
        if not is_plausible:
            return mask
        corrected = np.zeros_like(mask)
        corrected[box] = found
        return corrected


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _span(used: np.ndarray) -> slice:
    places = np.flatnonzero(used)
    return slice(int(places[0]), int(places[-1]) + 1)
