"""Memory and frame rates of one camera and of two in one process, with the simulated table's models and clip.

    python benchmarks/cameras.py --frames 300

Three questions are asked, of two cameras both get some, and all windows are prepared. The second camera sees the clip
mirrored, so that nothing in the caches is the same. Then all send a hundred images a second. The last line is JSON: MiB
of the process and of what it holds for the cameras, what the second camera adds, and the images a second that are used.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import multiprocessing
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import _paths  # noqa: F401
import numpy as np
from timing import resident_mib

from decaf_ros.config import replace
from decaf_ros.io.bags import BagReader
from decaf_ros.io.parameter_files import load_config
from decaf_ros.nodes.worker import Worker
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.online.turns import Turns
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Frame, Output, Query, QueryEvent

TABLE = Path(__file__).parents[1] / "decaf_tabletop"
QUERIES = ("the purple cone", "the red ball", "the white cube")
HZ = 10
SETTINGS = {"queries.mode": "add", "engine.ahead_share": 1.0}
_MIB = 2**20


class Camera:
    """A camera that repeats a clip, its stream, and the number of its answered questions."""

    def __init__(
        self, name: str, clip: list[np.ndarray], decaf: Decaf, turns: Turns, ids: itertools.count[int]
    ) -> None:
        self.name = name
        self.answers = self.used = 0
        self._clip = clip
        self._numbers = itertools.count()
        self.online = OnlineSegmenter(decaf, self._watch, live=True, target_ids=ids, turns=turns)

    def next_frame(self) -> Frame:
        number = next(self._numbers)
        image = self._clip[number % len(self._clip)].copy()  # a buffer of its own, as from a driver
        return Frame(image, round((1 + number / HZ) * 1e9), self.name, number)

    def show(self, frame: Frame) -> None:
        self.used += 1
        self.online.observe(frame)

    def _watch(self, output: Output) -> None:
        self.answers += isinstance(output, QueryEvent) and output.state.is_answer


def watch_and_ask(cameras: list[Camera], frames: int, turns: Turns) -> None:
    """Shows each camera so many images, and asks the questions before the last ones."""
    for number in range(frames):
        for camera in cameras:
            camera.show(camera.next_frame())
        if number == frames - 30:
            for index, text in enumerate(QUERIES):
                cameras[index % len(cameras)].online.ask(Query(f"q{index}", text))
        while turns.advance() or turns.prepare():
            pass
    answers = sum(camera.answers for camera in cameras)
    if answers != len(QUERIES):
        raise RuntimeError(f"expected {len(QUERIES)} answers, got {answers}")


def held(decaf: Decaf, cameras: list[Camera]) -> dict[str, float]:
    """MiB of the process, and of what it holds for the cameras."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    engine = decaf.grounder.engine
    sizes = {
        "frames": sum(camera.online.buffer.nbytes for camera in cameras),
        "embeddings": sum(one.nbytes for one in decaf.sam2._cache.values()),
        "prefixes": engine.prefixes.held_bytes,
        "features": engine.features.held_bytes,
        "maps": engine.results.held_bytes,
    }
    return {"resident": round(resident_mib(), 1)} | {name: round(size / _MIB, 1) for name, size in sizes.items()}


def rates(cameras: list[Camera], turns: Turns, unit_s: float, seconds: float) -> dict[str, float]:
    """Images per second that each camera's stream takes while all of them send a hundred."""
    errors: list[Exception] = []
    worker = Worker(
        True, lambda show: show(), turns.advance, turns.prepare, lambda: unit_s, int, errors.append, nullcontext()
    )
    before = {camera.name: camera.used for camera in cameras}
    worker.start()
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        for camera in cameras:
            worker.put_image(partial(camera.show, camera.next_frame()), camera.name)
        time.sleep(0.01)
    worker.stop()
    if errors:
        raise errors[0]
    return {camera.name: round((camera.used - before[camera.name]) / seconds, 2) for camera in cameras}


def measure(count: int, frames: int, seconds: float) -> dict[str, dict[str, float]]:
    """The figures of so many cameras, at most two."""
    config = replace(load_config(TABLE / "config" / "tabletop.yaml"), SETTINGS)
    decaf = Decaf.from_config(config)
    decaf.grounder.engine.streams = count
    with BagReader(TABLE / "demo" / "bags" / "story") as reader:
        clip = [frame.image for frame in reader.frames()]
    mirrored = [np.ascontiguousarray(image[:, ::-1]) for image in clip]
    turns, ids = Turns(decaf), itertools.count(1)
    both = {"first": clip, "second": mirrored}
    cameras = [Camera(name, both[name], decaf, turns, ids) for name in [*both][:count]]
    watch_and_ask(cameras, frames, turns)
    memory = held(decaf, cameras)
    decaf.config = replace(config, {"engine.ahead_share": -1.0})
    return {"mib": memory, "hz": rates(cameras, turns, config.engine.unit_ms / 1e3, seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--frames", type=int, default=300, help="images of each camera before its memory is measured (at least 60)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="time of the last part")
    arguments = parser.parse_args()
    if arguments.frames < 60:
        parser.error(f"--frames: expected at least 60, got {arguments.frames}")
    # A process for each, so that neither reuses memory of the other.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        counts = [(count, arguments.frames, arguments.seconds) for count in (1, 2)]
        one, two = pool.starmap(measure, counts, chunksize=1)
    second = {name: round(two["mib"][name] - mib, 1) for name, mib in one["mib"].items()}
    print(json.dumps({"frames": arguments.frames, "one": one, "two": two, "second_mib": second}))


if __name__ == "__main__":
    main()
