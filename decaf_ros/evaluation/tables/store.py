"""The measurements of a run: a folder for each configuration and data set, with a line of JSON for each sample.

    RUN/run.json       the identity of the run: configuration, versions, digests of the checkpoints, data set
    RUN/samples.jsonl  {"sample": CLIP/INDEX, "text": ..., "case": scores} or "error" in place of "case", as they end
    RUN/masks/         CLIP/EXPRESSION/FRAME.png, if a server scores the split; their CRC-32 are in the sample's line

A run with another identity is another folder, so results never mix. A line counts when it ends with a line break: that
of a run that was killed in the middle of it is removed, and its sample evaluated again, as is one whose masks are
missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from decaf_ros.evaluation.tables.samples import Sample, read_case
from decaf_ros.evaluation.tables.scheduling import Outcome
from decaf_ros.io.files import write_text


class StoredRun:
    """One run's folder, made if it does not exist.

    Args:
        folder: where the runs are.
        name: start of the folder's name.
        identity: JSON values that tell this run from others.
        submits: whether a sample is only done with its masks of all frames.

    Raises:
        ValueError: a line before the last is damaged, or run.json is of another run.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, identity: Mapping[str, Any], submits: bool = False) -> None:
        text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        self.folder = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "run.json"
        if not described.exists():
            write_text(described, text)
        elif described.read_text(encoding="utf-8") != text:
            raise ValueError(f"{described}: expected the identity of this run, got another or a damaged one")
        self._submits = submits
        self._file = self.folder / "samples.jsonl"
        self._entries = _read(self._file) if self._file.exists() else {}
        self._writer: TextIO | None = None

    def case_of(self, sample: Sample) -> Mapping[str, Any] | None:
        """The stored scores of a sample; None if it is not done.

        Raises ValueError if they are of another expression, so of other data.
        """
        entry = self._entries.get(sample.key)
        if entry is None:
            return None
        if entry["text"] != sample.text:
            raise ValueError(
                f"{self._file}: {sample.key} is {entry['text']!r}, in the data it is {sample.text!r}; the data have "
                "changed: name another --out"
            )
        case: Mapping[str, Any] | None = entry.get("case")
        return case

    def done(self, sample: Sample) -> bool:
        """Whether nothing is to be done for a sample: there are scores and, for a submission, masks. Reads the masks.

        Raises what `case_of` raises.
        """
        return self.case_of(sample) is not None and (not self._submits or self.masks_of(sample) is not None)

    def error_of(self, sample: Sample) -> str:
        """Why a sample failed; empty if it has not."""
        error: str = self._entries.get(sample.key, {}).get("error", "")
        return error

    def add(self, outcome: Outcome) -> None:
        """Stores an outcome. Its line is on the disk on return. Raises ValueError for a sample that is done already."""
        result = outcome.result
        if self.done(result.sample):
            raise ValueError(f"{self._file}: expected each sample once, got {result.sample.key} again")
        if result.masks:
            masks = self.folder_of(result.sample)
            masks.mkdir(parents=True, exist_ok=True)
            for frame, data in result.masks.items():
                # Not forced to the disk: the checksums show what a crash of the machine has lost.
                (masks / f"{frame}.png").write_bytes(data)
        entry: dict[str, Any] = {"sample": result.sample.key, "text": result.sample.text}
        entry |= {"error": result.error} if result.case is None else {"case": result.case}
        if result.masks:
            entry["masks"] = {frame: zlib.crc32(data) for frame, data in result.masks.items()}
        entry |= {"seconds": round(result.seconds, 3), "attempts": outcome.attempts, "deaths": outcome.deaths}
        if self._writer is None:
            self._writer = self._file.open("a", encoding="utf-8")
        self._writer.write(json.dumps(entry, allow_nan=False) + "\n")
        self._writer.flush()
        os.fsync(self._writer.fileno())
        # As a later run reads it: numbers are keys of JSON objects as text only.
        self._entries[result.sample.key] = json.loads(json.dumps(entry))

    def masks_of(self, sample: Sample) -> dict[str, bytes] | None:
        """PNG files of all frames of a sample by name of the frame; None if one is missing or not as it was written."""
        known: Mapping[str, int] = self._entries.get(sample.key, {}).get("masks", {})
        if len(known) != sample.frames:
            return None
        found = {}
        for frame, checksum in known.items():
            try:
                found[frame] = (self.folder_of(sample) / f"{frame}.png").read_bytes()
            except FileNotFoundError:
                return None
            if zlib.crc32(found[frame]) != checksum:
                return None
        return found

    def folder_of(self, sample: Sample) -> Path:
        """The folder of a sample's masks."""
        return self.folder / "masks" / sample.key.rpartition("/")[0] / (sample.name or sample.key.rpartition("/")[2])

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _read(file: Path) -> dict[str, Mapping[str, Any]]:
    """The entries by sample; the last one of a sample counts. Cuts a torn last line off the file."""
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(file, len(whole))
    entries: dict[str, Mapping[str, Any]] = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            if "case" in entry:
                read_case(entry["case"])
            entries[entry["sample"]] = entry
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: expected a sample, got {line[:60]!r}: {error}") from error
    return entries
