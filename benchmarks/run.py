"""Prints tables and, last, one line of JSON. Ratios are of two things measured in this same run; times are medians.

    python benchmarks/run.py [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import grounding
import segmentation
import torch
import transformers
from tracker_memory import measure as measure_tracker_memory
from window_memory import measure as measure_window_memory

from models import MID, QWEN_3B, QWEN_7B

SHAPES = {"mid": MID, "3b": QWEN_3B, "7b": QWEN_7B}


def table(title: str, rows: Mapping[object, Mapping[str, float]]) -> None:
    """One line a row; columns are the names that the first row has."""
    names = list(next(iter(rows.values())))
    print(f"\n{title:<30}" + "".join(f"{name:>22}" for name in names))
    for row, figures in rows.items():
        print(f"  {row!s:<28}" + "".join(f"{_number(figures.get(name)):>22}" for name in names), flush=True)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--device", default="cpu", help="torch device: cpu or cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="mid", help="size of the multimodal LLM")
    given = parser.parse_args()
    quick, device, shape = given.quick, given.device, SHAPES[given.shape]
    repeats = 1 if quick else 3
    result: dict[str, object] = {"quick": quick, "device": device, "shape": given.shape}

    name = torch.cuda.get_device_name() if device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {name}")

    sizes = (500, 1700) if quick else (500, 1700, 3300, 8000)
    found = {tokens: grounding.rollout(tokens, 3, device) for tokens in sizes}
    table("rollout, tokens", found)
    for tokens, figures in found.items():
        result[f"rollout_speedup_{tokens}"] = figures["speedup"]
        result[f"rollout_memory_ratio_{tokens}"] = figures["memory_ratio"]

    lengths = (4,) if quick else (4, 8, 16, 32)
    windows = {}
    with tempfile.TemporaryDirectory() as folder:
        for frames in lengths:
            compared = grounding.Windows(Path(folder), shape, frames, frames // 4, device)
            windows[frames] = compared.measure(repeats if frames == 16 else 1)
    table("grounding, key frames", windows)
    main_window = windows[4 if quick else 16]
    result |= {f"window_{name}": main_window[name] for name in ("cold_speedup", "warm_speedup", "error")}
    result |= {f"window_{name}": main_window[name] for name in ("cold_ms", "warm_ms", "literal_ms")}
    result["second_query_ratio"] = main_window["second_query_ratio"]

    many = {count: segmentation.points(count, 3, device) for count in ((64,) if quick else (8, 64, 256))}
    table("points of a key frame", many)
    result["points64_speedup"] = many[64]["speedup"]
    frames = 4 if quick else 16
    kept = {count: segmentation.propagation(count, frames, repeats, device) for count in ((4,) if quick else (1, 4, 8))}
    table(f"objects over {frames} key frames", kept)
    result["propagation4_speedup"] = kept[4]["speedup"]
    with tempfile.TemporaryDirectory() as folder:
        segment = segmentation.whole(Path(folder), shape, frames, repeats, device)
    table("segment, cold", {f"{frames} key frames": segment})
    result["segment_cold_speedup"] = segment["speedup"]

    print("\noverlapping windows, tiny checkpoint")
    result["windows"] = measure_window_memory(50 if quick else 1000, device)
    print("\nstreaming tracker, 2 objects")
    result["tracker"] = measure_tracker_memory(200 if quick else 2000, device)
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}))


if __name__ == "__main__":
    main()
