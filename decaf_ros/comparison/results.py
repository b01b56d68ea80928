"""Reads a result to compare: the folder of `decaf segment`, or a bag with the node's outputs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from decaf_ros.io.bag_writer import bag_origin
from decaf_ros.io.bags import BagReader, is_bag
from decaf_ros.io.files import UNFINISHED
from decaf_ros.io.messages import stamp_ns
from decaf_ros.types import QueryState

_MASKS, _TRACKLETS, _STATUS = "masks", "tracklets", "status"
_MASK_TYPE, _TRACKLETS_TYPE = "sensor_msgs/msg/Image", "decaf_ros/msg/TrackletArray"


class ResultError(ValueError):
    """Not a result that can be compared."""


class StoredFrame(NamedTuple):
    """The targets on one frame.

    Attributes:
        stamp_ns: of the camera's image.
        labels: (H, W) uint8, 0 background.
        ids: the id of each label, also of targets without a pixel.
    """

    stamp_ns: int
    labels: np.ndarray
    ids: Mapping[int, int]


@dataclass(frozen=True)
class Answer:
    """The answer to one query. presence: None if it was not computed."""

    query: str
    state: str
    text: str
    category: str
    presence: float | None


@dataclass(frozen=True)
class StoredResult(ABC):
    """A result on the disk.

    Attributes:
        path: where it is.
        input: what it was made from; empty if unknown.
        version: of the package; empty if unknown.
        parameters: the configuration by dotted name; empty if unknown.
        digest: of the pixels of all frames; empty if unknown.
        answers: in the order of the questions.
    """

    path: Path
    input: str = ""
    version: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    answers: tuple[Answer, ...] = ()

    @abstractmethod
    def frames(self, unpaired: list[int] | None = None) -> Iterator[StoredFrame]:
        """The frames in their order.

        unpaired: gets the stamps of frames of a bag with only one of masks and tracklets, which are left out; None:
        such a frame is an error. Raises OSError or ResultError, naming the file.
        """


@dataclass(frozen=True)
class FolderResult(StoredResult):
    """A folder of `decaf segment` with PNG masks."""

    def frames(self, unpaired: list[int] | None = None) -> Iterator[StoredFrame]:
        for entry in _json(self.path / "frames.json"):
            file = self.path / "masks" / f"{entry['index']:06d}.png"
            labels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            if labels is None or list(labels.shape) != entry["size_hw"]:
                shape = "none" if labels is None else labels.shape
                raise ResultError(f"{file}: expected a mask of {entry['size_hw']} px, got {shape}")
            yield StoredFrame(
                entry["stamp_ns"], np.asarray(labels, np.uint8), {one["label"]: one["id"] for one in entry["targets"]}
            )


@dataclass(frozen=True)
class BagResult(StoredResult):
    """A bag with the topics `masks` and `tracklets` of one namespace."""

    namespace: str = ""

    def frames(self, unpaired: list[int] | None = None) -> Iterator[StoredFrame]:
        masks, tracklets = f"{self.namespace}/{_MASKS}", f"{self.namespace}/{_TRACKLETS}"
        labels: dict[int, np.ndarray] = {}
        ids: dict[int, dict[int, int]] = {}
        lost: list[int] = []
        with BagReader(self.path) as bag:
            for recorded in bag.messages([masks, tracklets]):
                message = bag.deserialize(recorded)
                stamp = stamp_ns(message.header.stamp)
                if recorded.topic == masks:
                    rows = np.asarray(message.data, np.uint8).reshape(message.height, message.step)
                    labels[stamp] = rows[:, : message.width]
                else:
                    ids[stamp] = {int(one.label): int(one.id) for one in message.tracklets}
                if stamp in labels and stamp in ids:
                    yield StoredFrame(stamp, labels.pop(stamp), ids.pop(stamp))
                    # Both topics are past these, so they would only take memory.
                    for part in (labels, ids):
                        for earlier in [one for one in part if one < stamp]:
                            lost.append(earlier)
                            del part[earlier]
        lost = sorted({*lost, *labels, *ids})
        if lost and unpaired is None:
            raise ResultError(
                f"{self.path}: expected {masks} and {tracklets} for each frame, got one of them for stamp {lost[0]}; "
                "--some-frames leaves such frames out"
            )
        if unpaired is not None:
            unpaired += lost


def read_result(path: Path, namespace: str = "") -> StoredResult:
    """The result at `path`.

    namespace: of the outputs in a bag, with the camera's name if there are several, such as /decaf/wrist; empty: the
    only one. Raises FileNotFoundError, or ResultError with what was expected and what is there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if (path / "summary.json").is_file():
        return _folder(path, namespace)
    if is_bag(path):
        return _bag(path, namespace)
    raise ResultError(f"{path}: expected a folder of decaf segment, a bag of decaf replay or a report of decaf eval")


def _expect_finished(path: Path) -> None:
    if (path / UNFINISHED).exists():
        raise ResultError(f"{path}: expected a finished result, got one that was broken off")


def _folder(path: Path, namespace: str) -> StoredResult:
    _expect_finished(path)
    summary = _json(path / "summary.json")
    known = {
        "input": str(summary.get("input", "")),
        "version": str(summary.get("version", "")),
        "parameters": summary.get("parameters", {}),
        "digest": str(summary.get("frames_digest", "")),
    }
    if not (path / "frames.json").is_file():
        raise ResultError(f"{path}: expected frames.json, got none; older versions of decaf segment did not write it")
    if not (path / "masks").is_dir():
        found = _bag(path / "outputs_bag", namespace)
        return BagResult(path / "outputs_bag", answers=found.answers, namespace=found.namespace, **known)
    presence = summary["presence"]
    answer = Answer(
        str(summary.get("query", "")),
        summary["state"] or "",
        summary["answer"],
        summary["category"],
        None if presence is None else presence["score"],
    )
    return FolderResult(path, answers=(answer,), **known)


def _bag(path: Path, namespace: str) -> BagResult:
    _expect_finished(path)
    origin = bag_origin(path)
    with BagReader(path) as bag:
        topics = bag.topics
        found = [
            topic.removesuffix(f"/{_TRACKLETS}")
            for topic, entry in topics.items()
            if topic.endswith(f"/{_TRACKLETS}") and entry.msgtype == _TRACKLETS_TYPE
        ]
        chosen = [one for one in found if one == namespace.rstrip("/")] if namespace else found
        if len(chosen) != 1:
            wanted = f"outputs in {namespace}" if namespace else "outputs in one namespace (--namespace)"
            raise ResultError(f"{path}: expected {wanted}, got {', '.join(found) or 'none'}")
        masks = topics.get(f"{chosen[0]}/{_MASKS}")
        if masks is None or masks.msgtype != _MASK_TYPE:
            raise ResultError(f"{path}: expected the topic {chosen[0]}/{_MASKS}, got {', '.join(topics)}")
        answers = []
        for recorded in bag.messages([f"{chosen[0]}/{_STATUS}"]):
            message = bag.deserialize(recorded)
            state = QueryState(message.state)
            if state.is_answer:
                presence = float(message.presence) if message.presence >= 0 else None
                answers.append(Answer(message.query, state.name, message.text, message.category, presence))
    return BagResult(
        path,
        str(origin.get("input", "")),
        str(origin.get("version", "")),
        origin.get("parameters", {}),
        answers=tuple(answers),
        namespace=chosen[0],
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{path}: expected JSON, got {error}") from error
