"""Rollout, grounding of windows, and what is kept between them: this package against `literal.py`."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import torch
from literal import literal_grounding, literal_rollout
from timing import extra_mib, median_ms, timed_ms

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.stages import StageClock
from decaf_ros.types import Grounding, Window
from models import Shape, random_mllm, window

QUERY, OTHER = "the mug that was just put down", "what can be used to cut bread"
FAST = {"grounding.mode": "fast"}


def rollout(tokens: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """8 layers of 12 heads (2 key heads) of 64, float32: row vector against full matrices."""
    torch.manual_seed(0)
    layers = [
        LayerAttention(
            torch.randn(1, 12, tokens, 64, device=device), torch.randn(1, 2, tokens, 64, device=device), 64**-0.5
        )
        for _ in range(8)
    ]
    visual = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    visual[:, 20:-60] = True
    block = 64 if device == "cpu" else 512

    def row() -> torch.Tensor:
        return rollout_last_row(layers, visual, block=block)

    def literal() -> torch.Tensor:
        return literal_rollout(layers, visual)

    error = float((row() - literal()).abs().max())
    times = median_ms(row, repeats), median_ms(literal, repeats)
    memory = extra_mib(row, device), extra_mib(literal, device)
    return {
        "row_ms": times[0],
        "literal_ms": times[1],
        "speedup": times[1] / times[0],
        "row_mib": memory[0],
        "literal_mib": memory[1],
        "memory_ratio": memory[0] / memory[1],
        "error": error,
    }


class Windows:
    """Windows of one length on one model. new: key frames that the next window does not share with the one before."""

    def __init__(self, folder: Path, shape: Shape, frames: int, new: int, device: str = "cpu") -> None:
        self.mllm: Mllm = random_mllm(folder, shape, device)
        self.first, self.second = window(frames), window(frames, first=new)
        self.config = replace(DecafConfig(), FAST)

    def ground(self, grounder: Grounder, where: Window, query: str = QUERY) -> tuple[Grounding, dict[str, float]]:
        clock = StageClock(STAGES)
        found = grounder.ground(where, query, self.config, clock)
        return found, dict(clock.stage_ms)

    def literal(self) -> Grounding:
        return literal_grounding(self.mllm, self.first, QUERY, self.config)

    def measure(self, repeats: int) -> dict[str, float]:
        """Milliseconds: a window with empty caches, the next one, another query on the first; and the literal."""
        times: dict[str, list[float]] = {name: [] for name in ("cold_ms", "warm_ms", "second_query_ms", "literal_ms")}
        for _ in range(repeats):
            grounder = Grounder(self.mllm, EngineConfig())
            times["cold_ms"].append(timed_ms(lambda g=grounder: self.ground(g, self.first)))
            times["second_query_ms"].append(timed_ms(lambda g=grounder: self.ground(g, self.first, OTHER)))
            times["warm_ms"].append(timed_ms(lambda g=grounder: self.ground(g, self.second)))
            times["literal_ms"].append(timed_ms(self.literal))
        found = {name: statistics.median(values) for name, values in times.items()}
        found["cold_speedup"] = found["literal_ms"] / found["cold_ms"]
        found["warm_speedup"] = found["literal_ms"] / found["warm_ms"]
        found["second_query_ratio"] = found["second_query_ms"] / found["cold_ms"]
        ours, theirs = self.ground(Grounder(self.mllm), self.first)[0], self.literal()
        found["error"] = float(
            max(
                np.abs(getattr(branch, name) - getattr(other, name)).max()
                for branch, other in zip(
                    (ours.maps.video, ours.maps.frames), (theirs.maps.video, theirs.maps.frames)
                )
                for name in ("object", "background")
            )
        )
        return found
