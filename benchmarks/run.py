"""Prints tables and, last, one line of JSON. Ratios are of two things measured in this same run; times are medians.

    python benchmarks/run.py [--quick] [--device cuda] [--shape 7b]

Ends with status 1 where the two things that are compared do not give the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import grounding
import segmentation
import torch
import tracking
import transformers
from tracker_memory import measure as measure_tracker_memory
from window_memory import measure as measure_window_memory

from models import MID, QWEN_3B, QWEN_7B

SHAPES = {"mid": MID, "3b": QWEN_3B, "7b": QWEN_7B}
KEY_FRAMES, QUICK_KEY_FRAMES = 16, 4


def table(title: str, rows: Mapping[object, Mapping[str, float]]) -> None:
    """One line a row; columns are the names that any row has, in the order in which they come up."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    width = max(14, *(len(name) + 2 for name in names))
    print(f"\n{title:<30}" + "".join(f"{name:>{width}}" for name in names))
    for row, figures in rows.items():
        print(f"  {row!s:<28}" + "".join(f"{_number(figures.get(name)):>{width}}" for name in names), flush=True)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


class Run:
    """What is measured goes into `result`, and what is not as it should be into `wrong`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.quick, self.device, self.shape = given.quick, given.device, SHAPES[given.shape]
        # The first call of each thing measures memory, and is not timed where there are others.
        self.repeats = 1 if self.quick else 4
        self.frames = QUICK_KEY_FRAMES if self.quick else KEY_FRAMES
        self.result: dict[str, object] = {
            "quick": self.quick,
            "device": self.device,
            "shape": given.shape,
            "key_frames": self.frames,
            "repeats": self.repeats,
        }
        self.wrong: list[str] = []

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def rollout(self) -> None:
        sizes = (500, 1700, 3300) if self.quick else (500, 1700, 3300, 8000)
        found = {}
        for tokens in sizes:
            # The literal matrices of 8,000 tokens take minutes.
            found[tokens] = grounding.rollout(tokens, self.repeats if tokens < 8000 else 1, self.device)
            self.result[f"rollout_speedup_{tokens}"] = found[tokens]["speedup"]
            self.result[f"rollout_memory_ratio_{tokens}"] = found[tokens]["memory_ratio"]
            self.expect(found[tokens]["error"] <= 1e-6, f"rollout of {tokens} tokens: {found[tokens]['error']:.1e} off")
        table("rollout, tokens", found)

    def windows(self) -> None:
        # In bfloat16 the two differ in rounding.
        bound = 1e-6 if self.device == "cpu" else 1e-3
        with tempfile.TemporaryDirectory() as folder:
            rows, main = {}, None
            for frames in (self.frames,) if self.quick else (4, 8, 16, 32):
                compared = grounding.Windows(Path(folder), self.shape, frames, frames // 4, self.device)
                rows[frames] = compared.measure(self.repeats if frames == self.frames else 1)
                self.expect(rows[frames]["error"] <= bound, f"window of {frames}: {rows[frames]['error']:.1e} off")
                main = compared if frames == self.frames else main
            if not self.quick:
                decoding = grounding.Windows(
                    Path(folder), self.shape, self.frames, self.frames // 4, self.device, mode="paper"
                )
                rows[f"{self.frames}, mode paper"] = decoding.measure(1)
                self.result["window_paper_cold_speedup"] = rows[f"{self.frames}, mode paper"]["cold_speedup"]
        table("grounding, key frames", rows)
        table(f"its stages, ms, {self.frames} key frames", main.stages)
        figures = rows[self.frames]
        names = ("cold_speedup", "warm_speedup", "cold_ms", "warm_ms", "literal_ms", "cold_mib", "literal_mib")
        self.result |= {f"window_{name}": figures[name] for name in names}
        self.result["second_query_ratio"] = figures["second_query_ratio"]

    def segmentation(self) -> None:
        # bfloat16 moves edges.
        same = 0.9999 if self.device == "cpu" else 0.99
        counts = (64,) if self.quick else (8, 64, 256)
        found = {count: segmentation.points(count, 3, self.device) for count in counts}
        table("points of a key frame", found)
        self.result["points64_speedup"] = found[64]["speedup"]
        self.expect(found[64]["same_pixels"] >= same, f"points: {found[64]['same_pixels']:.4f} of the pixels the same")
        counts = (4,) if self.quick else (1, 4, 8)
        found = {count: segmentation.propagation(count, self.frames, self.repeats, self.device) for count in counts}
        table(f"objects over {self.frames} key frames", found)
        self.result["propagation4_speedup"] = found[4]["speedup"]
        self.result["propagation4_speedup_one_run"] = found[4]["speedup_one_run"]
        with tempfile.TemporaryDirectory() as folder:
            whole = segmentation.whole(Path(folder), self.shape, self.frames, self.repeats, self.device)
        table("segment, cold", {f"{self.frames} key frames": whole})
        self.result["segment_cold_speedup"] = whole["speedup"]
        self.expect(whole["tracklets"] == whole["literal_tracklets"], "segment: another number of tracklets")

    def memory(self) -> None:
        print("\noverlapping windows, tiny checkpoint")
        self.result["windows"] = measure_window_memory(50 if self.quick else 1000, self.device)
        print("\nstreaming tracker, 2 objects")
        self.result["tracker"] = measure_tracker_memory(200 if self.quick else 2000, self.device)

    def tracking(self) -> None:
        """The published sizes of SAM 2: on a CPU the smallest, for a few frames."""
        sizes = ("tiny",) if self.device == "cpu" else tuple(tracking.SIZES)
        frames = 3 if self.device == "cpu" else 60
        rows = {
            f"{size}, {objects}": tracking.follow(size, objects, frames, self.device)
            for size in sizes
            for objects in (1, 4)
        }
        table("live tracking, size, objects", rows)
        self.result |= {
            f"tracking_{row.replace(', ', '_')}_fps": figures["frames_per_s"] for row, figures in rows.items()
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--device", default="cpu", help="torch device: cpu or cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="mid", help="size of the multimodal LLM")
    run = Run(parser.parse_args())
    name = torch.cuda.get_device_name() if run.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {name}")
    run.rollout()
    run.windows()
    run.segmentation()
    if not run.quick:
        run.tracking()
    run.memory()
    for what in run.wrong:
        print(f"NOT THE SAME: {what}")
    result = {key: round(value, 4) if isinstance(value, float) else value for key, value in run.result.items()}
    print(json.dumps({**result, "wrong": run.wrong}))
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
