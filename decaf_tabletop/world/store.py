"""Clip files, and a command that makes many: `python -m decaf_tabletop.world.store --out FOLDER --seeds 0:1000`.

The example makes training clips, with `--windows 8` from long clips.
For `decaf eval --clips-from FOLDER`: `--seeds 1000000:1000020 --crossing-every 0`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from decaf_tabletop.world.clip import TabletopClip, TabletopObject

_JPEG_QUALITY = 95
# Length of the long clips that windows are cut from.
_LONG_S = 40.0
_ARRAYS = ("stamps_ns", "poses", "camera_poses", "intrinsics")


def write_clip(path: Path, clip: TabletopClip) -> None:
    """Writes a .npz file: images as JPEG (quality 95), labels as PNG, other arrays raw; depth is not stored.

    Replaces an existing file atomically. Raises OSError.
    """
    meta = {"seed": clip.seed, "surface": clip.surface, "objects": [asdict(thing) for thing in clip.objects]}
    parts = {name: getattr(clip, name) for name in _ARRAYS}
    parts["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    parts["images"], parts["image_sizes"] = _pack(
        cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1] for image in clip.images
    )
    parts["labels"], parts["label_sizes"] = _pack(cv2.imencode(".png", labels)[1] for labels in clip.labels)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **parts)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_clip(path: Path) -> TabletopClip:
    """Reads a file that `write_clip` wrote. Raises OSError, ValueError for any other file."""
    try:
        with np.load(path) as parts:
            meta = json.loads(parts["meta"].tobytes())
            images = _unpack(parts["images"], parts["image_sizes"], cv2.IMREAD_COLOR)
            return TabletopClip(
                seed=meta["seed"],
                images=np.ascontiguousarray(images[..., ::-1]),
                labels=_unpack(parts["labels"], parts["label_sizes"], cv2.IMREAD_GRAYSCALE),
                objects=tuple(TabletopObject(**thing) for thing in meta["objects"]),
                surface=meta["surface"],
                **{name: parts[name] for name in _ARRAYS},
            )
    except OSError:
        raise
    except Exception as error:  # zipfile, json, numpy and cv2 each raise their own
        raise ValueError(f"{path}: not a tabletop clip ({error})") from error


def clip_path(folder: Path, seed: int, crossing: bool = False, seconds: float | None = None) -> Path:
    """The file of a clip. Crossings and long clips of a seed differ from its plain clip, hence their own names."""
    kind = "_crossing" if crossing else "" if seconds is None else f"_{seconds:g}s"
    return folder / f"clip_{seed:08d}{kind}.npz"


def _pack(encoded: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One array of all bytes, and the number of bytes of each image."""
    buffers = [buffer.reshape(-1) for buffer in encoded]
    return np.concatenate(buffers), np.array([len(buffer) for buffer in buffers], np.int64)


def _unpack(data: np.ndarray, sizes: np.ndarray, flag: int) -> np.ndarray:
    return np.stack([_decode(part, flag) for part in np.split(data, np.cumsum(sizes)[:-1])])


def _decode(data: np.ndarray, flag: int) -> np.ndarray:
    image = cv2.imdecode(data, flag)
    if image is None:
        raise ValueError("an image cannot be decoded")
    return image


def _make(seed_and_crossing: tuple[int, bool], folder: Path) -> None:
    # Imported here, as readers of clips need not have MuJoCo.
    from decaf_tabletop.world.simulator import make_clip

    seed, crossing = seed_and_crossing
    write_clip(clip_path(folder, seed, crossing), make_clip(seed, crossing=crossing))


def _make_windows(seed_and_crossing: tuple[int, bool], folder: Path, most: int) -> None:
    from decaf_tabletop.world.simulator import make_long_clip
    from decaf_tabletop.world.windows import training_windows

    seed, _ = seed_and_crossing
    for number, (_, window) in enumerate(training_windows(make_long_clip(seed, _LONG_S), most)):
        write_clip(_window_path(folder, seed, number), window)


def _window_path(folder: Path, seed: int, number: int) -> Path:
    return folder / f"clip_{seed:08d}_window{number}.npz"


def _missing_clips(args: argparse.Namespace) -> list[tuple[int, bool]]:
    """(seed, crossing) of every clip without a file. Older folders hold crossings under the plain name."""
    if args.windows:
        return [(seed, False) for seed in args.seeds if not _window_path(args.out, seed, 0).exists()]
    every = args.crossing_every
    clips = [(seed, every > 0 and seed % every == 0) for seed in args.seeds]
    return [
        (seed, crossing)
        for seed, crossing in clips
        if not any(clip_path(args.out, seed, suffix).exists() for suffix in {False, crossing})
    ]


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST (LAST excluded), got {text!r}")
    return range(int(first), int(last))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.world.store",
        description="Makes tabletop clips for training. For `decaf eval --clips-from` use seeds from 1000000 on and "
        "--crossing-every 0: these are the scored clips of its --seed 0; those of --seed 1 begin at 1010000, and so "
        "on.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for clip_SEED[_crossing].npz; existing clips are kept")
    add("--seeds", type=_seeds, required=True, metavar="FIRST:LAST", help="LAST is excluded")
    add(
        "--crossing-every",
        type=int,
        default=4,
        metavar="N",
        help="seeds divisible by N give clips in which one object passes in front of another (%(default)s); 0: none",
    )
    add(
        "--windows",
        type=int,
        default=0,
        metavar="N",
        help=f"instead, cut up to N stretches as long as a short clip from a long clip of {_LONG_S:g} s of each seed",
    )
    add("--workers", type=int, default=2, help="number of processes (%(default)s)")
    args = parser.parse_args(arguments)
    for name, least in (("workers", 1), ("crossing_every", 0), ("windows", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(args, name)}")
    try:
        _make_all(args)
    except (OSError, RuntimeError) as error:
        print(f"store: {error}", file=sys.stderr)
        return 1
    return 0


def _make_all(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    missing = _missing_clips(args)
    make = (
        partial(_make_windows, folder=args.out, most=args.windows) if args.windows else partial(_make, folder=args.out)
    )
    started = time.monotonic()
    # Forked processes would share the state of the graphics library.
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(make, missing), 1):
            if done % 50 == 0 or done == len(missing):
                rate = done / (time.monotonic() - started)
                print(f"{done} of {len(missing)} clips, {rate:.2f} a second", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
