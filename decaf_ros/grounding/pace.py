"""Sizes units of work so that they take a given time, by what earlier units took on this device."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

# Units have a multiple of so many tokens: kernels prefer round sizes, and a few sizes are planned once.
STEP_TOKENS = 64
# Weight of the newest measurement.
_NEWEST = 0.5


class Pace:
    """How many tokens of a kind of work fit into a unit.

    unit_ms: how long a unit may take; 0: units are not divided, so that results do not depend on measured times.
    """

    def __init__(self, device: torch.device, unit_ms: float = 0.0) -> None:
        self.unit_ms = unit_ms
        self._device = device
        self._seconds_per_token: dict[Hashable, float] = {}

    def size(self, kind: Hashable, tokens: int) -> int:
        """How many of the next `tokens` belong into one unit: all, or a multiple of STEP_TOKENS. The first unit of a
        kind is a small one, for a measurement."""
        if not self.unit_ms:
            return tokens
        seconds = self._seconds_per_token.get(kind)
        fitting = STEP_TOKENS if seconds is None else int(self.unit_ms / 1e3 / seconds)
        return min(tokens, max(STEP_TOKENS, fitting // STEP_TOKENS * STEP_TOKENS))

    @contextmanager
    def measured(self, kind: Hashable, tokens: int) -> Iterator[None]:
        """The block does the work of so many tokens. With a bound on units it ends when the device has done it."""
        if not self.unit_ms:
            yield
            return
        started_s = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = (time.perf_counter() - started_s) / tokens
        before = self._seconds_per_token.get(kind, seconds)
        self._seconds_per_token[kind] = before + _NEWEST * (seconds - before)
