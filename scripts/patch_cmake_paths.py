"""Replaces the build machine's paths in the CMake files of the ROS wheels with this machine's Python and NumPy headers.

Run with the Python of the virtual environment.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILDER = r"/opt/python/cp\d+-cp\d+"
REPLACEMENTS = (
    (rf"{BUILDER}/lib/python3\.\d+/site-packages/numpy/_core/include", numpy.get_include()),
    (rf"{BUILDER}/include/python3\.\d+", sysconfig.get_path("include")),
)


def main() -> None:
    changed = 0
    for file in sorted(Path(sys.prefix, "share").glob("**/*.cmake")):
        before = after = file.read_text(encoding="utf-8")
        for pattern, path in REPLACEMENTS:
            after = re.sub(pattern, lambda _: path, after)  # noqa: B023 - called at once
        if after != before:
            file.write_text(after, encoding="utf-8")
            changed += 1
    print(f"{changed} CMake files changed")


if __name__ == "__main__":
    main()
