"""Ref-DAVIS17: the videos of DAVIS 2017 with expressions of Khoreva et al. Both usual layouts are read.

As unpacked (DAVIS's README; https://github.com/wjn922/ReferFormer, docs/data.md, "Ref-DAVIS17"):

    DAVIS/JPEGImages/480p/VIDEO/FRAME.jpg
    DAVIS/Annotations_unsupervised/480p/VIDEO/FRAME.png, a palette image: the value of a pixel is its object
    DAVIS/ImageSets/2017/val.txt: a video a line
    davis_text_annotations/Davis17_annot{1,2}{,_full_video}.txt: lines of VIDEO OBJECT "expression"

Converted by tools/data/convert_davis_to_ytvos.py there: the layout of Ref-YouTube-VOS (`ref_youtube_vos.py`), where the
masks of `valid` are public and the expressions of an object are in the order of the four texts.

Two annotators described every object, each from the first frame and from the full video. These four are the subsets:
each is scored on its own, and the score is their mean.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.public import (
    REFERRING,
    Source,
    check_files,
    frames_of,
    object_of,
    read_videos,
    value_of,
)
from decaf_ros.evaluation.datasets.stored_masks import PngMasks

_MEND = (
    "unpack DAVIS-2017-Unsupervised-trainval-480p.zip and davis_text_annotations.zip side by side in this folder, "
    "or convert them to the layout of Ref-YouTube-VOS"
)
SUBSETS = ("annotator 1 first frame", "annotator 1 full video", "annotator 2 first frame", "annotator 2 full video")
_TEXTS = ("Davis17_annot1", "Davis17_annot1_full_video", "Davis17_annot2", "Davis17_annot2_full_video")
# Misspelt in the texts.
_NAMES = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}
_SETS = {"valid": "val", "train": "train"}


def _is_converted(root: Path) -> bool:
    return (root / "meta_expressions").is_dir()


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """Folders of the images and of the masks."""
    if _is_converted(root):
        return root / split / "JPEGImages", root / split / "Annotations"
    return root / "DAVIS/JPEGImages/480p", root / "DAVIS/Annotations_unsupervised/480p"


def _meta_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    images, masks = _folders(root, split)
    if _is_converted(root):
        file = _meta_file(root, split)
        metas = read_videos(file, _MEND)
        names = {video: frames_of(meta, file, video, _MEND) for video, meta in metas.items()}
        check_files(images, names, ".jpg", _MEND)
        check_files(masks, names, ".png", _MEND)
        return list(metas)
    listed = _text(root / "DAVIS/ImageSets/2017" / f"{_SETS[split]}.txt").split()
    check_files(images, dict.fromkeys(listed, ()), ".jpg", _MEND)
    check_files(masks, {video: _stems(images / video) for video in listed}, ".png", _MEND)
    described = [_described(root / "davis_text_annotations" / f"{name}.txt") for name in _TEXTS]
    for video in listed:
        for name, objects in zip(_TEXTS, described):
            if video not in objects:
                raise ValueError(f"{root / 'davis_text_annotations' / name}.txt: no line of {video}; {_MEND}")
    return listed


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    images, masks = _folders(root, split)
    asked = _converted_expressions(root, split, video) if _is_converted(root) else _expressions(root, video)
    names = _stems(images / video)
    if _is_converted(root):
        names = frames_of(read_videos(_meta_file(root, split), _MEND)[video], _meta_file(root, split), video, _MEND)
    check_files(images, {video: names}, ".jpg", _MEND)
    check_files(masks, {video: names}, ".png", _MEND)
    frames = FrameFiles([images / video / f"{name}.jpg" for name in names])
    objects = sorted({number for _, number, _ in asked})
    files = tuple(masks / video / f"{name}.png" for name in names)
    return EvaluationClip(
        video,
        frames,
        PngMasks((files,) * len(objects), tuple(objects), len(names), frames[0].size_hw),
        tuple(
            Referral(text, KINDS[0], (objects.index(number),), name=str(place), subset=subset)
            for place, (text, number, subset) in enumerate(asked)
        ),
        frame_names=tuple(names),
    )


def _expressions(root: Path, video: str) -> list[tuple[str, int, str]]:
    """Text, object and subset of each expression, in the order of a converted file."""
    described = [_described(root / "davis_text_annotations" / f"{name}.txt")[video] for name in _TEXTS]
    numbers = sorted({number for texts in described for number in texts})
    return [
        (texts[number], number, subset)
        for number in numbers
        for texts, subset in zip(described, SUBSETS)
        if number in texts
    ]


def _converted_expressions(root: Path, split: str, video: str) -> list[tuple[str, int, str]]:
    file = _meta_file(root, split)
    entries = read_videos(file, _MEND)[video]["expressions"]
    if len(entries) % len(SUBSETS):
        raise ValueError(
            f"{file}, video {video}: expected {len(SUBSETS)} expressions for each object, got {len(entries)}; {_MEND}"
        )
    if wrong := next((key for key in entries if not key.isdecimal()), None):
        raise ValueError(f"{file}, video {video}: expected numbers as ids of expressions, got {wrong!r}; {_MEND}")
    found = []
    for place, (key, entry) in enumerate(sorted(entries.items(), key=lambda item: int(item[0]))):
        where = f"{file}, video {video}, expression {key}"
        number = object_of(entry, where, _MEND)
        found.append((value_of(entry, "exp", str, where, _MEND), number, SUBSETS[place % len(SUBSETS)]))
    return found


def _stems(folder: Path) -> list[str]:
    return sorted(file.stem for file in folder.glob("*.jpg"))


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file}: not found; {_MEND}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # those of the second annotator
        return data.decode("latin-1")


@functools.lru_cache(maxsize=len(_TEXTS))
def _described(file: Path) -> Mapping[str, Mapping[int, str]]:
    """The expressions by video and object."""
    found: dict[str, dict[int, str]] = {}
    for number, line in enumerate(filter(str.strip, _text(file).splitlines()), 1):
        parts = line.split(maxsplit=2)
        if len(parts) < 3 or not parts[1].isdigit():
            raise ValueError(f'{file}, line {number}: expected VIDEO OBJECT "expression", got {line[:60]!r}; {_MEND}')
        found.setdefault(_NAMES.get(parts[0], parts[0]), {})[int(parts[1])] = parts[2].strip().strip('"').strip()
    return found


KINDS = (f"{REFERRING} single",)
SOURCE = Source("ref_davis17", KINDS, dict.fromkeys(_SETS, True), videos, read)
