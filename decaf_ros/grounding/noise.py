"""How much structure a map shows that is about no target: the reference for the presence score.

A map's height has no meaning by itself. Two measurements tell structure from noise, both with a fixed seed:

- `noise_peak`: the peak of smoothed Gaussian noise with the spread and the autocorrelation of the map's lower half. A
  target raises the upper half, so the lower half shows the noise.
- `repetition_in_time`, `repetition_across`: whether the same structure is there in the next frame, or in the other
  branch, beyond the same maps shifted at random. It needs no assumption about the values, so it also rejects maps with
  rare huge values, whose peaks exceed any Gaussian reference.
"""

from __future__ import annotations

import numpy as np
import torch

from decaf_ros.grounding.fusion import smooth_tensor

# Noise maps, and shifted maps, whose maximum is the reference.
_NOISE_MAPS = 8
_SHIFTS = 16
_SEED = 0

# Correlation of two unit Gaussians after min(x, 0), by their correlation before.
_BEFORE = np.linspace(-1, 1, 2001)
_AFTER = (np.sqrt(1 - _BEFORE**2) + _BEFORE * (np.pi - np.arccos(_BEFORE)) - 1) / (np.pi - 1)


def noise_peak(maps: np.ndarray, kernel: int) -> float:
    """Height above the median of the highest cell that noise like the map's lower half has after smoothing.

    maps: (T, h, w) float32, not smoothed. kernel: see `fusion.smooth`. 0 for a map without spread there.
    """
    values = np.ascontiguousarray(maps, np.float32).ravel()
    low = np.minimum(values - np.median(values), 0)
    # The standard deviation of a Gaussian with this mean lower half; less sensitive to rare very low values than the
    # lower half's own standard deviation.
    spread = float(np.sqrt(2 * np.pi)) * float(-low.mean())
    if spread <= 0:
        return 0.0
    rng = np.random.default_rng(_SEED)
    # Normal scores of the ranks, equal values in random order; the upper half becomes 0.
    order = rng.permutation(len(values))
    order = order[np.argsort(values[order], kind="stable")]
    scores = np.empty_like(values)
    quantiles = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    scores[order] = torch.special.ndtri(quantiles).clamp_max(0).numpy()
    power = torch.fft.rfftn(torch.from_numpy((scores - scores.mean()).reshape(maps.shape))).abs() ** 2
    covariance = torch.fft.irfftn(power, s=maps.shape).numpy()
    correlation = np.interp(covariance / covariance.flat[0], _AFTER, _BEFORE).astype(np.float32)
    amplitude = torch.fft.rfftn(torch.from_numpy(correlation)).real.clamp_min(0).sqrt()
    white = torch.from_numpy(rng.standard_normal((_NOISE_MAPS, *maps.shape), dtype=np.float32))
    axes = (1, 2, 3)
    noise = torch.fft.irfftn(amplitude * torch.fft.rfftn(white, dim=axes), s=maps.shape, dim=axes)
    noise = noise / noise.std(dim=axes, keepdim=True)
    return spread * float(smooth_tensor(noise.flatten(0, 1), kernel).max())


def repetition_in_time(maps: np.ndarray) -> float | None:
    """Correlation of neighbouring frames beyond that of frames shifted at random: [0, 1]; None for a single frame.

    maps: (T, h, w) float32, smoothed.
    """
    count, height, width = maps.shape
    if count < 2:
        return None
    rng = np.random.default_rng(_SEED)
    shifted = []
    for _ in range(_SHIFTS):
        rows = (np.arange(height) + rng.integers(0, height, (count, 1)))[:, :, None] % height
        columns = (np.arange(width) + rng.integers(0, width, (count, 1)))[:, None, :] % width
        moved = maps[np.arange(count)[:, None, None], rows, columns]
        shifted.append(correlation(moved[1:], moved[:-1]))
    return _beyond(correlation(maps[1:], maps[:-1]), max(shifted))


def repetition_across(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two maps beyond that with the second one shifted to another place: [0, 1].

    Maps: (T, h, w) float32 of one shape, smoothed.
    """
    count, height, width = second.shape
    rng = np.random.default_rng(_SEED)
    # At least a quarter of the map away in one direction: near shifts correlate because maps are smooth.
    far = [
        (down, right)
        for down in range(height)
        for right in range(width)
        if 4 * min(down, height - down) >= height or 4 * min(right, width - right) >= width
    ]
    places = rng.integers(0, len(far), _SHIFTS)
    times = rng.integers(0, count, _SHIFTS)
    shifted = [
        correlation(first, np.roll(second, (time, *far[place]), (0, 1, 2))) for time, place in zip(times, places)
    ]
    return _beyond(correlation(first, second), max(shifted))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation of two arrays of one shape; 0 for constant ones."""
    first, second = first.ravel() - first.mean(), second.ravel() - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale > 0 else 0.0


def _beyond(value: float, reference: float) -> float:
    """Share of the way from the reference (at least 0) to 1."""
    reference = max(reference, 0.0)
    return max(value - reference, 0.0) / (1 - reference) if reference < 1 else 0.0
