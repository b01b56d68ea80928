"""Depth as a stereo camera measures it, from exact depth."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from decaf_tabletop.world.clip import TabletopClip

BASELINE_M = 0.05
# In pixels of disparity: standard deviation of the noise, which is smooth over about two pixels, and a value's step.
NOISE_PX, STEP_PX = 0.08, 1 / 32
# Pixels at an edge in depth are mixed up to this far, and an edge is a step of this share of the depth.
MIXED_PX, EDGE = 1, 0.03
# Share of pixels at edges that are holes, and of the places elsewhere where a hole begins.
EDGE_HOLES, HOLES = 0.4, 0.0005
MILLIMETRE = 0.001


def measured_clip(clip: TabletopClip) -> TabletopClip:
    """The clip, which has depth, with `measured_depth` on each frame; its seed gives the noise."""
    assert clip.depth_m is not None
    rng = np.random.default_rng(clip.seed)
    depth = np.stack([measured_depth(exact, clip.intrinsics[0, 0], rng) for exact in clip.depth_m])
    return dataclasses.replace(clip, depth_m=depth)


def measured_depth(depth_m: np.ndarray, focal_px: float, rng: np.random.Generator) -> np.ndarray:
    """Adds what a stereo camera does to depth.

    Mixed pixels: beside an edge a pixel lies anywhere between both sides. Noise and steps of the disparity, so of depth
    with its square; then whole millimetres. Holes: many pixels at edges, the strip left of a near object that only one
    of the two imagers sees, and small spots.

    Args:
        depth_m: (H, W) float32, exact, metres.
        focal_px: the camera's focal length.

    Returns:
        (H, W) float32 in metres, NaN where nothing is measured.
    """
    shape, base = depth_m.shape, focal_px * BASELINE_M
    window = np.ones((2 * MIXED_PX + 1,) * 2, np.uint8)
    near, far = cv2.erode(depth_m, window), cv2.dilate(depth_m, window)
    edge = far - near > EDGE * near
    share = rng.uniform(size=shape).astype(np.float32)
    mixed = edge & (rng.uniform(size=shape) < 0.5)
    depth = np.where(mixed, near + share * (far - near), depth_m)
    noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), 1.0)
    disparity = base / depth + NOISE_PX * noise / noise.std()
    disparity = np.rint(disparity / STEP_PX) * STEP_PX
    measured = np.rint(base / disparity / MILLIMETRE) * MILLIMETRE
    spots = cv2.dilate((rng.uniform(size=shape) < HOLES).astype(np.uint8), cv2.getStructuringElement(2, (3, 3))) > 0
    holes = spots | (edge & (rng.uniform(size=shape) < EDGE_HOLES)) | _one_sided(base / depth_m)
    return np.where(holes, np.nan, measured).astype(np.float32)


def _one_sided(disparity: np.ndarray) -> np.ndarray:
    """Pixels that the right imager does not see: a pixel to their right has a disparity larger by more than the way."""
    hidden = np.zeros(disparity.shape, bool)
    for way in range(1, int(np.ptp(disparity)) + 1):
        hidden[:, :-way] |= disparity[:, way:] - disparity[:, :-way] > way
    return hidden
