"""Turns clips into training batches: a pool of decoded clips, augmentation, occluders, and mask targets."""

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
FINE = 48  # samples per side of the box around an object, for its outline
CLICK_AREA = 40  # minimum visible pixels of an object that is clicked or followed
SURE_AREA = 20  # with 1 to 19 visible pixels an object counts neither as visible nor as absent

Pair = tuple[np.ndarray, np.ndarray]  # images (T, H, W, 3) uint8 and labels (T, H, W) uint8


class ClipPool:
    """A bounded number of decoded clips, replaced one at a time; the folder may grow meanwhile.

    read: reads a clip file. capacity: clips in memory, 10 MB for 32 frames.
    """

    def __init__(self, folder: Path, read: Callable[[Path], TabletopClip], capacity: int) -> None:
        self._folder, self._read, self._capacity = folder, read, capacity
        self._clips: list[Pair] = []
        self._hidden_at: list[int | None] = []
        self._waiting: list[Path] = []
        self._next = 0

    def exchange(self, rng: np.random.Generator) -> None:
        """Reads one clip; at capacity it replaces the oldest. Raises as `training_clips`."""
        if not self._waiting:
            self._waiting = training_clips(self._folder)
            rng.shuffle(self._waiting)
        clip = self._read(self._waiting.pop())
        if len(self._clips) < self._capacity:
            self._clips.append((clip.images, clip.labels))
            self._hidden_at.append(_hidden_at(clip.labels))
            return
        oldest = self._clips[self._next]
        if oldest[0].shape == clip.images.shape:  # reuse the memory: long-lived large blocks fragment the heap
            np.copyto(oldest[0], clip.images)
            np.copyto(oldest[1], clip.labels)
        else:
            self._clips[self._next] = (clip.images, clip.labels)
        self._hidden_at[self._next] = _hidden_at(clip.labels)
        self._next = (self._next + 1) % self._capacity

    def frames(self, rng: np.random.Generator, count: int) -> list[Pair]:
        """`count` single frames, of different clips if there are enough."""
        chosen = rng.permutation(len(self._clips))[:count]
        chosen = np.concatenate([chosen, rng.integers(len(self._clips), size=count - len(chosen))]).astype(int)
        picked = [(self._clips[index], int(rng.integers(len(self._clips[index][0])))) for index in chosen]
        return [(images[at : at + 1], labels[at : at + 1]) for (images, labels), at in picked]

    def stretches(self, rng: np.random.Generator, count: int, length: int) -> list[Pair]:
        """`count` stretches of `length` frames with a step of 1 to 4, half of them backwards.

        Clips with a temporary occlusion are drawn three times as often, mostly around the occlusion.
        """
        result = []
        weights = np.where([at is None for at in self._hidden_at], 1.0, 3.0)
        repeat = count > len(self._clips)
        for index in rng.choice(len(self._clips), size=count, p=weights / weights.sum(), replace=repeat):
            images, labels = self._clips[index]
            step = int(rng.integers(1, min(4, (len(images) - 1) // (length - 1)) + 1))
            last = len(images) - 1 - step * (length - 1)
            start = int(rng.integers(last + 1))
            hidden_at = self._hidden_at[index]
            if hidden_at is not None and rng.random() < 0.75:
                # The occlusion is never at the first frame drawn, so the object is visible before it.
                start = min(max(hidden_at - step * int(rng.integers(1, length)), 0), last)
            frames = start + step * np.arange(length)
            frames = frames[::-1] if rng.random() < 0.5 else frames
            result.append((images[frames], labels[frames]))
        return result


def _hidden_at(labels: np.ndarray) -> int | None:
    """The frame of the deepest temporary occlusion; None without one.

    An object is temporarily occluded if it shows less than 0.4 of its median area, but over 0.6 in the first and last
    frame.
    """
    counts = np.stack([np.bincount(image.ravel(), minlength=256)[1:] for image in labels]).astype(float)
    median = np.median(counts, axis=0)
    returns = (counts[0] > 0.6 * median) & (counts[-1] > 0.6 * median) & (median > 0)
    share = np.where(returns, counts / np.maximum(median, 1), 1.0)
    return int(share.min(axis=1).argmin()) if share.min() < 0.4 else None


def augmented(pair: Pair, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Applies one random crop, flip and colour change to all frames.

    Returns pixels (T, 3, S, S) float32, the network's input, and labels (T, h, w) uint8 of the crop.
    """
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
    # As in `Sam2.normalised`.
    pixels = F.interpolate(pixels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False, antialias=True)
    if rng.random() < 0.8:
        gain = torch.from_numpy(rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, (3, 1, 1))).float()
        grey = pixels.mean(1, keepdim=True)
        pixels = (grey + (pixels - grey) * float(rng.uniform(0.7, 1.2))) * gain + float(rng.uniform(-0.08, 0.08))
        pixels = pixels.clamp(0, 1)
    mean, deviation = torch.tensor(IMAGE_MEAN)[:, None, None], torch.tensor(IMAGE_STD)[:, None, None]
    return (pixels - mean) / deviation, np.ascontiguousarray(labels)


def with_patch_in_front(pair: Pair, others: list[Pair], rng: np.random.Generator) -> Pair:
    """Hides an object behind a sliding patch of another clip, in some frames after the first."""
    images, labels = pair[0].copy(), pair[1].copy()
    count, height, width = labels.shape
    if count < 3:
        return pair
    first = int(rng.integers(1, count - 1))
    last = int(rng.integers(first + 1, count))
    present = [label for label in np.unique(labels[0]) if label and (labels[first] == label).sum() >= CLICK_AREA]
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
    is_round = rng.random() < 0.5
    y, x = np.mgrid[:height, :width]
    for index in range(first, last):
        distance = np.abs(np.stack([x, y], -1) - centre - speed * (index - first)) / half
        patch = np.hypot(*np.moveaxis(distance, -1, 0)) < 1.2 if is_round else (distance < 1).all(-1)
        images[index][patch] = source[patch]
        labels[index][patch] = owners[patch]
    return images, labels


def with_object_in_front(pair: Pair, others: list[Pair], rng: np.random.Generator) -> Pair:
    """Moves an object of another clip, cut out along its outline, in front of an object; sometimes it stops there.

    It can be followed itself from the first frame on. Half of the time it takes the colour of the object it passes,
    because the network confuses similar objects most. Patches alone (`with_patch_in_front`) teach to lose a hidden
    object, but not to distinguish it from a larger one in front of it.
    """
    images, labels = pair[0].copy(), pair[1].copy()
    count, height, width = labels.shape
    present = _whole_objects(labels[0])
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
    # It covers the object at frame `meets`; per frame it moves 0.15 to 0.7 of the distance that uncovers the object.
    meets, stops = rng.uniform(0.5, count), rng.uniform(0.5, count) if rng.random() < 0.3 else np.inf
    angle = rng.normal(0, 0.4) + (np.pi if rng.random() < 0.5 else 0)
    speed = rng.uniform(0.15, 0.7) * (size + shape) / 2 * (np.cos(angle), np.sin(angle))
    place = np.array([columns.mean(), rows.mean()]) + rng.normal(0, 0.15, 2) * size
    new_label = int(labels.max()) + 1
    for index in range(count):
        left, top = place + speed * (min(index, max(stops, meets)) - meets) - shape / 2
        shift = np.array([[1, 0, left], [0, 1, top]])
        moved = cv2.warpAffine(pixels, shift, (width, height), borderMode=cv2.BORDER_REPLICATE)
        share = cv2.warpAffine(mask, shift, (width, height))[..., None]
        images[index] = np.round(share * moved + (1 - share) * images[index])
        labels[index][share[..., 0] > 0.5] = new_label
    return images, labels


def _cut_out(others: list[Pair], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A random object of a random frame: its box (h, w, 3) uint8 and mask (h, w) float32; None if there is none."""
    images, labels = others[rng.integers(len(others))]
    index = rng.integers(len(labels))
    objects = _whole_objects(labels[index])
    if not objects:
        return None
    mask = (labels[index] == rng.choice(objects)).astype(np.uint8)
    left, top, wide, tall = cv2.boundingRect(mask)
    box = (slice(top, top + tall), slice(left, left + wide))
    # Without the outermost pixels, which mix with the background. Too thin objects are dropped.
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8))[box]
    return (images[index][box], inner.astype(np.float32)) if inner.sum() >= CLICK_AREA else None


def _whole_objects(labels: np.ndarray) -> list[int]:
    """Labels of the objects that are large enough to click and do not touch the border. labels: (H, W)."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    inner = [label for label in np.unique(labels) if label and label not in border]
    return [int(label) for label in inner if (labels == label).sum() >= CLICK_AREA]


def touching(labels: np.ndarray) -> set[int]:
    """Labels of the objects within two pixels of another one in some frame. labels: (T, H, W)."""
    result: set[int] = set()
    for first, second in ((labels[:, :, 3:], labels[:, :, :-3]), (labels[:, 3:], labels[:, :-3])):
        touch = (first != second) & (first > 0) & (second > 0)
        result.update(np.unique(first[touch]).tolist(), np.unique(second[touch]).tolist())
    return result


def with_cut(pair: Pair, other: Pair, rng: np.random.Generator) -> Pair:
    """Replaces some frames after the first by those of another clip, so that all objects are absent."""
    images, labels = pair[0].copy(), pair[1].copy()
    if len(images) < 2:
        return pair
    first = int(rng.integers(1, len(images)))
    last = int(rng.integers(first + 1, len(images) + 1))
    cut = other[1][first:last]
    images[first:last], labels[first:last] = other[0][first:last], np.where(cut > 0, cut + pair[1].max(), 0)
    return images, labels


class Targets(NamedTuple):
    """Targets of K masks.

    Attributes:
        coarse: (K, GRID, GRID) float32, share of each cell that the object covers.
        box: (K, 4) float32, x0, y0, x1, y1 in [0, 1] around the object, with a margin.
        fine: (K, FINE, FINE) float32, the mask sampled in that box.
        present: (K,) float32, 1 visible, 0 absent, NaN undecided.
    """

    coarse: torch.Tensor
    box: torch.Tensor
    fine: torch.Tensor
    present: torch.Tensor

    def select(self, chosen: torch.Tensor) -> Targets:
        """The targets where `chosen`, (K,) bool, is true."""
        return Targets(*(part[chosen] for part in self))


def make_targets(labels: list[np.ndarray], objects: list[int]) -> Targets:
    """Targets of object objects[k] in the label image labels[k] (h, w) uint8; object 0 means no object."""
    coarse = np.zeros((len(objects), GRID, GRID), np.float32)
    boxes = np.tile(np.float32([0.25, 0.25, 0.75, 0.75]), (len(objects), 1))
    fine = np.zeros((len(objects), FINE, FINE), np.float32)
    present = np.zeros(len(objects), np.float32)
    for k, (image, label) in enumerate(zip(labels, objects)):
        if label == 0:
            continue
        mask = (image == label).astype(np.float32)
        area = mask.sum()
        present[k] = 1 if area >= SURE_AREA else (np.nan if area else 0)
        if area == 0:
            continue
        height, width = mask.shape
        x, y, wide, tall = cv2.boundingRect(mask.astype(np.uint8))
        margin = 0.25 * max(wide, tall) + 6
        box = np.array([x - margin, y - margin, x + wide + margin, y + tall + margin])
        box = box.clip(0, (width, height, width, height))
        size = (box[2:] - box[:2]) / FINE
        # Sample centres, in the convention that the centre of pixel (0, 0) is at (0, 0).
        warp = np.array([[size[0], 0, box[0] + size[0] / 2 - 0.5], [0, size[1], box[1] + size[1] / 2 - 0.5]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        fine[k] = cv2.warpAffine(mask, warp, (FINE, FINE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        coarse[k] = cv2.resize(mask, (GRID, GRID), interpolation=cv2.INTER_AREA)
        boxes[k] = box / (width, height, width, height)
    return Targets(*(torch.from_numpy(part) for part in (coarse, boxes.astype(np.float32), fine, present)))


@dataclass(frozen=True)
class Clicks:
    """K clicks. frame: (K,) int64 image index. points: (K, 2) float32, pixels of the square input. targets: of each."""

    frame: torch.Tensor
    points: torch.Tensor
    targets: Targets


def clicks(labels: list[np.ndarray], rng: np.random.Generator, each: int, background: float) -> Clicks:
    """Draws `each` clicks on visible pixels of every object in every label image (h, w), and a Poisson-distributed
    number, mean `background`, of clicks per image away from all objects, with object 0."""
    frames, points, objects = [], [], []
    for index, image in enumerate(labels):
        height, width = image.shape
        for label in np.unique(image):
            if label == 0:
                count = int(rng.poisson(background))
                free = cv2.dilate((image > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
                rows, columns = np.nonzero(free) if count else ((), ())
            else:
                count = each
                rows, columns = np.nonzero(image == label)
            if len(rows) < CLICK_AREA:
                continue
            for at in rng.integers(len(rows), size=count):
                # As in `masks_at_points`, x * S without the half pixel that the network adds to a point.
                points.append(((columns[at] + 0.5) / width * IMAGE_SIZE, (rows[at] + 0.5) / height * IMAGE_SIZE))
                frames.append(index)
                objects.append(int(label))
    points = torch.tensor(points, dtype=torch.float32).reshape(-1, 2)
    targets = make_targets([labels[index] for index in frames], objects)
    return Clicks(torch.tensor(frames, dtype=torch.int64), points, targets)


def dense_targets(labels: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets of `AuxiliaryHeads`.

    Returns (N, 3, GRID, GRID) float32: object or not, and offset to its centre in x and y, in quarters of the image;
    and (N, h w) int64: labels at the cell centres of the coarsest level.
    """
    result = np.zeros((len(labels), 3, GRID, GRID), np.float32)
    cells = (np.arange(GRID) + 0.5) / GRID
    for maps, image in zip(result, labels):
        height, width = image.shape
        grid = image[np.ix_((cells * height).astype(int), (cells * width).astype(int))]
        maps[0] = grid > 0
        for label in np.unique(grid):
            if label:
                rows, columns = np.nonzero(image == label)
                inside = grid == label
                x, y = np.broadcast_to(cells[None], grid.shape), np.broadcast_to(cells[:, None], grid.shape)
                maps[1][inside] = 4 * ((columns.mean() + 0.5) / width - x[inside])
                maps[2][inside] = 4 * ((rows.mean() + 0.5) / height - y[inside])
    cells = (np.arange(GRID // 4) + 0.5) / (GRID // 4)
    coarse = [
        image[np.ix_((cells * image.shape[0]).astype(int), (cells * image.shape[1]).astype(int))] for image in labels
    ]
    return torch.from_numpy(result), torch.from_numpy(np.stack(coarse).astype(np.int64)).flatten(1)


def masks_at(labels: list[np.ndarray], objects: list[int]) -> torch.Tensor:
    """Mask prompts of objects[k] in labels[k] (h, w) uint8: (K, 1, S, S) float32, 0 or 1, resized as in
    `ObjectMemory.start`."""
    square = (IMAGE_SIZE, IMAGE_SIZE)
    masks = [torch.from_numpy(image == label)[None, None].float() for image, label in zip(labels, objects)]
    masks = [F.interpolate(mask, square, mode="bilinear", align_corners=False, antialias=True) for mask in masks]
    return (torch.cat(masks) >= 0.5).float()
