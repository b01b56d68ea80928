"""Findings of the doctor, and checks that run in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

OK, WRONG, NOT_CHECKED = "ok", "wrong", "not checked"
# Begins the lines of a trial: libraries may print too.
_BEGIN, _FOUND = "doctor begins: ", "doctor found: "


class Finding(NamedTuple):
    """Result of a check.

    Attributes:
        name: what was checked.
        state: OK, WRONG or NOT_CHECKED.
        text: what was found; for NOT_CHECKED, the reason.
        mend: what to do, empty if there is nothing to do.
    """

    name: str
    state: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        mend = f"\n{'':13}mend: {self.mend}" if self.mend else ""
        return f"{self.state:<11}  {self.name}: {self.text}{mend}"


Check = Callable[[], Iterable[Finding]]


def examine(name: str, check: Check, mend: str = "") -> Iterator[Finding]:
    """The findings of a check. A package that it lacks makes it NOT_CHECKED, any other error WRONG, with this mend."""
    try:
        yield from check()
    except ModuleNotFoundError as error:
        yield Finding(name, NOT_CHECKED, f"the Python package {error.name} is missing")
    except Exception as error:  # whatever a driver or a library raises is what the user wants to know
        yield Finding(name, WRONG, _short(f"{type(error).__name__}: {error}"), mend)


def run_trial(module: str, argument: Any, name: str, mend: str, limit_s: float) -> Iterator[Finding]:
    """The findings of `python -m MODULE ARGUMENT`, which calls `serve`: a library that was compiled for another NumPy
    can end its process.

    Args:
        module: the program.
        argument: anything that JSON can hold.
        name: names the finding if the program ends before its first check.
        mend: of the finding that the process ended in the middle of a check.
        limit_s: longest time in seconds.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", module, json.dumps(argument)]
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit_s)
            ending = _ending(process.returncode)
        except subprocess.TimeoutExpired:
            process.kill()
            output, errors = process.communicate()
            ending = f"not done after {limit_s:g} s"
    for line in output.splitlines():
        if line.startswith(_BEGIN):
            name = line.removeprefix(_BEGIN)
        elif line.startswith(_FOUND):
            yield Finding(**json.loads(line.removeprefix(_FOUND)))
    if ending:
        said = errors.strip().splitlines()
        reason = f": {_short(_telling(said))}" if said else ""
        yield Finding(name, WRONG, f"{ending}{reason}; what comes after {name} is not checked", mend)


def serve(checks: Sequence[tuple[str, Check]], mend: str = "") -> None:
    """Runs checks for `run_trial`, each of which may end the process. mend: of errors that a check does not expect."""
    for name, check in checks:
        print(f"\n{_BEGIN}{name}", flush=True)
        for finding in examine(name, check, mend):
            print(f"\n{_FOUND}{json.dumps(finding._asdict())}", flush=True)


def _short(text: str) -> str:
    """One line of at most 240 characters."""
    return textwrap.shorten(text, 240, placeholder=" ...")


def _ending(status: int) -> str:
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with status {status}" if status else ""


def _telling(lines: Sequence[str]) -> str:
    """The line that says why: NumPy's about a clash if there is one, else the last one."""
    return next((line for line in lines if "compiled using NumPy" in line), lines[-1]).strip()
