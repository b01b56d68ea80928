"""Rollout and grounding of windows, with and without warm caches: this package against `literal.py`."""

from __future__ import annotations

import numpy as np
import torch
from literal import literal_grounding, literal_rollout
from models import QWEN_7B, in_bfloat16, random_window
from timing import Measurement, kernel_times, parts_ms, timed_ms

from decaf_ros.config import DecafConfig, EngineConfig, WindowConfig, replace
from decaf_ros.devices import has_bfloat16_units
from decaf_ros.grounding import engine
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.grounder import STAGES, Grounder
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.grounding.prefix import Prefix
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Grounding, Window

QUERY, SECOND_QUERY = "the mug that was just put down", "what can be used to cut bread"
THREE_QUERIES = (QUERY, SECOND_QUERY, "the object that rolled to the edge")


def rollout(tokens: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Row vector against full matrices: 8 layers, 12 heads (2 key heads) of size 64, float32."""
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

    row, literal = Measurement(device), Measurement(device)
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


def kernels(tokens: int, repeats: int, device: str = "cpu") -> dict[str, float]:
    """The rollout in PyTorch, by rows per block, and in Triton: milliseconds per layer of Qwen2.5-VL-7B.

    bfloat16 on a GPU. error: largest difference between both, relative to the maximum; not on a CPU.
    """
    generator, dtype = torch.Generator(device).manual_seed(0), torch.float32 if device == "cpu" else torch.bfloat16

    def part(heads: int) -> torch.Tensor:
        # The memory layout of the model.
        size = (1, tokens, heads, QWEN_7B.hidden // QWEN_7B.heads)
        return torch.randn(size, generator=generator, device=device).to(dtype).transpose(1, 2)

    layers = [LayerAttention(part(QWEN_7B.heads), part(QWEN_7B.key_heads), 128**-0.5) for _ in range(2)]
    visual = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    visual[:, 20:-60] = True
    runs = {f"torch_{block}": (block, "torch") for block in ((64,) if device == "cpu" else (256, 512, 1024, 2048))}
    if device != "cpu":
        runs["triton"] = (512, "triton")
    found, figures = {}, {}
    for name, (block, kernel) in runs.items():
        measured = Measurement(device)
        for _ in range(repeats + 1):
            measured.run(lambda: rollout_last_row(layers, visual, block=block, kernel=kernel))  # noqa: B023
        found[name], figures[f"{name}_ms"] = measured.result, measured.ms / len(layers)
    if "triton" in found:
        expected = found["torch_512"]
        figures["error"] = float((found["triton"] - expected).abs().max() / expected.max())
    return figures


class WindowComparison:
    """Windows of one length on one model.

    new_frames: key frames that a window does not share with the previous one. mode: `fast`, or `paper`, which decodes
    categories.
    """

    def __init__(self, mllm: Mllm, frames: int, new_frames: int, device: str = "cpu", mode: str = "fast") -> None:
        self.mllm = mllm
        self.device = device
        self.frames, self.new_frames = frames, new_frames
        # A random model ends no answer; a real one's category has few tokens.
        options = {"grounding.mode": mode, "presence.ask": False, "mllm.max_new_tokens": 16}
        self.config = replace(DecafConfig(), options)

    def ground(self, grounder: Grounder, window: Window, query: str = QUERY) -> Grounding:
        return finish(grounder.ground(window, query, self.config, StageClock(STAGES)))

    def literal(self, window: Window) -> Grounding:
        return literal_grounding(self.mllm, window, QUERY, self.config)

    def measure(self, repeats: int) -> dict[str, float]:
        """Milliseconds for a window with empty caches (cold), a second query on it, the next window (warm), and the
        literal method; memory in MiB, including the caches.

        error: largest map difference (see `_difference`): cold against literal, the other two against no caches.
        """
        self.ground(Grounder(self.mllm), random_window(2))  # one-time work of a process
        runs: dict[str, Measurement] = {}
        for _ in range(repeats):
            # New Frame objects, because a frame caches its digest.
            first, second = random_window(self.frames), random_window(self.frames, first=self.new_frames)
            grounder = Grounder(self.mllm, EngineConfig())
            for name, call in (
                ("cold", lambda g=grounder, w=first: self.ground(g, w)),
                ("second_query", lambda g=grounder, w=first: self.ground(g, w, SECOND_QUERY)),
                ("warm", lambda g=grounder, w=second: self.ground(g, w)),
                ("literal", lambda w=first: self.literal(w)),
            ):
                runs.setdefault(name, Measurement(self.device)).run(call)
        figures = {f"{name}_ms": run.ms for name, run in runs.items()}
        figures |= {
            "cold_speedup": runs["literal"].ms / runs["cold"].ms,
            "warm_speedup": runs["literal"].ms / runs["warm"].ms,
            "second_query_ratio": runs["second_query"].ms / runs["cold"].ms,
            "cold_mib": runs["cold"].mib,
            "literal_mib": runs["literal"].mib,
            "peak_mib": max(run.peak_mib for name, run in runs.items() if name != "literal"),
        }
        ours, theirs = runs["cold"].result, runs["literal"].result
        figures["same_answers"] = float((ours.answers, ours.category) == (theirs.answers, theirs.category))
        uncached = Grounder(self.mllm, EngineConfig(prefix_cache_mib=0, feature_cache_mib=0, map_cache_mib=0))
        figures["error"] = max(
            _difference(ours, theirs),
            _difference(runs["second_query"].result, self.ground(uncached, random_window(self.frames), SECOND_QUERY)),
            _difference(runs["warm"].result, self.ground(uncached, random_window(self.frames, first=self.new_frames))),
        )
        return figures

    def units(self) -> dict[str, float]:
        """A cold window in units, as in a live stream with the default `engine.unit_ms`: milliseconds of the window and
        of its longest unit, that as a share of the window, and the number of units."""
        grounder = Grounder(self.mllm, EngineConfig())
        grounder.engine.pace.unit_ms = EngineConfig().unit_ms
        task = grounder.ground(random_window(self.frames), QUERY, self.config, StageClock(STAGES))
        units_ms: list[float] = []
        ended = False

        def run_unit() -> None:
            nonlocal ended
            try:
                next(task)
            except StopIteration:
                ended = True

        while not ended:
            units_ms.append(timed_ms(run_unit))
        total_ms = sum(units_ms)
        longest_ms = max(units_ms)
        return {
            "cold_ms": total_ms,
            "longest_ms": longest_ms,
            "longest_share": longest_ms / total_ms,
            "units": len(units_ms),
        }

    def ready(self, repeats: int) -> dict[str, float]:
        """Milliseconds for a question about a live window that is prepared, and for a cold one; of the preparation: of
        the whole window, and when it moves on by a key frame.

        error: largest map difference between both (`_difference`).
        """
        runs: dict[str, Measurement] = {}
        for _ in range(repeats):
            first, second = random_window(self.frames), random_window(self.frames, first=1)
            same = random_window(self.frames, first=1)
            grounder, cold = Grounder(self.mllm, EngineConfig()), Grounder(self.mllm, EngineConfig())
            for name, call in (
                ("prepare", lambda g=grounder, w=first: finish(g.prepare(w, self.config))),
                ("prepare_next", lambda g=grounder, w=second: finish(g.prepare(w, self.config))),
                ("ready", lambda g=grounder, w=second: self.ground(g, w)),
                ("cold", lambda g=cold, w=same: self.ground(g, w)),
            ):
                runs.setdefault(name, Measurement(self.device)).run(call)
        figures = {f"{name}_ms": run.ms for name, run in runs.items()}
        figures["ready_ratio"] = runs["ready"].ms / runs["cold"].ms
        # With the default key frame period; above 1 the device cannot keep up.
        figures["prepare_share"] = runs["prepare_next"].ms / 1e3 / WindowConfig().keyframe_period_s
        figures["error"] = _difference(runs["ready"].result, runs["cold"].result)
        return figures

    def parts(self) -> dict[str, dict[str, float]]:
        """Time per part in milliseconds, for a cold window, a second query and a warm window."""
        grounder = Grounder(self.mllm, EngineConfig())
        parts = {
            "vision tower": (self.mllm, "encode"),
            "shared prefix": (grounder.engine, "_new_prefix"),
            "suffixes": (Prefix, "run_suffix"),
            "rollout": (engine, "rollout_steps"),
        }
        calls = {
            "cold": (random_window(self.frames), QUERY),
            "second query": (random_window(self.frames), SECOND_QUERY),
            "warm": (random_window(self.frames, first=self.new_frames), QUERY),
        }
        return {name: parts_ms(parts, lambda c=call: self.ground(grounder, *c)) for name, call in calls.items()}

    def profile(self) -> dict[str, tuple[float, dict[str, dict[str, float]]]]:
        """For a cold and a warm window: its time in milliseconds under the profiler, and calls and time of every kernel
        (`kernel_times`)."""
        calls = {"cold": 0, "warm": self.new_frames}
        for profiled in (False, True):  # one-time work of a process first
            grounder, found = Grounder(self.mllm, EngineConfig()), {}
            for name, first in calls.items():
                window = random_window(self.frames, first=first)

                def call(g: Grounder = grounder, w: Window = window) -> object:
                    return self.ground(g, w)

                found[name] = kernel_times(call, self.device) if profiled else (timed_ms(call), {})
        return found


def bfloat16_window(mllm: Mllm, frames: int, repeats: int) -> dict[str, float]:
    """Milliseconds for a cold window in float32 and in bfloat16, and the lowest correlation of their maps.

    units: whether the CPU has matrix units for bfloat16, so that `mllm.dtype: auto` picks it.
    """
    runs = {}
    for name, model in (("float32", mllm), ("bfloat16", in_bfloat16(mllm))):
        comparison = WindowComparison(model, frames, 1, "cpu")
        comparison.ground(Grounder(model), random_window(2))  # one-time work of a process
        runs[name] = Measurement("cpu")
        for _ in range(repeats):
            grounder = Grounder(model, EngineConfig())
            runs[name].run(lambda g=grounder, c=comparison: c.ground(g, random_window(frames)))
    exact, rounded = (_maps(run.result) for run in runs.values())
    return {
        "float32_ms": runs["float32"].ms,
        "ms": runs["bfloat16"].ms,
        "speedup": runs["float32"].ms / runs["bfloat16"].ms,
        "correlation": min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(exact, rounded)),
        "units": float(has_bfloat16_units()),
    }


def _maps(grounding: Grounding) -> list[np.ndarray]:
    """The maps of both branches and prompts."""
    branches = (grounding.maps.video, grounding.maps.frames)
    return [getattr(branch, name) for branch in branches for name in ("object", "background")]


def _difference(ours: Grounding, theirs: Grounding) -> float:
    """Largest difference over all branch maps, each relative to the map's maximum."""
    return float(
        max(np.abs(found - expected).max() / expected.max() for found, expected in zip(_maps(ours), _maps(theirs)))
    )
