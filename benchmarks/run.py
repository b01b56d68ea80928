"""Prints tables and, last, one line of JSON. Ratios compare two measurements of the same run; times are medians.

    python benchmarks/run.py [--quick] [--device cuda] [--shape 7b] [--only windows,tracking] [--json FILE]

Exit status 1 if results differ between the compared implementations, memory grows, or the rollout exceeds its memory
limit; `wrong` lists these failures. `missed` lists missed performance bars (`BARS`). They are no failures, as a busy
machine misses many.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
import transformers
from models import MID, QWEN_3B, QWEN_7B, TINY, random_mllm

from decaf_ros.grounding.mllm import Mllm

SHAPES = {"tiny": TINY, "mid": MID, "3b": QWEN_3B, "7b": QWEN_7B}
PARTS = ("rollout", "windows", "segmentation", "tracking", "memory")
# For a GPU, only by name.
GPU_PARTS = ("kernels", "compile", "profile")
KEY_FRAMES, QUICK_KEY_FRAMES = 16, 4
# Share of the literal rollout's memory. A failure if exceeded, as memory hardly depends on the machine's load.
MAX_MEMORY_RATIO = 0.25
# (minimum, maximum): ratios of the mid shape on a CPU with 16 key frames; milliseconds of the 7B on a GPU.
BARS = {
    "cpu": {
        "rollout_speedup_1700": (8, None),
        "rollout_speedup_3300": (8, None),
        "rollout_memory_ratio_1700": (None, MAX_MEMORY_RATIO),
        "rollout_memory_ratio_3300": (None, MAX_MEMORY_RATIO),
        "window_cold_speedup": (2.5, None),
        "window_warm_speedup": (8, None),
        "second_query_ratio": (None, 0.35),
        "longest_unit_share": (None, 0.03),
        "ask_live_ratio": (None, 0.2),
        "segment_cold_speedup": (4, None),
        "three_questions_ratio": (None, 1.5),
        "points64_speedup": (8, None),
        "propagation4_speedup": (2, None),
    },
    "cuda": {"window_warm_ms": (None, 400), "window_cold_ms": (None, 1200)},
}
# Growth over the second half of the windows or frames.
MAX_GROWTH = 0.02
TOP_KERNELS = 20


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


class Run:
    """Runs the parts. Collects figures in `result`, failures in `wrong`, and what needs another device in `skipped`.

    Modules that need SAM 2 or rosbags are imported in the parts, as a bare machine may lack them.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick, self.device, self.shape = arguments.quick, arguments.device, arguments.shape
        self.json, self.only_length = arguments.json, arguments.key_frames
        # The first call measures memory; it is timed only if it is the only one, as in rows that show scaling.
        self.repeats = 1 if self.quick else 4
        self.frames = self.only_length or (QUICK_KEY_FRAMES if self.quick else KEY_FRAMES)
        self.result: dict[str, object] = {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "quick": self.quick,
            "device": self.device,
            "shape": self.shape,
            "key_frames": self.frames,
            "repeats": self.repeats,
        }
        self.wrong: list[str] = []
        self.skipped: list[str] = []
        self.tables: dict[str, dict[str, Mapping[str, float]]] = {}

    @cached_property
    def mllm(self) -> Mllm:
        """The one model of all parts: two large models may not fit in memory."""
        with tempfile.TemporaryDirectory() as folder:
            return random_mllm(Path(folder), SHAPES[self.shape], self.device)

    def missed(self) -> list[str]:
        """The missed bars. A reduced run and other shapes have no bars."""
        if self.quick or self.shape != ("mid" if self.device == "cpu" else "7b"):
            return []
        return [
            f"{name} {self.result[name]:.2f}: expected {'at least' if minimum else 'at most'} {minimum or maximum}"
            for name, (minimum, maximum) in BARS[self.device.split(":")[0]].items()
            if name in self.result
            and (self.result[name] < minimum if minimum is not None else self.result[name] > maximum)
        ]

    def summary(self) -> dict[str, object]:
        result = {key: round(value, 4) if isinstance(value, float) else value for key, value in self.result.items()}
        return {**result, "skipped": self.skipped, "wrong": self.wrong, "missed": self.missed()}

    def keep(self, title: str, rows: Mapping[object, Mapping[str, float]]) -> None:
        """Writes the rows so far to the JSON file, which then has them even if the run is killed."""
        self.tables[title] = {str(row): figures for row, figures in rows.items()}
        self.write()

    def write(self) -> None:
        if self.json:
            # Complete even if the run is killed while it writes.
            part = self.json.with_name(f"{self.json.name}.part")
            part.write_text(json.dumps({**self.summary(), "tables": self.tables}, indent=1) + "\n", encoding="utf-8")
            part.replace(self.json)

    def table(self, title: str, rows: Mapping[object, Mapping[str, float]]) -> None:
        """Prints one line per row; columns are all names in the rows, in order of first use."""
        self.keep(title, rows)
        names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
        width = max(14, *(len(name) + 2 for name in names))
        first = max(30, *(len(str(row)) + 4 for row in rows))
        print(f"\n{title:<{first}}" + "".join(f"{name:>{width}}" for name in names))
        for row, figures in rows.items():
            line = "".join(f"{_number(figures.get(name)):>{width}}" for name in names)
            print(f"  {row!s:<{first - 2}}{line}", flush=True)

    def expect(self, holds: bool, failure: str) -> None:
        if not holds:
            self.wrong.append(failure)

    def rollout(self) -> None:
        import grounding

        sizes = (500, 1700, 3300) if self.quick else (500, 1700, 3300, 8000)
        rows = {}
        for tokens in sizes:
            # The literal matrices of 8,000 tokens take minutes.
            rows[tokens] = grounding.rollout(tokens, self.repeats if tokens < 8000 else 1, self.device)
            self.result[f"rollout_speedup_{tokens}"] = rows[tokens]["speedup"]
            self.result[f"rollout_memory_ratio_{tokens}"] = rows[tokens]["memory_ratio"]
            self.expect(rows[tokens]["error"] <= 1e-6, f"rollout of {tokens} tokens: {rows[tokens]['error']:.1e} off")
            if tokens >= 1700:
                share = rows[tokens]["memory_ratio"]
                self.expect(
                    share <= MAX_MEMORY_RATIO, f"rollout of {tokens} tokens: {share:.2f} of the literal's memory"
                )
        self.table("rollout, tokens", rows)

    def windows(self) -> None:
        # Relative to the map's maximum. In bfloat16 rounding differs.
        import grounding

        bound = 1e-4 if self.device == "cpu" else 0.1
        rows = {}
        single = self.quick or self.only_length is not None
        # The most important length first, then what a live question costs: a run may be killed.
        for frames in (self.frames,) if single else (self.frames, 4, 8, 32):
            comparison = grounding.WindowComparison(self.mllm, frames, frames // 4, self.device)
            rows[frames] = comparison.measure(self.repeats if frames == self.frames else 1)
            if frames == self.frames:
                names = ("cold_speedup", "warm_speedup", "cold_ms", "warm_ms", "literal_ms")
                names += ("cold_mib", "literal_mib", "peak_mib")
                self.result |= {f"window_{name}": rows[frames][name] for name in names}
                self.result["second_query_ratio"] = rows[frames]["second_query_ratio"]
                self.table(f"where it goes, ms, {frames} key frames", comparison.parts())
                self._live(bound)
            self.keep("grounding, key frames", rows)
        rows = dict(sorted(rows.items()))
        if not single:
            name = f"{self.frames}, mode paper"
            decoding = grounding.WindowComparison(self.mllm, self.frames, self.frames // 4, self.device, mode="paper")
            rows[name] = decoding.measure(1)
            self.result["window_paper_cold_speedup"] = rows[name]["cold_speedup"]
        for name, figures in rows.items():
            # Elsewhere rounding can flip a random model's next token, and different answers give different maps.
            if figures["same_answers"] or self.device == "cpu":
                self.expect(figures["error"] <= bound, f"window of {name}: {figures['error']:.1e} off")
        self.table("grounding, key frames", rows)
        if self.device == "cpu":
            rounded = grounding.bfloat16_window(self.mllm, self.frames, self.repeats)
            self.table("grounding in bfloat16, cold", {f"{self.frames} key frames": rounded})
            self.result |= {f"bfloat16_{name}": rounded[name] for name in ("ms", "speedup", "correlation")}
            self.expect(rounded["correlation"] >= 0.99, f"bfloat16: correlation {rounded['correlation']:.4f} of maps")

    def _live(self, bound: float) -> None:
        """The longest unit of a cold window, and a question about a prepared one."""
        import grounding

        units = {
            mode: grounding.WindowComparison(self.mllm, self.frames, 1, self.device, mode).units()
            for mode in ("fast", "paper")
        }
        self.table(f"units of a cold window, {self.frames} key frames", units)
        self.result["longest_unit_share"] = max(figures["longest_share"] for figures in units.values())
        ready = {
            mode: grounding.WindowComparison(self.mllm, self.frames, 1, self.device, mode).ready(min(self.repeats, 2))
            for mode in ("fast", "paper")
        }
        self.table(f"a question about a prepared window, {self.frames} key frames", ready)
        self.result["ask_live_ratio"] = ready["fast"]["ready_ratio"]
        self.result["prepare_share"] = ready["fast"]["prepare_share"]
        for mode, figures in ready.items():
            self.expect(figures["error"] <= bound, f"prepared window, mode {mode}: {figures['error']:.1e} off")

    def segmentation(self) -> None:
        import segmentation

        # Minimum IoU: rounding moves edges, in bfloat16 more of them.
        min_iou = 0.999 if self.device == "cpu" else 0.95
        counts = (64,) if self.quick else (8, 64, 256)
        rows = {count: segmentation.points(count, 9, self.device) for count in counts}
        if not self.quick:
            rows["64, tiny"] = segmentation.points(64, self.repeats - 1, self.device, "tiny")
        self.table("points of a key frame", rows)
        self.result["points64_speedup"] = rows[64]["speedup"]
        self._expect_overlap("points", rows, min_iou)
        counts = (4,) if self.quick else (1, 4, 8)
        rows = {count: segmentation.propagation(count, self.frames, self.repeats, self.device) for count in counts}
        self.table(f"objects over {self.frames} key frames", rows)
        self.result["propagation4_speedup"] = rows[4]["speedup"]
        self.result["propagation4_speedup_one_run"] = rows[4]["speedup_one_run"]
        self._expect_overlap("objects", rows, min_iou)
        rows = {
            f"{self.frames} key frames": segmentation.whole_segment(self.mllm, self.frames, self.repeats, self.device)
        }
        (whole,) = rows.values()
        stages = {f"{self.frames} key frames": whole.pop("stage_ms")}
        self.table("segment, cold", rows)
        self.table("where it goes, ms", stages)
        self.result["segment_cold_speedup"] = whole["speedup"]
        # Only this package fills holes.
        self._expect_overlap("segment", rows, min(min_iou, 0.99))
        # SAM 2 may lose an object between key frames and find it again as another tracklet, in both implementations.
        ours, literal = whole["tracklets"], whole["literal_tracklets"]
        self.expect(
            ours == literal >= 3, f"segment: expected equal numbers of tracklets, at least 3, got {ours}, {literal}"
        )
        self.expect(whole["score_error"] <= 0.01, f"segment: scores differ by {whole['score_error']:.3f}")
        several = segmentation.several_questions(self.mllm, self.frames, min(self.repeats, 2), self.device)
        self.table("three questions about one window, cold", {f"{self.frames} key frames": several})
        self.result["three_questions_ratio"] = several["ratio"]
        self.result["three_groundings_ratio"] = several["grounding_ratio"]

    def _expect_overlap(self, label: str, rows: Mapping[object, Mapping[str, float]], minimum: float) -> None:
        for name, figures in rows.items():
            self.expect(figures["iou"] >= minimum, f"{label}, {name}: masks overlap by {figures['iou']:.4f} only")

    def memory(self) -> None:
        from tracker_memory import measure as measure_tracker_memory
        from window_memory import measure as measure_window_memory

        print("\noverlapping windows, tiny checkpoint")
        growth = self.result["windows"] = measure_window_memory(50 if self.quick else 1000, self.device)
        # A short run ends when the caches have just filled.
        change = max(abs(growth["change"]), abs(growth["gpu_change"]))
        failure = f"memory over {growth['windows']} windows: changed by {change:.1%}"
        self.expect(self.quick or change < MAX_GROWTH, failure)
        print("\nstreaming tracker, 2 objects")
        growth = self.result["tracker"] = measure_tracker_memory(200 if self.quick else 2000, self.device)
        change = max(abs(growth["change"]), abs(growth["gpu_change"]))
        failure = f"memory over {growth['frames']} frames of live tracking: changed by {change:.1%}"
        self.expect(self.quick or change < MAX_GROWTH, failure)

    def tracking(self) -> None:
        """The published sizes of SAM 2. On a CPU only the smallest for a few frames; in a reduced run the demo's."""
        import tracking

        sizes = ("",) if self.quick else ("tiny",) if self.device == "cpu" else tuple(tracking.SIZES)
        frames = 3 if self.quick or self.device == "cpu" else 60
        rows = {}
        for size in sizes:
            network = tracking.network_of(size, self.device)
            for objects, groups in ((1, 1), (4, 1), (4, 4)):
                name = f"{size or 'demo'}, {objects}{' apart' if groups > 1 else ''}"
                rows[name] = tracking.follow(network, objects, frames, self.device, groups)
                rate = f"tracking_{name.replace(',', '').replace(' ', '_')}_fps"
                self.result[rate] = rows[name]["frames_per_s"]
                self.keep("live tracking, size, objects", rows)
        self.table("live tracking, size, objects", rows)

    def kernels(self) -> None:
        """The rollout's implementations on layers of the 7B; on a CPU there is no Triton."""
        import grounding

        if self.device == "cpu":
            self.skipped.append("kernels: triton needs CUDA")
        rows = {}
        for tokens in (200,) if self.quick else (1700, 3300, 8000):
            rows[tokens] = grounding.kernels(tokens, self.repeats, self.device)
            self.result |= {f"kernels_{name}_{tokens}": value for name, value in rows[tokens].items()}
            if "error" in rows[tokens]:
                off = rows[tokens]["error"]
                self.expect(off <= 1e-3, f"triton kernels at {tokens} tokens: {off:.1e} of the maximum off")
            self.keep("rollout of a layer, tokens", rows)
        self.table("rollout of a layer, tokens", rows)

    def compile(self) -> None:
        """`sam2.compile`: the image encoder of the smallest and the largest published size; in a reduced run the
        demo's."""
        import tracking

        rows = {}
        for size in ("",) if self.quick else ("tiny", "large"):
            name = size or "demo"
            rows[name] = tracking.compare_compiled(size, 3 if self.quick else 30, self.device)
            self.result |= {f"compile_{name}_{figure}": value for figure, value in rows[name].items()}
            # Under bfloat16 autocast fused kernels round differently.
            bound = 1e-3 if self.device == "cpu" else 0.1
            off = rows[name]["error"]
            self.expect(off <= bound, f"compiled encoder, {name}: features are {off:.1e} of the maximum off")
            self.keep("sam2.compile", rows)
        self.table("sam2.compile", rows)

    def profile(self) -> None:
        """The kernels that take most time in a window (on a CPU: operators)."""
        import grounding

        found = grounding.WindowComparison(self.mllm, self.frames, self.frames // 4, self.device).profile()
        for name, (window_ms, kernels) in found.items():
            self.result[f"profile_{name}_ms"] = window_ms
            self.result[f"profile_{name}_busy_ms"] = sum(figures["ms"] for figures in kernels.values())
            first = sorted(kernels.items(), key=lambda kernel: -kernel[1]["ms"])[:TOP_KERNELS]
            self.table(f"kernels of a {name} window", dict(first))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats")
    parser.add_argument("--device", default="cpu", help="torch device: cpu or cuda")
    parser.add_argument("--shape", choices=list(SHAPES), default="mid", help="size of the multimodal LLM")
    parser.add_argument(
        "--only",
        default=",".join(PARTS),
        help=f"parts, separated by commas: %(default)s (default), and for a GPU {','.join(GPU_PARTS)}",
    )
    parser.add_argument("--key-frames", type=int, metavar="N", help="windows of this length only (at least 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there, as they come")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - {*PARTS, *GPU_PARTS}:
        parser.error(f"--only: expected some of {', '.join(PARTS + GPU_PARTS)}, got {', '.join(sorted(unknown))}")
    if arguments.key_frames is not None and arguments.key_frames < 4:
        parser.error(f"--key-frames: expected at least 4, got {arguments.key_frames}")
    # Each measurement collects garbage first. On a GPU machine a look at all imported objects took longer than a frame.
    gc.collect()
    gc.freeze()
    run = Run(arguments)
    name = torch.cuda.get_device_name() if run.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {name}")
    run.result["device_name"] = name
    for part in PARTS + GPU_PARTS:
        if part in only:
            try:
                getattr(run, part)()
            except Exception:  # keep the figures of the other parts
                traceback.print_exc()
                run.wrong.append(f"{part} has failed, see above")
            run.write()
    summary = run.summary()
    for failure in run.wrong:
        print(f"WRONG: {failure}")
    for bar in summary["missed"]:
        print(f"MISSED: {bar}")
    print(json.dumps(summary))
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
