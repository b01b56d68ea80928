"""Runs `decaf doctor` as a command, also in an environment without some of the installed packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import torch
import yaml

from decaf_ros.doctor.findings import WRONG, Finding

ROOT = Path(__file__).parents[1]
TABLETOP = ROOT / "decaf_tabletop" / "config" / "tabletop.yaml"
PROGRAM = "import sys; from decaf_ros.cli.main import main; sys.exit(main(sys.argv[1:]))"
SITE_PACKAGES = Path(torch.__file__).parents[1]


def parameters(file: Path, **changes) -> Path:
    """Writes a parameter file of the simulated table with other values; `mllm__device` is mllm.device."""
    document = yaml.safe_load(TABLETOP.read_text())
    for name, value in changes.items():
        stage, _, field = name.partition("__")
        document["/**"]["ros__parameters"].setdefault(stage, {})[field] = value
    file.write_text(yaml.safe_dump(document))
    return file


def without(folder: Path, *packages: str) -> Path:
    """A virtual environment with links to all installed packages but these (and what pip knows of them)."""
    venv.create(folder, symlinks=True)
    site_packages = next(folder.glob("lib/python3*/site-packages"))
    for entry in SITE_PACKAGES.iterdir():
        if not entry.name.lower().replace("-", "_").startswith(packages):
            (site_packages / entry.name).symlink_to(entry)
    return folder


def run_doctor(
    *arguments, environment: Path | None = None, first: Path | None = None, env: dict[str, str] | None = None
):
    """Exit status, findings and stderr of `decaf doctor --json`; as `run_text`."""
    result = run_text("--json", *arguments, environment=environment, first=first, env=env)
    assert result.stdout.lstrip().startswith("["), result.stderr
    return result.returncode, [Finding(**entry) for entry in json.loads(result.stdout)], result.stderr


def run_text(*arguments, environment: Path | None = None, first: Path | None = None, env: dict[str, str] | None = None):
    """Runs `decaf doctor`.

    environment: of `without`, in place of the usual one. first: comes before everything on the path.
    """
    usual = [] if environment else [folder for folder in sys.path if folder]
    path = os.pathsep.join([*([str(first)] if first else []), str(ROOT), *usual])
    python = str(environment / "bin" / "python") if environment else sys.executable
    variables = os.environ | {"PYTHONPATH": path} | (env or {})
    command = [python, "-c", PROGRAM, "doctor", *map(str, arguments)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=ROOT)


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def wrong(findings: list[Finding]) -> list[str]:
    """Names of what is wrong."""
    return [finding.name for finding in findings if finding.state == WRONG]
