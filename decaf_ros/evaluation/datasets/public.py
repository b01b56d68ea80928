"""Common parts of the readers of public benchmarks: their `DatasetSource` and `Dataset`, and checks of their files.

All errors are ValueErrors that name the file and end with what to do.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.datasets.clips import ABSENT, Dataset, EvaluationClip
from decaf_ros.evaluation.datasets.registry import Selection

REFERRING, REASONING = "referring", "reasoning"


def kind_of(task: str, targets: Collection[object]) -> str:
    """The type of an expression: its task, and whether it has one target or several; `absent` without any."""
    if not targets:
        return ABSENT
    return f"{task} {'single' if len(targets) == 1 else 'several'}"


@dataclass(frozen=True)
class Benchmark:
    """A split of a public benchmark: a `Dataset` whose clips are read one by one. Picklable.

    Attributes:
        name: as in `decaf eval --dataset`.
        root: folder of the benchmark.
        split: name of the split.
        videos: names of the videos, in the order of the benchmark's file.
        has_truth: whether the split's masks are public.
        read: reads a video of a split; see `Source.read`.
        version: of the benchmark; empty if it has one only or the files do not tell.
    """

    name: str
    root: Path
    split: str
    videos: tuple[str, ...]
    has_truth: bool
    read: Callable[[Path, str, str], EvaluationClip]
    version: str = ""
    tracking_only: int = field(default=0, init=False)

    @property
    def settings(self) -> Mapping[str, object]:
        return {"split": self.split, **({"version": self.version} if self.version else {})}

    @property
    def scored(self) -> int:
        return len(self.videos)

    def clip(self, index: int) -> EvaluationClip:
        """See `Dataset.clip`. Raises ValueError as the module's functions."""
        return self.read(self.root, self.split, self.videos[index])


@dataclass(frozen=True)
class Source:
    """A public benchmark: a `DatasetSource`.

    Attributes:
        name: as in `decaf eval --dataset`.
        kinds: types of expressions.
        splits: whether the masks of each split are public; the first split is the default.
        videos: checks the files of a split (root, split) and returns the names of its videos.
        read: reads a video (root, split, video); frames and masks lazily. A function of a module, to be picklable.
        submission: see `DatasetSource`.
        version: finds out the version of the files (root, split), see `Benchmark.version`; None: there is one only.
    """

    name: str
    kinds: Sequence[str]
    splits: Mapping[str, bool]
    videos: Callable[[Path, str], Sequence[str]]
    read: Callable[[Path, str, str], EvaluationClip]
    submission: str | None = None
    default_config: str = "package://decaf_ros/config/paper.yaml"
    every_expression: bool = True
    version: Callable[[Path, str], str] | None = None

    def select(self, selection: Selection) -> Dataset:
        """The first `selection.count` videos of a split. Raises ValueError for a bad selection or a missing file."""
        if selection.folder is None:
            raise ValueError(f"--data: expected the folder of {self.name}; docs/evaluation.md shows its layout")
        if selection.calibration or selection.seconds is not None:
            option = "--calibrate" if selection.calibration else "--seconds"
            raise ValueError(f"{option}: no effect with --dataset {self.name}")
        split = selection.split or next(iter(self.splits))
        if split not in self.splits:
            raise ValueError(f"--split: expected one of {', '.join(self.splits)} for {self.name}, got {split!r}")
        videos = tuple(self.videos(selection.folder, split))
        count = len(videos) if selection.count is None else selection.count
        if not 1 <= count <= len(videos):
            raise ValueError(f"--clips: expected 1 to {len(videos)} (the videos of {split}), got {count}")
        version = self.version(selection.folder, split) if self.version else ""
        return Benchmark(self.name, selection.folder, split, videos[:count], self.splits[split], self.read, version)


@functools.lru_cache(maxsize=4)
def read_videos(file: Path, mend: str, lists: bool = False) -> Mapping[str, Mapping[str, Any]]:
    """The videos of a meta_expressions.json: {"videos": {video: {"frames": [...], "expressions": {...}}}}.

    `frames`, if there, are names without a suffix. `expressions` is an object of objects by id;
    with `lists` it may be a list of objects.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: not found; {mend}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected JSON: {error}; {mend}") from error
    videos = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(videos, dict) or not videos:
        raise ValueError(f'{file}: expected {{"videos": {{name: ...}}}} with a video; {mend}')
    for video, meta in videos.items():
        frames = meta.get("frames", []) if isinstance(meta, dict) else None
        if not isinstance(frames, list) or not all(isinstance(name, str) for name in frames):
            raise ValueError(f'{file}, video {video}: expected "frames", a list of names; {mend}')
        entries = meta.get("expressions")
        if not isinstance(entries, (dict, list) if lists else dict):
            raise ValueError(
                f'{file}, video {video}: expected "expressions" by id, got {type(entries).__name__}; {mend}'
            )
        if not all(isinstance(entry, dict) for entry in (entries.values() if isinstance(entries, dict) else entries)):
            raise ValueError(f'{file}, video {video}: expected "expressions", an object of objects; {mend}')
    return videos


def value_of(entry: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], where: str, mend: str) -> Any:
    """The value of an expression's key, checked for its type. where: file, video and expression, for errors."""
    value = entry.get(key)
    if not isinstance(value, kinds) or isinstance(value, bool) or value == "":
        expected = kinds.__name__ if isinstance(kinds, type) else " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{where}: expected {key!r}, {expected}, got {value!r}; {mend}")
    return value


def object_of(entry: Mapping[str, Any], where: str, mend: str) -> int:
    """The number above 0 of an expression's object, which may be written as text. where: as in `value_of`."""
    value = value_of(entry, "obj_id", (int, str), where, mend)
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{where}: expected 'obj_id', a number above 0, got {value!r}; {mend}")
    return int(value)


def check_files(folder: Path, names: Mapping[str, Collection[str]], suffix: str, mend: str) -> None:
    """Checks that every folder `folder`/NAME has its files; says how many have not, and names the first missing file.

    names: names without the suffix, by folder. A folder without names must exist and have any file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; {mend}")
    missing = []
    for name, wanted in names.items():
        there = set(os.listdir(folder / name)) if (folder / name).is_dir() else set()
        lost = next((file for file in sorted(wanted) if file + suffix not in there), None)
        if lost is not None:
            missing.append(folder / name / (lost + suffix))
        elif not there:
            missing.append(folder / name)
    if missing:
        raise ValueError(f"{missing[0]}: missing, {len(missing)} of {len(names)} folders are not complete; {mend}")


def frames_of(meta: Mapping[str, Any], file: Path, video: str, mend: str) -> list[str]:
    """The names of a video's frames in the order of the file, which is that of time and of the encoded masks.

    Raises ValueError if there are none.
    """
    if not meta.get("frames"):
        raise ValueError(f'{file}, video {video}: expected "frames", a list of names; {mend}')
    return list(meta["frames"])
