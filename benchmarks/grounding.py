"""Rollout, grounding of windows, and what is kept between them: this package against `literal.py`."""

from __future__ import annotations

import numpy as np
import torch
from literal import literal_grounding, literal_rollout
from models import window
from timing import Measured, parts_ms

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.grounding import engine
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.stages import StageClock
from decaf_ros.types import Grounding, Window

QUERY, OTHER = "the mug that was just put down", "what can be used to cut bread"


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

    row, literal = Measured(device), Measured(device)
    for _ in range(repeats):
        row.run(lambda: rollout_last_row(layers, visual, block=block))
        literal.run(lambda: literal_rollout(layers, visual))
    return {
        "row_ms": row.ms,
        "literal_ms": literal.ms,
        "speedup": literal.ms / row.ms,
        "row_mib": row.mib,
        "literal_mib": literal.mib,
        "memory_ratio": row.mib / literal.mib,
        "error": float((row.result - literal.result).abs().max()),
    }


class Windows:
    """Windows of one length on one model. new: key frames that the next window does not share with the one before.
    mode: `fast`, or `paper`, which decodes categories."""

    def __init__(self, mllm: Mllm, frames: int, new: int, device: str = "cpu", mode: str = "fast") -> None:
        self.mllm = mllm
        self.device = device
        self.frames, self.new = frames, new
        self.config = replace(DecafConfig(), {"grounding.mode": mode})

    def ground(self, grounder: Grounder, where: Window, query: str = QUERY) -> Grounding:
        return grounder.ground(where, query, self.config, StageClock(STAGES))

    def literal(self, where: Window) -> Grounding:
        return literal_grounding(self.mllm, where, QUERY, self.config)

    def measure(self, repeats: int) -> dict[str, float]:
        """Milliseconds: a window with empty caches, the next one, another query on the first; and the literal. What
        each takes of memory, in MiB, with the caches that it fills. error: the largest difference of a map (see
        `_difference`), of the first from the literal, of the other two from what comes without caches."""
        self.ground(Grounder(self.mllm), window(2))  # what is done once in a process
        runs: dict[str, Measured] = {}
        for _ in range(repeats):
            # New frames: theirs are the caches' keys.
            first, second = window(self.frames), window(self.frames, first=self.new)
            grounder = Grounder(self.mllm, EngineConfig())
            for name, call in (
                ("cold", lambda g=grounder, w=first: self.ground(g, w)),
                ("second_query", lambda g=grounder, w=first: self.ground(g, w, OTHER)),
                ("warm", lambda g=grounder, w=second: self.ground(g, w)),
                ("literal", lambda w=first: self.literal(w)),
            ):
                runs.setdefault(name, Measured(self.device)).run(call)
        found = {f"{name}_ms": run.ms for name, run in runs.items()}
        found |= {
            "cold_speedup": runs["literal"].ms / runs["cold"].ms,
            "warm_speedup": runs["literal"].ms / runs["warm"].ms,
            "second_query_ratio": runs["second_query"].ms / runs["cold"].ms,
            "cold_mib": runs["cold"].mib,
            "literal_mib": runs["literal"].mib,
            "peak_mib": max(run.peak_mib for name, run in runs.items() if name != "literal"),
        }
        ours, theirs = runs["cold"].result, runs["literal"].result
        found["same_answers"] = float((ours.answers, ours.category) == (theirs.answers, theirs.category))
        bare = Grounder(self.mllm, EngineConfig(prefix_cache_mib=0, feature_cache_mib=0, map_cache_mib=0))
        found["error"] = max(
            _difference(ours, theirs),
            _difference(runs["second_query"].result, self.ground(bare, window(self.frames), OTHER)),
            _difference(runs["warm"].result, self.ground(bare, window(self.frames, first=self.new))),
        )
        return found

    def parts(self) -> dict[str, dict[str, float]]:
        """Where the time of a cold window, of another query and of the next window goes, in milliseconds."""
        grounder = Grounder(self.mllm, EngineConfig())
        parts = {
            "vision tower": (self.mllm, "encode"),
            "shared prefix": (grounder.engine, "_new_prefix"),
            "suffixes": (grounder.engine, "_suffix"),
            "rollout": (engine, "rollout_of_suffixes"),
        }
        calls = {
            "cold": (window(self.frames), QUERY),
            "second query": (window(self.frames), OTHER),
            "warm": (window(self.frames, first=self.new), QUERY),
        }
        return {name: parts_ms(parts, lambda c=call: self.ground(grounder, *c)) for name, call in calls.items()}


def _difference(ours: Grounding, theirs: Grounding) -> float:
    """The largest of any map of a branch, relative to the largest value of that map."""
    return float(
        max(
            np.abs(getattr(branch, name) - getattr(other, name)).max() / getattr(other, name).max()
            for branch, other in zip((ours.maps.video, ours.maps.frames), (theirs.maps.video, theirs.maps.frames))
            for name in ("object", "background")
        )
    )
