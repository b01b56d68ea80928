"""scripts/gpu_check.sh: the dry run of all parts, and what happens to parts that fail or take too long."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check.sh"
# A figure of every part of the dry run.
FIGURES = {
    "tests": ("passed",),
    "windows_7b": ("window_cold_ms", "window_warm_ms", "window_literal_ms", "second_query_ratio"),
    "tracking": ("tracking_demo_1_fps", "tracking_demo_4_fps", "tracking_demo_4_apart_fps"),
    "kernels": ("kernels_torch_64_ms_200",),
    "windows_3b": ("window_cold_ms", "window_warm_ms", "window_literal_ms", "second_query_ratio"),
    "compile": ("compile_demo_ms", "compile_demo_plain_ms", "compile_demo_first_frame_s"),
    "profile": ("profile_cold_ms", "profile_warm_ms", "profile_cold_busy_ms", "profile_warm_busy_ms"),
}


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    variables = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_a_dry_run_runs_every_part(tmp_path, gpu_check):
    run = run_script(tmp_path / "out", "--dry")
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert run.returncode == 0, run.stdout
    assert found["dry"] and found["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert found["missing_modules"] == [] and list(found["parts"]) == [part.name for part in gpu_check.PARTS]
    for name, part in found["parts"].items():
        assert part["status"] == "ok" and part["wrong"] == [], name
        assert all(part["figures"][figure] > 0 for figure in FIGURES[name]), name
        assert all("CUDA" in reason for reason in part["skipped"]), name
        assert (tmp_path / "out" / f"{name}.log").stat().st_size > 0
    tables = {name: part["tables"] for name, part in found["parts"].items() if name != "tests"}
    assert all(tables.values())
    for window in ("cold", "warm"):
        kernels = tables["profile"][f"kernels of a {window} window"].values()
        assert len(kernels) == 20 and 0.5 < sum(kernel["share"] for kernel in kernels) <= 1
    # The tests that only a GPU can run are named.
    assert found["parts"]["kernels"]["skipped"] == ["kernels: triton needs CUDA"]
    named = " ".join(found["parts"]["tests"]["skipped"])
    for test in ("test_kernels_agree_on_a_gpu", "test_gpu_and_cpu_agree", "test_maps_in_bfloat16"):
        assert test in named
    assert len(list((tmp_path / "out").iterdir())) == len(found["parts"]) + 1


def test_all_parts_fit_into_eight_minutes(gpu_check):
    assert sum(part.limit_s for part in gpu_check.PARTS) <= gpu_check.TOTAL_S < 8 * 60


def test_every_test_for_a_gpu_is_run(gpu_check):
    assert all((ROOT / "test" / f"{name}.py").is_file() for name in gpu_check.TEST_FILES)
    marked = {path.stem for path in (ROOT / "test").glob("test_*.py") if "mark.gpu" in path.read_text()}
    assert marked - {"test_gpu_check"} <= set(gpu_check.TEST_FILES), "a test for a GPU is never run"


@pytest.fixture
def scripted(gpu_check, monkeypatch):
    """The check with one Python program for each part."""

    def install(programs: dict[str, str], **limits_s: float):
        parts = tuple(gpu_check.Part(name, limits_s.get(name, 60), "windows") for name in programs)
        monkeypatch.setattr(gpu_check, "PARTS", parts)
        monkeypatch.setattr(gpu_check, "MIN_S", 0.0)
        monkeypatch.setattr(
            gpu_check, "command", lambda part, report, dry: [sys.executable, "-c", programs[part.name], str(report)]
        )
        return gpu_check

    return install


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(scripted, tmp_path, monkeypatch, capsys):
    child = tmp_path / "child"
    hangs = (
        "import pathlib, subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); "
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); time.sleep(600)"
    )
    reports = (
        "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text("
        '\'{"a_ms": 2.5, "wrong": [], "missed": [], "skipped": [], "tables": {"t": {"r": {"ms": 1.0}}}}\')'
    )
    check = scripted({"first": "import sys; sys.exit('no such kernel')", "second": hangs, "third": reports}, second=8)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--dry", "--work", str(tmp_path), str(tmp_path / "out")])
    assert check.main() == 1
    parts = json.loads((tmp_path / "out" / "gpu_check.json").read_text())["parts"]
    assert [part["status"] for part in parts.values()] == ["failed", "timeout", "ok"]
    assert parts["third"]["figures"] == {"a_ms": 2.5} and parts["third"]["tables"] == {"t": {"r": {"ms": 1.0}}}
    assert "no such kernel" in capsys.readouterr().out and "no such kernel" in (tmp_path / "out/first.log").read_text()
    # Also the processes that a part has started are gone.
    state = Path(f"/proc/{int(child.read_text())}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of a killed part is still there")


def test_parts_without_time_left_are_skipped(scripted, tmp_path, monkeypatch):
    check = scripted({"first": "", "second": ""})
    monkeypatch.setattr(check, "TOTAL_S", 0.0)
    found = check.check(tmp_path, tmp_path, dry=True)
    assert [part["status"] for part in found["parts"].values()] == ["skipped"] * 2


def test_test_reports_are_read(gpu_check, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\n"
        "def test_passes():\n    pass\n\n"
        "def test_fails():\n    assert False, 'wrong'\n\n"
        "def test_skipped():\n    pytest.skip('no CUDA device')\n\n"
        "@pytest.fixture\ndef broken():\n    raise ValueError('broken')\n\n"
        "def test_errors(broken):\n    pass\n"
    )
    report = tmp_path / "report"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "test_some.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    found = gpu_check.read_tests(report)
    assert found["figures"] == {"passed": 1, "failed": 2, "skipped": 1}
    assert found["skipped"] == ["test_some::test_skipped: no CUDA device"]
    assert "test_fails: AssertionError: wrong" in found["wrong"][0] and "broken" in found["wrong"][1]


def test_a_machine_without_a_gpu_is_named(tmp_path):
    run = run_script(tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert run.returncode == 2 and "expected a CUDA device, got none" in run.stderr and "--dry" in run.stderr


def test_an_interpreter_without_pytorch_is_named(tmp_path):
    isolated = tmp_path / "python"
    isolated.write_text(f'#!/bin/sh\nexec {Path(sys.executable).resolve()} -S -E "$@"\n')
    isolated.chmod(0o755)
    run = run_script(tmp_path / "out", "--dry", PYTHON=str(isolated))
    assert run.returncode == 2 and f"expected a Python with PyTorch, got none in: {isolated}" in run.stderr
