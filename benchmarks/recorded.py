"""Frames of the demo's bag."""

from __future__ import annotations

import _paths  # noqa: F401
import cv2
import numpy as np
from models import SIZE_HW

from decaf_ros.io.bags import BagReader
from decaf_ros.resources import resolve_path
from decaf_ros.types import Frame, Window
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, read_ground_truth


def recorded_window(frames: int, size_hw: tuple[int, int] = SIZE_HW) -> tuple[Window, np.ndarray]:
    """Frames of the demo's bag, resized, and a map to plant, (T, 24, 42) float32 in [0, 1].

    The map has a peak on each of three objects that are visible throughout, with about two tokens above 0.8 per frame.
    """
    bag = resolve_path("package://decaf_tabletop/demo/bags/story")
    truth = read_ground_truth(bag)
    with BagReader(bag) as reader:
        labelled = [frame for frame in reader.frames(COMPRESSED_TOPIC) if frame.stamp_ns in truth.labels]
    chosen = labelled[:: len(labelled) // frames][:frames]
    labels = np.stack([truth.labels[frame.stamp_ns] for frame in chosen])
    visible = [label for label in range(1, len(truth.objects) + 1) if ((labels == label).sum(axis=(1, 2)) > 300).all()]
    planted = np.zeros((frames, 24, 42), np.float32)
    rows, columns = np.mgrid[:24, :42] + 0.5
    for label in visible[:3]:
        for peak, mask in zip(planted, labels == label):
            row, column = np.argwhere(mask).mean(axis=0) / mask.shape * peak.shape
            np.maximum(peak, np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 1.4**2)), out=peak)
    images = [cv2.resize(frame.image, size_hw[::-1]) for frame in chosen]
    return Window(tuple(Frame(image, 10**8 * (k + 1), "", k) for k, image in enumerate(images))), planted
