"""Clips to training batches: a pool of decoded clips, augmentation, and what each object's mask should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from decaf_ros.segmentation.sam2 import IMAGE_MEAN, IMAGE_STD
from decaf_tabletop.training.clips import training_clips
from decaf_tabletop.training.sam2_model import IMAGE_SIZE
from decaf_tabletop.world.clip import TabletopClip

GRID = IMAGE_SIZE // 4  # of the network's mask logits
FINE = 48  # samples across the box around an object, in which its outline is learnt
CLICK_AREA = 40  # pixels an object must show to be clicked or followed
SURE_AREA = 20  # with fewer pixels, but some, it is neither there nor gone

Pair = tuple[np.ndarray, np.ndarray]  # images (T, H, W, 3) uint8 and labels (T, H, W) uint8


class ClipPool:
    """A bounded number of clips in memory, exchanged one by one; the folder may grow meanwhile.

    read: gives the clip of a path. capacity: clips in memory, each of 32 frames takes 10 MB.
    """

    def __init__(self, folder: Path, read: Callable[[Path], TabletopClip], capacity: int) -> None:
        self._folder, self._read, self._capacity = folder, read, capacity
        self._clips: list[Pair] = []
        self._hidden_at: list[int | None] = []
        self._waiting: list[Path] = []
        self._next = 0

    def exchange(self, rng: np.random.Generator) -> None:
        """One new clip comes in; at capacity the oldest goes. Raises as `training_clips`."""
        if not self._waiting:
            self._waiting = training_clips(self._folder)
            rng.shuffle(self._waiting)
        clip = self._read(self._waiting.pop())
        if len(self._clips) < self._capacity:
            self._clips.append((clip.images, clip.labels))
            self._hidden_at.append(_hidden_at(clip.labels))
            return
        oldest = self._clips[self._next]
        if oldest[0].shape == clip.images.shape:  # into the same memory: large blocks that last split the rest up
            np.copyto(oldest[0], clip.images)
            np.copyto(oldest[1], clip.labels)
        else:
            self._clips[self._next] = (clip.images, clip.labels)
        self._hidden_at[self._next] = _hidden_at(clip.labels)
        self._next = (self._next + 1) % self._capacity

    def frames(self, rng: np.random.Generator, count: int) -> list[Pair]:
        """`count` single frames, of different clips where there are enough."""
        chosen = rng.permutation(len(self._clips))[:count]
        chosen = np.concatenate([chosen, rng.integers(len(self._clips), size=count - len(chosen))]).astype(int)
        picked = [(self._clips[one], int(rng.integers(len(self._clips[one][0])))) for one in chosen]
        return [(images[at : at + 1], labels[at : at + 1]) for (images, labels), at in picked]

    def stretches(self, rng: np.random.Generator, count: int, length: int) -> list[Pair]:
        """`count` stretches of `length` frames, every first to fourth one, half of them backwards. Clips in which an
        object is hidden for a while are taken three times as often, most of them where it is hidden."""
        result = []
        weights = np.where([at is None for at in self._hidden_at], 1.0, 3.0)
        several = count > len(self._clips)
        for one in rng.choice(len(self._clips), size=count, p=weights / weights.sum(), replace=several):
            images, labels = self._clips[one]
            step = int(rng.integers(1, min(4, (len(images) - 1) // (length - 1)) + 1))
            last = len(images) - 1 - step * (length - 1)
            start = int(rng.integers(last + 1))
            hidden_at = self._hidden_at[one]
            if hidden_at is not None and rng.random() < 0.75:
                # Anywhere between the ends, so that the object is seen before; and after, or not.
                start = min(max(hidden_at - step * int(rng.integers(1, length)), 0), last)
            places = start + step * np.arange(length)
            places = places[::-1] if rng.random() < 0.5 else places
            result.append((images[places], labels[places]))
        return result


def _hidden_at(labels: np.ndarray) -> int | None:
    """The frame in which an object shows least of itself, that shows much less for a while and then all of it again;
    None if there is no such object."""
    counts = np.stack([np.bincount(image.ravel(), minlength=256)[1:] for image in labels]).astype(float)
    usual = np.median(counts, axis=0)
    returns = (counts[0] > 0.6 * usual) & (counts[-1] > 0.6 * usual) & (usual > 0)
    share = np.where(returns, counts / np.maximum(usual, 1), 1.0)
    return int(share.min(axis=1).argmin()) if share.min() < 0.4 else None


def augmented(pair: Pair, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """The same random crop, flip and colours for all frames: pixels (T, 3, S, S) float32, the network's input, and
    labels (T, h, w) uint8 of the crop."""
    images, labels = pair
    height, width = labels.shape[1:]
    scale = rng.uniform(0.7, 1.0) if rng.random() < 0.6 else 1.0
    stretch = rng.uniform(0.92, 1.0, 2) if scale < 1 else (1.0, 1.0)
    tall, wide = int(height * scale * stretch[0]), int(width * scale * stretch[1])
    top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
    images, labels = images[:, top : top + tall, left : left + wide], labels[:, top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        images, labels = images[:, :, ::-1], labels[:, :, ::-1]
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    # As `Sam2.normalised` does it.
    pixels = F.interpolate(pixels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False, antialias=True)
    if rng.random() < 0.8:
        gain = torch.from_numpy(rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, (3, 1, 1))).float()
        grey = pixels.mean(1, keepdim=True)
        pixels = (grey + (pixels - grey) * float(rng.uniform(0.7, 1.2))) * gain + float(rng.uniform(-0.08, 0.08))
        pixels = pixels.clamp(0, 1)
    mean, deviation = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    return (pixels - mean) / deviation, np.ascontiguousarray(labels)


def occluded(pair: Pair, others: list[Pair], rng: np.random.Generator) -> Pair:
    """A patch of another clip slides in front of an object for some of the frames after the first, which hides it."""
    images, labels = pair[0].copy(), pair[1].copy()
    count, height, width = labels.shape
    if count < 3:
        return pair
    first = int(rng.integers(1, count - 1))
    last = int(rng.integers(first + 1, count))
    present = [one for one in np.unique(labels[0]) if one and (labels[first] == one).sum() >= CLICK_AREA]
    if not present:
        return pair
    rows, columns = np.nonzero(labels[first] == rng.choice(present))
    half = np.array([np.ptp(columns), np.ptp(rows)]) / 2 * rng.uniform(0.7, 1.6) + 6
    centre = np.array([columns.mean(), rows.mean()])
    source, owners = others[rng.integers(len(others))]
    index, shift = rng.integers(len(source)), tuple(rng.integers(0, (height, width)))
    source, owners = (np.roll(part[index], shift, (0, 1)) for part in (source, owners))
    owners = np.where(owners > 0, owners + labels.max(), 0)
    speed = rng.normal(0, 3, 2)
    round_one = rng.random() < 0.5
    y, x = np.mgrid[:height, :width]
    for index in range(first, last):
        away = np.abs(np.stack([x, y], -1) - centre - speed * (index - first)) / half
        patch = np.hypot(*np.moveaxis(away, -1, 0)) < 1.2 if round_one else (away < 1).all(-1)
        images[index][patch] = source[patch]
        labels[index][patch] = owners[patch]
    return images, labels


def crossed(pair: Pair, others: list[Pair], rng: np.random.Generator) -> Pair:
    """An object of another clip, with its outline, passes in front of one of these, or stays there; from the first
    frame on it can be followed itself. Half of them are given the colour of what they pass: what hides an object, or
    comes out from behind it, is else taken for it, above all where both are alike."""
    images, labels = pair[0].copy(), pair[1].copy()
    count, height, width = labels.shape
    present = _uncut(labels[0])
    passing = _cut_out(others, rng)
    if not present or passing is None:
        return pair
    passed = labels[0] == rng.choice(present)
    rows, columns = np.nonzero(passed)
    size = np.array([np.ptp(columns), np.ptp(rows)]) + 1.0
    pixels, mask = passing
    if rng.random() < 0.5:
        gain = (images[0][passed].mean(0) + 1) / (pixels[mask > 0].mean(0) + 1)
        pixels = np.round(pixels * gain).clip(0, 255).astype(np.uint8)
    scale = rng.uniform(0.8, 1.9) * np.sqrt(size.prod() / mask.sum())
    shape = np.maximum(np.round(np.array(mask.shape[::-1]) * scale), 4).astype(int)
    pixels, mask = (cv2.resize(part, shape, interpolation=cv2.INTER_LINEAR) for part in (pixels, mask))
    # In front of it at `meets`, by then moving by a part of what it takes to uncover it again a frame.
    meets, stops = rng.uniform(0.5, count), rng.uniform(0.5, count) if rng.random() < 0.3 else np.inf
    angle = rng.normal(0, 0.4) + (np.pi if rng.random() < 0.5 else 0)
    speed = rng.uniform(0.15, 0.7) * (size + shape) / 2 * (np.cos(angle), np.sin(angle))
    place = np.array([columns.mean(), rows.mean()]) + rng.normal(0, 0.15, 2) * size
    free = int(labels.max()) + 1
    for index in range(count):
        left, top = place + speed * (min(index, max(stops, meets)) - meets) - shape / 2
        shift = np.array([[1, 0, left], [0, 1, top]])
        moved = cv2.warpAffine(pixels, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        share = cv2.warpAffine(mask, shift, (width, height))[..., None]
        images[index] = np.round(share * moved + (1 - share) * images[index])
        labels[index][share[..., 0] > 0.5] = free
    return images, labels


def _cut_out(others: list[Pair], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Some object of some frame in its box: (h, w, 3) uint8, and its mask (h, w) float32; None if that shows none."""
    images, labels = others[rng.integers(len(others))]
    index = rng.integers(len(labels))
    objects = _uncut(labels[index])
    if not objects:
        return None
    mask = (labels[index] == rng.choice(objects)).astype(np.uint8)
    left, top, wide, tall = cv2.boundingRect(mask)
    box = (slice(top, top + tall), slice(left, left + wide))
    # A pixel less all around, which has some of what is behind it: of a sliver nothing is left.
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))[box]
    return (images[index][box], inner.astype(np.float32)) if inner.sum() >= CLICK_AREA else None


def _uncut(labels: np.ndarray) -> list[int]:
    """The objects that a click would find and that the border does not cut off. labels: (H, W)."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return [int(one) for one in np.unique(labels) if one and one not in border and (labels == one).sum() >= CLICK_AREA]


def meeting(labels: np.ndarray) -> set[int]:
    """The objects that touch another one in some frame, up to a gap of two pixels. labels: (T, H, W)."""
    found: set[int] = set()
    for first, second in ((labels[:, :, 3:], labels[:, :, :-3]), (labels[:, 3:], labels[:, :-3])):
        touch = (first != second) & (first > 0) & (second > 0)
        found.update(np.unique(first[touch]).tolist(), np.unique(second[touch]).tolist())
    return found


def vanished(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair:
    """For some of the frames after the first the camera sees another clip, with other objects."""
    images, labels = pair[0].copy(), pair[1].copy()
    if len(images) < 2:
        return pair
    first = int(rng.integers(1, len(images)))
    last = int(rng.integers(first + 1, len(images) + 1))
    cut = other[1][first:last]
    images[first:last], labels[first:last] = other[0][first:last], np.where(cut > 0, cut + pair[1].max(), 0)
    return images, labels


class Targets(NamedTuple):
    """What K masks should be.

    coarse: (K, GRID, GRID) float32, the share of each cell that is the object. box: (K, 4) float32, x0, y0, x1, y1 in
    [0, 1] around the object. fine: (K, FINE, FINE) float32, the mask sampled in that box. present: (K,) float32, 1
    seen, 0 not, NaN not to be judged.
    """

    coarse: torch.Tensor
    box: torch.Tensor
    fine: torch.Tensor
    present: torch.Tensor

    def of(self, chosen: torch.Tensor) -> Targets:
        """Of these, (K,) bool."""
        return Targets(*(part[chosen] for part in self))


def targets(labels: list[np.ndarray], objects: list[int]) -> Targets:
    """Of objects[k] in the label image labels[k] (h, w) uint8; 0 stands for no object at all."""
    coarse = np.zeros((len(objects), GRID, GRID), np.float32)
    boxes = np.tile(np.float32([0.25, 0.25, 0.75, 0.75]), (len(objects), 1))
    fine = np.zeros((len(objects), FINE, FINE), np.float32)
    present = np.zeros(len(objects), np.float32)
    for place, (image, one) in enumerate(zip(labels, objects)):
        if one == 0:
            continue
        mask = (image == one).astype(np.float32)
        area = mask.sum()
        present[place] = 1 if area >= SURE_AREA else (np.nan if area else 0)
        if area == 0:
            continue
        height, width = mask.shape
        x, y, wide, tall = cv2.boundingRect(mask.astype(np.uint8))
        margin = 0.25 * max(wide, tall) + 6
        box = np.array([x - margin, y - margin, x + wide + margin, y + tall + margin])
        box = box.clip(0, (width, height, width, height))
        size = (box[2:] - box[:2]) / FINE
        # Sample centres, in the convention in which pixel (0, 0) has its centre at (0, 0).
        warp = np.array([[size[0], 0, box[0] + size[0] / 2 - 0.5], [0, size[1], box[1] + size[1] / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        fine[place] = cv2.warpAffine(mask, warp, (FINE, FINE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        coarse[place] = cv2.resize(mask, (GRID, GRID), interpolation=cv2.INTER_AREA)
        boxes[place] = box / (width, height, width, height)
    return Targets(*(torch.from_numpy(part) for part in (coarse, boxes.astype(np.float32), fine, present)))


@dataclass(frozen=True)
class Clicks:
    """K clicks. frame: (K,) int64, the image. points: (K, 2) float32, pixels of the square input. targets: of each."""

    frame: torch.Tensor
    points: torch.Tensor
    targets: Targets


def clicks(labels: list[np.ndarray], rng: np.random.Generator, each: int, background: float) -> Clicks:
    """`each` clicks on random visible pixels of every object of every label image (h, w), and on average `background`
    ones an image beside all objects, which mean no object."""
    frames, points, objects = [], [], []
    for index, image in enumerate(labels):
        height, width = image.shape
        for one in np.unique(image):
            if one == 0:
                wanted = int(rng.poisson(background))
                free = cv2.dilate((image > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
                rows, columns = np.nonzero(free) if wanted else ((), ())
            else:
                wanted = each
                rows, columns = np.nonzero(image == one)
            if len(rows) < CLICK_AREA:
                continue
            for at in rng.integers(len(rows), size=wanted):
                # The network adds half a pixel of its input to a point; `masks_at_points` gives it x * S as it is.
                points.append(((columns[at] + 0.5) / width * IMAGE_SIZE, (rows[at] + 0.5) / height * IMAGE_SIZE))
                frames.append(index)
                objects.append(int(one))
    points = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
    found = targets([labels[index] for index in frames], objects)
    return Clicks(torch.tensor(frames, dtype=torch.int64), points, found)


def dense_targets(labels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """For `DenseHeads`: (N, 3, GRID, GRID) float32, object or not, and from there to its centre in x and y, in quarters
    of the image; and (N, h w) int64, the labels at the centres of the cells of the coarsest level."""
    result = np.zeros((len(labels), 3, GRID, GRID), np.float32)
    cells = (np.arange(GRID) + 0.5) / GRID
    for maps, image in zip(result, labels):
        height, width = image.shape
        grid = image[np.ix_((cells * height).astype(int), (cells * width).astype(int))]
        maps[0] = grid > 0
        for one in np.unique(grid):
            if one:
                rows, columns = np.nonzero(image == one)
                inside = grid == one
                x, y = np.broadcast_to(cells[None], grid.shape), np.broadcast_to(cells[:, None], grid.shape)
                maps[1][inside] = 4 * ((columns.mean() + 0.5) / width - x[inside])
                maps[2][inside] = 4 * ((rows.mean() + 0.5) / height - y[inside])
    cells = (np.arange(GRID // 4) + 0.5) / (GRID // 4)
    coarse = [
        image[np.ix_((cells * image.shape[0]).astype(int), (cells * image.shape[1]).astype(int))] for image in labels
    ]
    return torch.from_numpy(result), torch.from_numpy(np.stack(coarse).astype(np.int64)).flatten(1)


def masks_at(labels: list[np.ndarray], objects: list[int]) -> torch.Tensor:
    """Of objects[k] in labels[k] (h, w) uint8, as mask prompts: (K, 1, S, S) float32, 0 or 1, resized as
    `ObjectMemory.start` does."""
    square = (IMAGE_SIZE, IMAGE_SIZE)
    masks = [torch.from_numpy(image == one)[None, None].float() for image, one in zip(labels, objects)]
    masks = [F.interpolate(one, square, mode="bilinear", align_corners=False, antialias=True) for one in masks]
    return (torch.cat(masks) >= 0.5).float()
