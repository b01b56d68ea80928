"""A recording as a data set of one clip: queries of the user, and masks from a topic of the bag if it has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from decaf_ros.evaluation.datasets.clips import ABSENT, Dataset, EvaluationClip, Referral
from decaf_ros.evaluation.datasets.registry import Selection
from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import stamp_ns
from decaf_ros.types import Frame

# Type of the expressions with targets, and of those without ground truth.
QUERY = "query"
_DEPTHS = {"mono8": np.uint8, "8UC1": np.uint8, "mono16": np.uint16, "16UC1": np.uint16}


class TruthTopic(NamedTuple):
    """Label images: those of `labels` are the target, all but 0 if there are none named."""

    topic: str
    labels: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.topic}:{','.join(map(str, self.labels))}" if self.labels else self.topic

    @classmethod
    def parse(cls, text: str) -> TruthTopic:
        """From TOPIC or TOPIC:LABEL,LABEL. Raises ValueError."""
        topic, colon, labels = text.partition(":")
        if not topic or (colon and not all(one.isdecimal() for one in labels.split(","))):
            raise ValueError(f"--ground-truth: expected TOPIC or TOPIC:LABEL,LABEL, got {text!r}")
        return cls(topic, tuple(int(one) for one in labels.split(",")) if colon else ())


@dataclass(frozen=True)
class PackedTargets:
    """One object for each query, as bits. bits: by query and index of the frame; a missing frame is empty."""

    shape: tuple[int, int, int, int]
    bits: Mapping[tuple[int, int], bytes] = field(default_factory=dict)

    def at(self, frame: int, objects: Sequence[int]) -> np.ndarray:
        """(len(objects), H, W) bool."""
        height, width = self.shape[2:]
        masks = np.zeros((len(objects), height, width), bool)
        for place, number in enumerate(objects):
            if packed := self.bits.get((number, frame)):
                pixels = np.unpackbits(np.frombuffer(packed, np.uint8), count=height * width)
                masks[place] = pixels.view(bool).reshape(height, width)
        return masks


@dataclass
class BagSource:
    """The recording, for the place of a data set.

    Attributes:
        bag: the recording.
        frames: its images, with indices from 0.
        queries: the questions.
        truths: One topic for each query, or one for all; empty: there is no ground truth.
        ask_at_s: when to ask, in seconds after the first image; None: about the whole clip.
        settings: for the report, how the clip was chosen.
    """

    bag: Path
    frames: Sequence[Frame]
    queries: tuple[str, ...]
    truths: tuple[TruthTopic, ...] = ()
    ask_at_s: float | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    kinds: Sequence[str] = (QUERY, ABSENT)
    default_config: str = ""
    every_expression: bool = True
    submission: str | None = None

    def select(self, selection: Selection) -> Dataset:
        """The only clip. Raises ValueError if masks and images do not fit together, or if no query has a target to
        watch."""
        height, width = self.frames[0].size_hw
        shape = len(self.queries), len(self.frames), height, width
        truths = self.truths * len(self.queries) if len(self.truths) == 1 else self.truths
        if truths and len(truths) != len(self.queries):
            raise ValueError(
                f"--ground-truth: expected one topic, or one for each of {len(self.queries)} queries, got {len(truths)}"
            )
        known = {truth.topic: self._labels(truth.topic) for truth in truths}
        bits: dict[tuple[int, int], bytes] = {}
        expressions = []
        for number, query in enumerate(self.queries):
            if not truths:
                expressions.append(Referral(query, QUERY, None, name=str(number)))
                continue
            labels = known[truths[number].topic]
            for frame, image in labels.items():
                mask = np.isin(image, truths[number].labels) if truths[number].labels else image > 0
                if mask.any():
                    bits[number, frame] = np.packbits(mask).tobytes()
            targets = (number,) if any(key[0] == number for key in bits) else ()
            kind = QUERY if targets else ABSENT
            expressions.append(
                Referral(query, kind, targets, asked_s=self.ask_at_s, name=str(number), scored=tuple(sorted(labels)))
            )
        clip = EvaluationClip(self.bag.name, tuple(self.frames), PackedTargets(shape, bits), tuple(expressions))
        settings = {"bag": self.bag.name, "ground_truth": list(map(str, truths)), **self.settings}
        if self.ask_at_s is not None:
            # Without a target nothing is watched.
            left_out = [one.text for one in expressions if not one.targets]
            if len(left_out) == len(expressions):
                raise ValueError(
                    f"--ground-truth: expected a query with a mask with --online, got none for {_quoted(left_out)}"
                )
            if left_out:
                settings["left_out"] = left_out
        return _OneClip(self.bag.name, clip, settings)

    def _labels(self, topic: str) -> dict[int, np.ndarray]:
        """Label images by index of the frame. Raises ValueError."""
        places = {frame.stamp_ns: index for index, frame in enumerate(self.frames)}
        size_hw, found = self.frames[0].size_hw, {}
        with BagReader(self.bag) as bag:
            if topic not in bag.topics:
                raise ValueError(
                    f"--ground-truth: expected a topic of {self.bag}, got {topic}: {', '.join(bag.topics)}"
                )
            for recorded in bag.messages([topic]):
                message = bag.deserialize(recorded)
                labels = _label_image(message, topic)
                if labels.shape != size_hw:
                    raise ValueError(f"{topic}: expected masks of {size_hw} px as the images, got {labels.shape}")
                place = places.get(stamp_ns(message.header.stamp))
                if place is not None:
                    found[place] = labels
        if not found:
            raise ValueError(f"{topic}: expected masks with the stamps of the images, got none of them")
        if self.ask_at_s is not None and len(found) != len(self.frames):
            raise ValueError(
                f"{topic}: expected a mask for each of the {len(self.frames)} images with --online, got {len(found)}"
            )
        return found


@dataclass(frozen=True)
class _OneClip:
    name: str
    only: EvaluationClip
    settings: Mapping[str, object]
    scored: int = 1
    tracking_only: int = 0
    has_truth: bool = True

    def clip(self, index: int) -> EvaluationClip:
        return self.only


def _quoted(texts: Sequence[str]) -> str:
    return ", ".join(f'"{text}"' for text in texts)


def _label_image(message: Any, topic: str) -> np.ndarray:
    """(H, W) uint8 or uint16 of an Image, or of a CompressedImage in PNG format. Raises ValueError."""
    if hasattr(message, "format"):
        labels = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise ValueError(f"{topic}: expected grey images, got {message.format!r}")
        return np.asarray(labels)
    dtype = _DEPTHS.get(message.encoding)
    if dtype is None:
        raise ValueError(f"{topic}: expected one of {', '.join(_DEPTHS)}, got {message.encoding}")
    order = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    rows = np.asarray(message.data, np.uint8).reshape(message.height, message.step)
    return np.asarray(rows[:, : message.width * order.itemsize].copy().view(order))
