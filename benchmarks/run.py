"""Prints a table and, last, one line of JSON. Ratios are of two things measured in this same run.

    python benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from literal import literal_rollout
from tracker_memory import measure as measure_tracker_memory

from decaf_ros.config import DecafConfig, replace
from decaf_ros.demo.tiny_mllm import write_tiny_mllm
from decaf_ros.demo.tiny_sam2 import write_tiny_sam2
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.rollout import rollout_last_row
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Frame, Window


def median_ms(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        since = time.perf_counter()
        function()
        times.append((time.perf_counter() - since) * 1e3)
    return statistics.median(times)


def rollout(tokens: int, repeats: int) -> dict[str, float]:
    """The row vector against the formulas with full matrices: 8 layers of 12 heads (2 key heads) of 64."""
    torch.manual_seed(0)
    layers = [
        LayerAttention(torch.randn(1, 12, tokens, 64), torch.randn(1, 2, tokens, 64), 64**-0.5) for _ in range(8)
    ]
    visual = torch.zeros(1, tokens, dtype=torch.bool)
    visual[:, 20:-60] = True
    error = (rollout_last_row(layers, visual) - literal_rollout(layers, visual)).abs().max()
    row, literal = (
        median_ms(lambda f=f: f(layers, visual), repeats) for f in (rollout_last_row, literal_rollout)
    )
    return {"row_ms": row, "literal_ms": literal, "speedup": literal / row, "max_error": float(error)}


def tiny_decaf(folder: Path) -> Decaf:
    changes = {
        "mllm.checkpoint": str(write_tiny_mllm(folder / "mllm")),
        "sam2.checkpoint": str(write_tiny_sam2(folder / "sam2")),
        "presence.threshold": 0.0,
        "segmentation.fallback": "best",
    }
    return Decaf.from_config(replace(DecafConfig(), changes))


def whole(frames: int) -> tuple[tuple[str, float], ...]:
    """Stage times of one `Decaf.segment` with the tiny random checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        decaf = tiny_decaf(Path(folder))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (frames, 240, 320, 3), dtype=np.uint8)
    window = Window(tuple(Frame(image, place + 1, "camera", place) for place, image in enumerate(images)))
    decaf.segment(window, "the red ball")
    return decaf.segment(window, "the red ball").stage_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    quick = parser.parse_args().quick
    result: dict[str, object] = {}

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, ", end="")
    print(f"{torch.get_num_threads()} threads, cuda {torch.cuda.is_available()}\n")
    print(f"{'rollout, 8 layers x 12 heads':<34}{'row vector':>12}{'literal':>12}{'speed-up':>10}{'error':>10}")
    for tokens in (400, 800) if quick else (800, 1700, 3300):
        figures = rollout(tokens, 3)
        result[f"rollout_speedup_{tokens}"] = round(figures["speedup"], 2)
        print(
            f"{f'  {tokens} tokens':<34}{figures['row_ms']:>9.0f} ms{figures['literal_ms']:>9.0f} ms"
            f"{figures['speedup']:>9.1f}x{figures['max_error']:>10.0e}"
        )

    frames = 4 if quick else 16
    print(f"\none window of {frames} key frames, 240x320, tiny random checkpoints")
    for stage, ms in whole(frames):
        result[f"segment_{stage}_ms"] = round(ms, 1)
        print(f"  {stage:<32}{ms:>9.0f} ms")

    print("\nstreaming tracker, 2 objects")
    memory = measure_tracker_memory(200 if quick else 2000)
    result["tracker"] = memory
    print(json.dumps(result))


if __name__ == "__main__":
    main()
