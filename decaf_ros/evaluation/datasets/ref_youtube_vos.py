"""Ref-YouTube-VOS. The layout is documented at https://youtube-vos.org/dataset/rvos, and for the whole folder at
https://github.com/wjn922/ReferFormer (docs/data.md, docs/Ref-Youtube-VOS.md).

    meta_expressions/SPLIT/meta_expressions.json: {"videos": {VIDEO: {"frames": [FRAME],
        "expressions": {ID: {"exp": text, "obj_id": number as text}}}}}
    SPLIT/JPEGImages/VIDEO/FRAME.jpg
    train/Annotations/VIDEO/FRAME.png, a palette image: the value of a pixel is its object

`valid` has no masks: its server scores a zip file with Annotations/VIDEO/ID/FRAME.png. Its meta_expressions.json also
lists the videos of `test`, which the file of that split names; the other 202 are the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

_SPLITS = {"valid": False, "train": True}
_MEND = "unpack meta_expressions.zip and the archive of the split again (youtube-vos.org/dataset/rvos)"


def _meta_file(root: Path, split: str) -> Path:
    return root / "meta_expressions" / split / "meta_expressions.json"


def _metas(root: Path, split: str) -> Mapping[str, Mapping[str, Any]]:
    """The videos of a split."""
    metas = read_videos(_meta_file(root, split), _MEND)
    if split != "valid":
        return metas
    test = read_videos(_meta_file(root, "test"), _MEND)
    return {video: meta for video, meta in metas.items() if video not in test}


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    metas = _metas(root, split)
    names = {video: frames_of(meta, _meta_file(root, split), video, _MEND) for video, meta in metas.items()}
    check_files(root / split / "JPEGImages", names, ".jpg", _MEND)
    if _SPLITS[split]:
        check_files(root / split / "Annotations", names, ".png", _MEND)
    return list(metas)


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file = _meta_file(root, split)
    meta = read_videos(file, _MEND)[video]
    names = frames_of(meta, file, video, _MEND)
    check_files(root / split / "JPEGImages", {video: names}, ".jpg", _MEND)
    frames = FrameFiles([root / split / "JPEGImages" / video / f"{name}.jpg" for name in names])
    entries = {key: (entry, f"{file}, video {video}, expression {key}") for key, entry in meta["expressions"].items()}
    texts = {key: value_of(entry, "exp", str, where, _MEND) for key, (entry, where) in entries.items()}
    size_hw = frames[0].size_hw
    if not _SPLITS[split]:
        asked = tuple(Referral(text, KINDS[0], None, name=key) for key, text in texts.items())
        return EvaluationClip(video, frames, np.zeros((0, len(names), *size_hw), bool), asked, frame_names=tuple(names))
    check_files(root / split / "Annotations", {video: names}, ".png", _MEND)
    numbers = {key: object_of(entry, where, _MEND) for key, (entry, where) in entries.items()}
    objects = sorted(set(numbers.values()))
    files = tuple(root / split / "Annotations" / video / f"{name}.png" for name in names)
    return EvaluationClip(
        video,
        frames,
        PngMasks((files,) * len(objects), tuple(objects), len(names), size_hw),
        tuple(Referral(text, KINDS[0], (objects.index(numbers[key]),), name=key) for key, text in texts.items()),
        frame_names=tuple(names),
    )


KINDS = (f"{REFERRING} single",)
SOURCE = Source("ref_youtube_vos", KINDS, _SPLITS, videos, read, submission="Annotations/")
