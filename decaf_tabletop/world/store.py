"""Clips as files, and many at once: `python -m decaf_tabletop.world.store --out FOLDER --seeds 0:1000`.

That is for training. For `decaf eval --clips-from FOLDER`: `--seeds 1000000:1000020 --crossing-every 0`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from decaf_tabletop.world.clip import TabletopClip, TabletopObject

_JPEG_QUALITY = 95
_ARRAYS = ("stamps_ns", "poses", "camera_poses", "intrinsics")


def write_clip(path: Path, clip: TabletopClip) -> None:
    """One .npz file: images as JPEG (quality 95), labels as PNG, the rest as it is; depth is left out. A file that is
    there is replaced, never half written. Raises OSError."""
    meta = {"seed": clip.seed, "surface": clip.surface, "objects": [asdict(thing) for thing in clip.objects]}
    parts = {name: getattr(clip, name) for name in _ARRAYS}
    parts["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    parts["images"], parts["image_sizes"] = _packed(
        cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1] for image in clip.images
    )
    parts["labels"], parts["label_sizes"] = _packed(cv2.imencode(".png", labels)[1] for labels in clip.labels)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **parts)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_clip(path: Path) -> TabletopClip:
    """What `write_clip` wrote. Raises OSError, and ValueError for a file that is no such clip."""
    try:
        with np.load(path) as parts:
            meta = json.loads(parts["meta"].tobytes())
            images = _unpacked(parts["images"], parts["image_sizes"], cv2.IMREAD_COLOR)
            return TabletopClip(
                seed=meta["seed"],
                images=np.ascontiguousarray(images[..., ::-1]),
                labels=_unpacked(parts["labels"], parts["label_sizes"], cv2.IMREAD_GRAYSCALE),
                objects=tuple(TabletopObject(**thing) for thing in meta["objects"]),
                surface=meta["surface"],
                **{name: parts[name] for name in _ARRAYS},
            )
    except OSError:
        raise
    except Exception as error:  # zipfile, json, numpy and cv2 have one each
        raise ValueError(f"{path}: not a tabletop clip ({error})") from error


def clip_path(folder: Path, seed: int, crossing: bool = False) -> Path:
    """crossing: the clip is another one than without, so it has another name; in older folders it has not."""
    return folder / f"clip_{seed:08d}{'_crossing' if crossing else ''}.npz"


def _packed(encoded) -> tuple[np.ndarray, np.ndarray]:
    buffers = [buffer.reshape(-1) for buffer in encoded]
    return np.concatenate(buffers), np.array([len(buffer) for buffer in buffers], np.int64)


def _unpacked(data: np.ndarray, sizes: np.ndarray, flag: int) -> np.ndarray:
    return np.stack([cv2.imdecode(part, flag) for part in np.split(data, np.cumsum(sizes)[:-1])])


def _make(wanted: tuple[int, bool], folder: Path) -> None:
    # Only here: it brings MuJoCo along, which readers of clips need not have.
    from decaf_tabletop.world.simulator import make_clip

    seed, crossing = wanted
    write_clip(clip_path(folder, seed, crossing), make_clip(seed, crossing=crossing))


def _wanted(given: argparse.Namespace) -> list[tuple[int, bool]]:
    """Seed and crossing of every clip that is not there; an older folder has crossings under the plain name."""
    every = given.crossing_every
    clips = [(seed, every > 0 and seed % every == 0) for seed in given.seeds]
    return [
        (seed, crossing)
        for seed, crossing in clips
        if not any(clip_path(given.out, seed, named).exists() for named in {False, crossing})
    ]


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST (LAST is left out), got {text!r}")
    return range(int(first), int(last))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.world.store",
        description="Makes tabletop clips, as training wants them. For `decaf eval --clips-from` take seeds from "
        "1000000 on and --crossing-every 0: these are the scored clips of its --seed 0; those of --seed 1 begin at "
        "1010000, and so on.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder for clip_SEED[_crossing].npz; what is there is kept")
    add("--seeds", type=_seeds, required=True, metavar="FIRST:LAST", help="LAST is left out")
    add(
        "--crossing-every",
        type=int,
        default=4,
        metavar="N",
        help="in clips whose seed N divides, one object passes in front of another (%(default)s); 0: in none",
    )
    add("--workers", type=int, default=2, help="processes")
    given = parser.parse_args(arguments)
    for name, least in (("workers", 1), ("crossing_every", 0)):
        if getattr(given, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(given, name)}")
    try:
        _make_all(given)
    except (OSError, RuntimeError) as error:
        print(f"store: {error}", file=sys.stderr)
        return 1
    return 0


def _make_all(given: argparse.Namespace) -> None:
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = _wanted(given)
    started = time.monotonic()
    # Processes that are forked would share the state of the graphics library.
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(partial(_make, folder=given.out), wanted), 1):
            if done % 50 == 0 or done == len(wanted):
                rate = done / (time.monotonic() - started)
                print(f"{done} of {len(wanted)} clips, {rate:.2f} a second", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
