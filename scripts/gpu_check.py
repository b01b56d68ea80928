"""The parts of scripts/gpu_check.sh, most important first, each in a process of its own with a time limit.

gpu_check.json is written after every part, so an interrupted run leaves what it has measured.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 470.0
# A dry run checks that the parts work, on whatever runs it: its limits are this many times as long.
DRY_PATIENCE = 4
# A part with less time left is skipped: it could not even import its modules.
MIN_S = 10.0
KILL_S = 3.0
TEST_FILES = (
    *("test_rollout", "test_golden_rollout", "test_engine", "test_engine_prefixes", "test_engine_memory"),
    *("test_bfloat16", "test_sam2", "test_streams", "test_tracker"),
)
# Names of the tests of a dry run: those that a GPU would run, and a few that run anywhere.
DRY_TESTS = "gpu or golden"
DISTRIBUTIONS = ("torch", "torchvision", "triton", "transformers", "sam2", "numpy", "opencv-python-headless", "scipy")
# Modules that some part imports.
MODULES = (
    *("torch", "torchvision", "transformers", "numpy", "scipy", "cv2", "PIL", "yaml", "safetensors", "pytest"),
    *("sam2", "hydra", "omegaconf", "antlr4", "iopath", "portalocker"),
)


class Part(NamedTuple):
    """A part: the tests, or parts of benchmarks/run.py (`only`) for a shape of the multimodal LLM."""

    name: str
    limit_s: float
    only: str = ""
    shape: str = ""
    more: tuple[str, ...] = ()


PARTS = (
    Part("tests", 115),
    Part("windows_7b", 130, "windows", "7b"),
    Part("tracking", 45, "tracking"),
    Part("kernels", 25, "kernels"),
    Part("windows_3b", 45, "windows", "3b", ("--key-frames", "16")),
    Part("compile", 70, "compile"),
    Part("profile", 40, "profile", "7b"),
)


def command(part: Part, report: Path, dry: bool) -> list[str]:
    """The part's command, which writes `report`."""
    if not part.only:
        options = [
            "-v",
            "--durations=15",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not ros",
            f"--junitxml={report}",
        ]
        options += ["-k", DRY_TESTS] if dry else []
        return [sys.executable, "-m", "pytest", *options, *(f"test/{name}.py" for name in TEST_FILES)]
    sizes = ["--quick", "--device", "cpu", "--shape", "tiny"] if dry else ["--device", "cuda", *part.more]
    if part.shape and not dry:
        sizes += ["--shape", part.shape]
    return [sys.executable, "benchmarks/run.py", "--only", part.only, "--json", str(report), *sizes]


def run(words: list[str], log: Path, limit_s: float, environment: dict[str, str]) -> str:
    """Runs a command, output to `log`. Returns `ok`, `failed` or `timeout`; no process of it is left."""
    with log.open("w", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(words)}\n")
        stream.flush()
        # A session of its own: tests and compilers start further processes.
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return "ok" if process.wait(limit_s) == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            continue


def read_benchmark(report: Path) -> dict[str, Any]:
    """Figures, tables, failures, missed bars and skipped comparisons of a report of benchmarks/run.py."""
    if not report.is_file():
        return {}
    found = json.loads(report.read_text(encoding="utf-8"))
    lists = {name: found.pop(name) for name in ("wrong", "missed", "skipped")}
    tables = found.pop("tables")
    figures = {name: value for name, value in found.items() if type(value) in (int, float)}
    return {"figures": figures, "tables": tables, **lists}


def read_tests(report: Path) -> dict[str, Any]:
    """Counts of a JUnit report, and the names of tests that failed or were skipped, with the reason."""
    if not report.is_file():
        return {}  # pytest writes it at its end
    found: dict[str, list[str]] = {"passed": [], "failure": [], "error": [], "skipped": []}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in found), None)
        reason = "" if outcome is None else f": {outcome.get('message', '')}"
        name = f"{case.get('classname')}::{case.get('name')}{reason}"
        found["passed" if outcome is None else outcome.tag].append(name.split("\n")[0])
    wrong = found["failure"] + found["error"]
    figures = {"passed": len(found["passed"]), "failed": len(wrong), "skipped": len(found["skipped"])}
    return {"figures": figures, "wrong": wrong, "skipped": found["skipped"]}


def describe_device(dry: bool) -> dict[str, Any]:
    """Name, memory and driver of the GPU. Raises RuntimeError if PyTorch finds none."""
    if dry:
        return {"name": f"{platform.machine()}, {os.cpu_count()} CPUs"}
    # In another process: this one keeps no memory on the GPU.
    code = (
        "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps({'name': p.name, "
        "'memory_gib': round(p.total_memory / 2**30, 1), 'capability': f'{p.major}.{p.minor}', "
        "'cuda': torch.version.cuda}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"expected a CUDA device, got none ({last}); --dry runs on a CPU")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def versions() -> dict[str, str | None]:
    """Versions of Python and packages, and the C compiler, which Triton and torch.compile need."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {**found, "compiler": os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")}


def check(folder: Path, work: Path, dry: bool) -> dict[str, Any]:
    """Runs the parts. Returns what gpu_check.json contains."""
    patience = DRY_PATIENCE if dry else 1
    deadline = time.monotonic() + TOTAL_S * patience
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if dry else dict(os.environ)
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "dry": dry,
        "device": describe_device(dry),
        "versions": versions(),
        "missing_modules": [name for name in MODULES if importlib.util.find_spec(name) is None],
        "parts": {},
    }
    if result["missing_modules"]:
        print(f"gpu_check: expected these modules, without which parts fail: {', '.join(result['missing_modules'])}")
    for part in PARTS:
        started = time.monotonic()
        limit_s = min(part.limit_s * patience, deadline - started - 2 * KILL_S)
        report, log = work / f"{part.name}.report", folder / f"{part.name}.log"
        status, found = "skipped", {"reason": "no time left"}
        if limit_s >= MIN_S:
            status = run(command(part, report, dry), log, limit_s, environment)
            found = (read_benchmark if part.only else read_tests)(report)
        seconds = round(time.monotonic() - started, 1)
        result["parts"][part.name] = {"status": status, "seconds": seconds, "limit_s": part.limit_s * patience, **found}
        (folder / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{part.name:<12} {status:<8} {seconds:6.1f} s", flush=True)
        if status in ("failed", "timeout"):
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            print("\n".join(f"    {line[:200]}" for line in tail), flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu_check"), help="for logs and gpu_check.json")
    parser.add_argument("--dry", action="store_true", help="all parts with tiny sizes on a CPU")
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        result = check(arguments.folder.resolve(), arguments.work, arguments.dry)
    except RuntimeError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    print(f"figures and logs: {arguments.folder}/")
    return 0 if all(part["status"] == "ok" for part in result["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
