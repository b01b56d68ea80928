"""A world with known answers: square objects on known paths, and a fake pipeline and tracker that see them exactly.

Only the models' judgement is faked: which objects a query means, and where an object is on the next frame. All other
code under test is real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch

from decaf_ros import types
from decaf_ros.config import DecafConfig, replace
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.segmentation.search import Example
from decaf_ros.segmentation.tracker import TrackStep
from decaf_ros.stages import Steps, finish, no_progress
from decaf_ros.types import Frame, FrameResult, Notice, Presence, Query, QueryEvent, QueryState, Segmentation, Tracklet

SIZE_HW = (24, 32)
SIDE = 8
PRESENT = Presence(0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)
ABSENT = Presence(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)

Path = Callable[[float], "tuple[int, int] | None"]


def frame(number: int, hz: float = 10.0, size_hw: tuple[int, int] = SIZE_HW, start_s: float = 100.0) -> Frame:
    """Frame `number` of a camera; its stamp encodes the number."""
    stamp_ns = round((start_s + number / hz) * 1e9)
    return Frame(np.full((*size_hw, 3), number % 251, np.uint8), stamp_ns, "camera", number)


class World:
    """paths: each object's upper left corner (x, y) at a time in seconds; None while it is hidden. looks: their
    descriptors; objects have none unless it is set."""

    def __init__(self, **paths: Path) -> None:
        self.paths = paths
        self.looks: dict[str, np.ndarray] = dict.fromkeys(paths, np.zeros(1, np.float32))

    def mask(self, name: str, where: Frame) -> np.ndarray:
        mask = np.zeros(where.size_hw, bool)
        corner = self.paths[name](where.stamp_ns / 1e9)
        if corner is not None:
            mask[corner[1] : corner[1] + SIDE, corner[0] : corner[0] + SIDE] = True
        return mask

    def hold(self, owner: object, frames: Sequence[Frame]) -> None:
        """Stands in for `Sam2.hold`; there is no cache here."""

    def holding(self, frames: Sequence[Frame]) -> AbstractContextManager[None]:
        """Stands in for `Sam2.holding`."""
        return nullcontext()


class WorldTracker:
    """StreamingTracker's interface; identifies the object of a mask and follows it. Its `sam2` is the world."""

    def __init__(self, sam2: World) -> None:
        self._world = sam2
        self._names: dict[int, str] = {}

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._names)

    def add(self, ids: Sequence[int], where: Frame, masks: np.ndarray) -> np.ndarray:
        for key, mask in zip(ids, masks):
            (self._names[key],) = (n for n in self._world.paths if np.array_equal(self._world.mask(n, where), mask))
        return np.array([self._world.looks[self._names[key]] for key in ids], np.float32)

    def step(self, where: Frame) -> dict[int, TrackStep]:
        masks = {key: self._world.mask(name, where) for key, name in self._names.items()}
        return {
            key: TrackStep(mask, 5.0 if mask.any() else -5.0, self._world.looks[self._names[key]])
            for key, mask in masks.items()
        }

    def search(self, where: Frame, example: Example) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """All visible objects; they look as `looks` says."""
        names = [name for name in self._world.paths if self._world.mask(name, where).any()]
        masks = np.array([self._world.mask(name, where) for name in names], bool).reshape(-1, *where.size_hw)
        looks = np.array([self._world.looks[name] for name in names], np.float32).reshape(len(names), -1)
        return masks, looks, torch.from_numpy(masks.astype(np.float32) - 0.5)

    def reject(self, ids: Sequence[int]) -> None:
        """Stands in for the tracker's memory, which there is none of."""

    def remove(self, ids: Sequence[int]) -> None:
        for key in ids:
            del self._names[key]

    def absorb(self, other: WorldTracker) -> None:
        self._names.update(other._names)
        other._names = {}


Answer = "Sequence[str] | Exception"
Script = "Sequence[Answer] | dict[str, Answer]"


class ScriptedDecaf:
    """Decaf's interface. Each call of `steps` uses the next answer of `script` and repeats the last one; a dict has one
    answer for each query's text.

    An answer is the names of the selected objects, best first, each from key frame `source`; or an exception to raise.
    """

    stages = ("prefill", "points", "tracklets")
    stage_ms = (("prefill", 1.0), ("points", 1.0), ("tracklets", 1.0))

    def __init__(self, world: object, config: DecafConfig, script: Script) -> None:
        self.sam2 = world
        self.config = config
        self.script = script if isinstance(script, dict) else list(script)
        self.windows: list[types.Window] = []
        self.asked: list[str] = []
        self.others: list[list[str]] = []
        self.presence = PRESENT
        self.category = "thing"
        self.source = -1
        self.masks = world
        self.released = 0

    def hold(self, owner: object, frames: Sequence[Frame]) -> None:
        self.sam2.hold(owner, frames)

    def release(self) -> None:
        self.released += 1

    def steps(self, window, query, dense=None, progress=no_progress, others=tuple) -> Steps[Segmentation]:
        """Each stage is a unit. others: those of each unit are kept in `others`."""
        if isinstance(self.script, dict):
            answer = self.script[query]
        else:
            answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.windows.append(window)
        self.asked.append(query)
        for number, stage in enumerate(self.stages):
            progress(stage, number / len(self.stages))
            self.others.append(list(others()))
            yield
        if isinstance(answer, Exception):
            raise answer
        count = len(window)
        tracklets = tuple(self._tracklet(name, window, 1 - 0.01 * rank) for rank, name in enumerate(answer))
        fused = np.zeros((count, 3, 4), np.float32)
        fused[:, 1, 2] = 1.0
        points = types.PointPrompts(
            np.array([count - 1]), np.array([[0.625, 0.5]], np.float32), np.array([1.0], np.float32)
        )
        grounding = types.Grounding(types.AttentionMaps(fused), self.category, (self.category,))
        return Segmentation(
            window, query, grounding, points, points, tracklets, tracklets, self.presence, stage_ms=self.stage_ms
        )

    def segment(self, *args, **options) -> Segmentation:
        return finish(self.steps(*args, **options))

    def _tracklet(self, name: str, window: types.Window, combined: float) -> Tracklet:
        masks = np.stack([self.masks.mask(name, where) for where in window.frames])
        scores = types.TrackletScores(combined, combined, combined, combined)
        return Tracklet(masks, self.source % len(window), (0.5, 0.5), scores, 1.0, 5.0)


class Recorder:
    """An OnlineSegmenter and all its outputs, in order.

    between: called between two units of a grounding, as a live stream; it may call `watch` and `ask`. Without it a
    grounding takes no time.
    """

    def __init__(self, decaf, between: Callable[[], object] | None = None, **options) -> None:
        self.outputs: list = []
        self.decaf = decaf
        self.between = between
        self.online = OnlineSegmenter(decaf, self.outputs.append, between is not None, **options)
        self._is_between = False

    def watch(self, numbers: Sequence[int], **options) -> None:
        for number in numbers:
            self.online.observe(frame(number, **options))
            self._go_on()

    def ask(self, query_id: str, text: str = "the thing", **options) -> None:
        self.online.ask(Query(query_id, text, **options))
        self._go_on()

    def _go_on(self) -> None:
        while self.between is not None and not self._is_between and self.online.advance():
            self._is_between = True
            self.between()
            self._is_between = False

    @property
    def events(self) -> list[tuple[str, str]]:
        """(query id, state) of every query event."""
        return [(event.query.id, event.state.name) for event in self.of(QueryEvent)]

    @property
    def results(self) -> list[FrameResult]:
        return self.of(FrameResult)

    @property
    def notices(self) -> list[str]:
        return [f"{notice.level}: {notice.text}" for notice in self.of(Notice)]

    def of(self, kind: type) -> list:
        return [output for output in self.outputs if isinstance(output, kind)]

    def states(self, place: int = -1) -> dict[int, str]:
        """State of each target in a frame's result, by id."""
        return {target.id: target.state.name for target in self.results[place].targets}

    def answers(self, query_id: str) -> list[QueryState]:
        return [event.state for event in self.of(QueryEvent) if event.query.id == query_id and event.state.is_answer]


def settings(**changes) -> DecafConfig:
    """Small windows (a key frame every 0.5 s, four to six in a window), with changes as `stage__field=value`."""
    quick = {"window.size": 6, "window.min_frames": 4, "window.keyframe_period_s": 0.5, "tracking.confirm_frames": 2}
    return replace(DecafConfig(), quick | {name.replace("__", "."): value for name, value in changes.items()})
