"""Writes files that are whole or not there: a full disk leaves no half of one under its name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Marks a folder whose run is in progress or failed. The next run into it replaces its contents.
UNFINISHED = "UNFINISHED"
_TEXT = "This run did not finish. The next run into this folder replaces it.\n"


def mark_unfinished(folder: Path, more: str = "") -> None:
    """Marks a folder; `more` is a line about what is in it. Raises OSError if there can be no mark."""
    mark = folder / UNFINISHED
    mark.touch()
    with suppress(OSError):  # without room for its text the mark is empty
        mark.write_text(_TEXT + more, encoding="utf-8")


def write_bytes(path: Path, data: bytes | memoryview, durable: bool = False) -> None:
    """Writes a file and takes its name when all is written. A file of that name keeps its contents until then.
    A link or a device is written in place.

    durable: also wait for the disk. Raises OSError, which names the file, if it cannot be written.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):  # also a device, such as /dev/stdout
        path.write_bytes(data)
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, UTF-8, durable."""
    write_bytes(path, text.encode(), durable=True)
