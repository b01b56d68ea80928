#!/usr/bin/env python3
"""Builds everything that `make demo` and `make test` need, inside this folder: .venv/, build/ and install/.

Needs only the system's Python with its standard library. Each step has a stamp with a digest of its inputs and of all
earlier steps, so a second run repeats only changed steps. Changes nothing outside this folder.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
BUILD = ROOT / "build"
STAMPS = VENV / "stamps"
REQUIREMENTS = ROOT / "requirements"

# ROS wheels exist for 3.10 to 3.13, the pinned numpy from 3.11 on.
PYTHON_VERSIONS = ((3, 11), (3, 12), (3, 13))
HEARTBEAT_S = 20.0


class SetupError(Exception):
    """Set-up failed; the text says what to do."""


class Step(NamedTuple):
    """A step of the set-up. inputs: files whose changes repeat the step. commands: run in order."""

    name: str
    title: str
    inputs: list[Path]
    commands: list[list[str]]


def choose_python(wanted: str | None) -> str:
    """Path of the interpreter for .venv: `wanted`, else that of .venv, else the first suitable one on PATH.

    Raises SetupError if there is none.
    """
    on_path = ["python3", *(f"python{major}.{minor}" for major, minor in PYTHON_VERSIONS)]
    names = [wanted] if wanted else [str(VENV_PYTHON), *on_path]
    rejected = []
    for name in names:
        # _base_executable: the interpreter behind a virtual environment, else the interpreter itself.
        query = [name, "-c", "import sys; print(*sys.version_info[:2]); print(sys._base_executable)"]
        try:
            version, executable = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
        except (OSError, subprocess.CalledProcessError):
            continue
        found = tuple(map(int, version.split()))
        if found in PYTHON_VERSIONS:
            return executable
        rejected.append(f"{name} is {'.'.join(map(str, found))}")
    raise SetupError(
        "no suitable Python: 3.11, 3.12 or 3.13 is needed"
        f" ({'; '.join(rejected) or ', '.join(names) + ' cannot be run'}).\n"
        "Debian 12: sudo apt-get install python3 python3-venv python3-dev\n"
        "Another interpreter: make setup PYTHON=/path/to/python3.11"
    )


def check_machine(python: str) -> None:
    """Raises SetupError with all missing packages and the command that installs them."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SetupError(
            f"platform: expected Linux on x86_64 (ROS 2 wheels), got {platform.system()} on {platform.machine()}.\n"
            "Build in a ROS workspace instead: docs/workspace.md."
        )
    probe = "import sys, sysconfig; print('python%d.%d' % sys.version_info[:2]); print(sysconfig.get_path('include'))"
    answer = subprocess.run([python, "-c", probe], check=True, capture_output=True, text=True)
    name, include = answer.stdout.splitlines()
    has_venv = subprocess.run([python, "-c", "import ensurepip, venv"], capture_output=True).returncode == 0
    missing = []
    if not has_venv:
        missing.append((f"the venv module of {python}, with ensurepip", f"{name}-venv"))
    if not Path(include, "Python.h").is_file():
        missing.append((f"Python.h, the headers of {python}", f"{name}-dev"))
    if not shutil.which("cc") or not shutil.which("c++"):
        missing.append(("a C and C++ compiler (cc and c++)", "build-essential"))
    if not shutil.which("make") and not shutil.which("ninja"):
        missing.append(("make", "build-essential"))
    if missing:
        packages = " ".join(sorted({package for _, package in missing}))
        raise SetupError(
            f"missing: {', '.join(description for description, _ in missing)}.\n"
            f"Debian and Ubuntu: sudo apt-get update && sudo apt-get install {packages}"
        )


def plan(python: str) -> list[Step]:
    """The steps, in order."""
    pip = [str(VENV_PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    # Not for the first steps: pip 23.0 of Debian 12 has no --progress-bar=raw.
    pinned = [*pip, "--progress-bar=raw", "--constraint", str(REQUIREMENTS / "constraints.txt")]

    def requirement(name: str) -> list[str]:
        return ["--requirement", str(REQUIREMENTS / name)]

    def inputs(*names: str) -> list[Path]:
        return [REQUIREMENTS / name for name in ("constraints.txt", *names)]

    # Not built in place: CMake does not export include folders inside the source folder, such as NumPy's in .venv.
    source = BUILD / "ros-source" / "decaf_ros"
    kinds = ("msg", "srv", "action")
    parts = ("CMakeLists.txt", "package.xml", *kinds, "bin", "config", "launch", "decaf_ros", "decaf_tabletop")
    parts += ("requirements", "rviz", "foxglove", "examples")
    build = [
        *("colcon", "--log-base", str(BUILD / "log" / "colcon"), "build", "--paths", str(source)),
        *("--build-base", str(BUILD / "ros"), "--install-base", str(ROOT / "install")),
        *("--merge-install", "--symlink-install", "--event-handlers", "console_direct+"),
        *("--cmake-args", "-DBUILD_TESTING=OFF", f"-DPython3_EXECUTABLE={VENV_PYTHON}"),
    ]
    interfaces = [file for kind in kinds for file in sorted(ROOT.glob(f"{kind}/*.{kind}"))]
    helper = Path(__file__).with_name("patch_cmake_paths.py")
    tools = [[*pip, *requirement("tools.txt")]]
    if shutil.which("cmake") is None:
        tools.append([*pinned, *requirement("cmake.txt")])
    return [
        Step("venv", "virtual environment in .venv (5 s)", [], [[python, "-m", "venv", "--clear", str(VENV)]]),
        Step("tools", "pip and build tools (5 s)", inputs("tools.txt", "cmake.txt"), tools),
        Step(
            "torch",
            "PyTorch, 5.6 GB on disk (1 to 10 min)",
            inputs("torch.txt"),
            [[*pinned, *requirement("torch.txt")]],
        ),
        Step(
            "packages",
            "transformers, SAM 2, OpenCV, rosbags, pytest, ruff (30 s to 2 min)",
            inputs("packages.txt"),
            # SAM 2's CUDA extension needs nvcc and only fills holes of masks, which this project does itself.
            [["env", "SAM2_BUILD_CUDA=0", *pinned, "--no-build-isolation", *requirement("packages.txt")]],
        ),
        Step("ros", "ROS 2 (30 s to 2 min)", inputs("ros.txt"), [[*pinned, *requirement("ros.txt")]]),
        Step(
            "messages",
            "messages, services and action of decaf_ros (20 s to 1 min)",
            [*interfaces, ROOT / "CMakeLists.txt", ROOT / "package.xml", helper],
            [
                # From scratch: colcon --symlink-install keeps links to deleted files.
                ["rm", "-rf", str(source), str(BUILD / "ros"), str(ROOT / "install")],
                ["mkdir", "-p", str(source)],
                ["ln", "-s", f"--target-directory={source}", *(str(ROOT / part) for part in parts)],
                [str(VENV_PYTHON), str(helper)],
                build,
            ],
        ),
    ]


def clean_environment() -> dict[str, str]:
    """This process's environment without the variables of a sourced ROS distribution, another venv or make."""
    environment = dict(os.environ)
    if "AMENT_PREFIX_PATH" in environment:
        environment.pop("LD_LIBRARY_PATH", None)
    for name in (
        *("PYTHONPATH", "PYTHONHOME", "AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH", "COLCON_PREFIX_PATH", "ROS_DISTRO"),
        *("_ROS_WHEELS_BOOTSTRAP_COMPLETE", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"),
    ):
        environment.pop(name, None)
    prefix = str(VENV)
    return {
        **environment,
        "VIRTUAL_ENV": prefix,
        "PATH": f"{VENV / 'bin'}:{environment.get('PATH', os.defpath)}",
        "AMENT_PREFIX_PATH": prefix,
        "CMAKE_PREFIX_PATH": prefix,
    }


def run(command: list[str], log: Path, prefix: str) -> int:
    """Runs `command`, appends its output to `log` and shows its progress. Returns its exit status."""
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put(None)], daemon=True).start()
    interval_s = 1.0 if sys.stdout.isatty() else HEARTBEAT_S
    start, shown_at, activity = time.monotonic(), time.monotonic(), ""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ {' '.join(command)}\n")
        try:
            while True:
                try:
                    line = lines.get(timeout=0.5)
                    if line is None:
                        return process.wait()
                    activity = describe(line) or activity
                    if not line.startswith("Progress "):
                        stream.write(line)
                        stream.flush()
                except queue.Empty:
                    pass
                if time.monotonic() - shown_at >= interval_s:
                    shown_at = time.monotonic()
                    show(f"{prefix} {shown_at - start:.0f} s  {activity}")
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            if sys.stdout.isatty():
                print("\r\033[K", end="", flush=True)


def describe(line: str) -> str:
    """Shortens a line of output of pip or colcon for the progress display."""
    download = re.match(r"Progress (\d+) of (\d+)", line)
    if download:
        done, total = (int(number) / 1e6 for number in download.groups())
        return f"downloading, {done:.0f} of {total:.0f} MB"
    return line.strip()[:90]


def show(text: str) -> None:
    """Overwrites the current line on a terminal, else prints a new line."""
    if sys.stdout.isatty():
        print(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
    else:
        print(text, flush=True)


def perform(step: Step, number: str) -> None:
    """Runs the commands of a step. Raises SetupError with the step, the log file and its last lines."""
    log = BUILD / "log" / f"setup-{step.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    print(f"{number} {step.title}", flush=True)
    start = time.monotonic()
    for command in step.commands:
        status = run(command, log, number)
        if status != 0:
            tail = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            raise SetupError(f"step '{step.name}' failed (exit status {status}); the end of {log}:\n\n{tail}")
    print(f"{number} done in {time.monotonic() - start:.0f} s", flush=True)


def set_up(python: str) -> bool:
    """Runs the steps that are not up to date. Returns whether there were any."""
    steps = plan(python)
    digest = hashlib.sha256(f"{ROOT} {os.path.realpath(python)}".encode())
    has_run = False
    for index, step in enumerate(steps, 1):
        for file in step.inputs:
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        digest.update(step.name.encode())
        # In install/, so that `rm -rf install` makes the next run build the messages again.
        stamp = ROOT / "install" / "stamp" if step.name == "messages" else STAMPS / step.name
        if stamp.is_file() and stamp.read_text() == digest.hexdigest():
            continue
        if not has_run:
            check_machine(python)
            print(f"Setting up in {ROOT} ({python}); logs in {BUILD / 'log'}", flush=True)
        has_run = True
        stamp.unlink(missing_ok=True)  # the step may fail half-way
        perform(step, f"[{index}/{len(steps)}]")
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest.hexdigest())
    return has_run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="interpreter for .venv (default: the first suitable one on PATH)")
    arguments = parser.parse_args()
    try:
        has_run = set_up(choose_python(arguments.python or None))
    except SetupError as error:
        print(f"\nset-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted; the next run continues after the last finished step", file=sys.stderr)
        return 130
    if has_run:
        print("Set-up is complete.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
