"""The command `decaf calibrate`: fits the presence score to clips with queries of known answer."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from decaf_ros.cli.clips import ClipSource
from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, replace
from decaf_ros.io.files import write_text

if TYPE_CHECKING:
    from decaf_ros.evaluation.calibration import Example
    from decaf_ros.pipeline import Decaf

_DESCRIPTION = """Asks queries whose targets are known to be there or not, fits the weights and the threshold of the
presence score, and writes them as a parameter file. Prints precision and recall of "not found" and the area under the
ROC curve in cross-validation by recording, and points of the ROC curve of the fit itself. As in `decaf segment`, a clip
is grounded in key frames spread over it."""
_EPILOG = """DATA.yaml, with paths relative to its folder; topic, start and duration (seconds) are optional:

clips:
- file: kitchen.mcap
  topic: /camera/color/image_raw
  start: 3.0
  duration: 8.0
  present: [the mug, the one that was dropped]
  absent: [the zebra, the one that was picked up]
"""


@dataclass(frozen=True)
class ClipQueries:
    """A part of a video or bag, and what to ask about it. present, absent: queries with and without a target."""

    file: Path
    topic: str = ""
    start_s: float = 0.0
    duration_s: float | None = None
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The recording. Parts of one recording resemble each other, so they are held out together."""
        return str(self.file)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `calibrate` to the commands of `decaf`."""
    parser = commands.add_parser(
        "calibrate",
        help='fit the presence score ("not found") to your own clips',
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(configure=read_config, run=run)
    parser.add_argument("data", type=Path, help="YAML file that lists clips with queries, see below")
    parser.add_argument("--out", type=Path, required=True, help="parameter file to write")
    add_config_arguments(parser)


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Asks every query and writes the fit. Raises OSError, ValueError or RuntimeError."""
    clips = read_data(args.data)
    check_out(args.out)
    # These import torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.evaluation.calibration import calibrate, calibration_text, parameter_text
    from decaf_ros.pipeline import Decaf

    _log("loading the models")
    decaf = Decaf.from_config(replace(config, {"presence.threshold": 0.0}))
    began, count, total = time.monotonic(), 0, sum(len(clip.present) + len(clip.absent) for clip in clips)
    examples: list[Example] = []
    for clip in clips:
        for example in _ask(decaf, clip):
            examples.append(example)
            count += 1
            left = (time.monotonic() - began) / count * (total - count)
            _log(f"query {count} of {total} ({clip.name}): about {left:.0f} s left")
    fitted = calibrate(examples, config.presence)
    write_text(args.out, parameter_text(fitted))
    print(calibration_text(fitted))
    _log(f"parameters in {args.out}")


def read_data(path: Path) -> list[ClipQueries]:
    """The clips of a data file. Raises OSError or ValueError, also for a clip that is missing."""
    with open(path, encoding="utf-8") as stream:
        try:
            document = yaml.safe_load(stream)
        except yaml.YAMLError as error:
            raise ValueError(f"{path}: expected YAML: {error}") from error
    entries = document.get("clips") if isinstance(document, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: expected a list 'clips'; `decaf calibrate --help` shows the format")
    return [_clip(entry, f"{path}: clip {number}", path.parent) for number, entry in enumerate(entries, 1)]


def _clip(entry: Any, where: str, folder: Path) -> ClipQueries:
    known: dict[str, Any] = {
        "file": str,
        "topic": str,
        "start": (int, float),
        "duration": (int, float),
        "present": list,
        "absent": list,
    }
    if not isinstance(entry, Mapping) or "file" not in entry:
        raise ValueError(f"{where}: expected a mapping with 'file', got {entry!r}")
    for name, value in entry.items():
        if name not in known:
            raise ValueError(f"{where}: expected some of {', '.join(known)}, got {name!r}")
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise ValueError(f"{where}: {name}: unexpected value {value!r}")
    queries = {name: tuple(entry.get(name, ())) for name in ("present", "absent")}
    texts = [text for part in queries.values() for text in part]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where}: expected queries as texts in 'present' or 'absent', got {texts!r}")
    file = folder / entry["file"]
    if not file.exists():
        raise FileNotFoundError(f"{where}: no such file or folder: {file}")
    duration = entry.get("duration")
    return ClipQueries(
        file,
        entry.get("topic", ""),
        float(entry.get("start", 0.0)),
        None if duration is None else float(duration),
        **queries,
    )


def _ask(decaf: Decaf, clip: ClipQueries) -> Iterator[Example]:
    """Asks the clip's queries."""
    from decaf_ros.evaluation.calibration import Example
    from decaf_ros.offline import check_clip, key_frames

    source = ClipSource(clip.file, clip.topic, clip.start_s, clip.duration_s)
    source.max_mpx, source.max_side = decaf.config.node.max_image_mpx, decaf.config.window.max_side
    frames = source.load()
    check_clip(frames)
    window = key_frames(frames, decaf.config.window.size, decaf.config.window.clip_rounding)
    for present, texts in ((True, clip.present), (False, clip.absent)):
        for text in texts:
            found = decaf.segment(window, text)
            yield Example(clip.name, present, bool(found.selected), found.presence)


def check_out(path: Path) -> None:
    """Finds an unwritable file before hours of work. Raises OSError."""
    if path.is_dir():
        raise IsADirectoryError(f"--out: expected a file, got the folder {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"--out: {path} cannot be written")


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
