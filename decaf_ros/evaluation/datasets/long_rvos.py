"""Long-RVOS. The layout is documented at https://github.com/iSEE-Laboratory/Long_RVOS (README) and in its dataset card
on the model hub (iSEE-Laboratory/Long-RVOS).

    SPLIT/JPEGImages/VIDEO/FRAME.jpg
    SPLIT/Annotations/VIDEO/OBJECT/FRAME.png, not 0 on the object; a frame without a file is one without the object
    SPLIT/meta_expressions.json: {"videos": {VIDEO: {"frames": [FRAME],
        "expressions": {ID: {"exp": text, "obj_id": OBJECT, "type": "static", "dynamic" or "hybrid"}}}}}

The score is the mean over all expressions, whatever their types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.public import REFERRING, Source, check_files, frames_of, read_videos, value_of
from decaf_ros.evaluation.datasets.stored_masks import PngMasks

_MEND = "unpack JPEGImages.tar.gz and Annotations.tar.gz of the split again (iSEE-Laboratory/Long-RVOS)"
_TYPES = ("static", "dynamic", "hybrid")


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    file = root / split / "meta_expressions.json"
    metas = read_videos(file, _MEND)
    names = {video: frames_of(meta, file, video, _MEND) for video, meta in metas.items()}
    check_files(root / split / "JPEGImages", names, ".jpg", _MEND)
    objects = {
        f"{video}/{_object(entry, f'{file}, video {video}, expression {key}')}": ()
        for video, meta in metas.items()
        for key, entry in meta["expressions"].items()
    }
    check_files(root / split / "Annotations", objects, "", _MEND)
    return list(metas)


def _object(entry: Mapping[str, Any], where: str) -> str:
    return str(value_of(entry, "obj_id", (int, str), where, _MEND))


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file = root / split / "meta_expressions.json"
    meta = read_videos(file, _MEND)[video]
    names = frames_of(meta, file, video, _MEND)
    check_files(root / split / "JPEGImages", {video: names}, ".jpg", _MEND)
    frames = FrameFiles([root / split / "JPEGImages" / video / f"{name}.jpg" for name in names])
    tracks: dict[str, tuple[Path | None, ...]] = {}
    asked = []
    for key, entry in meta["expressions"].items():
        where = f"{file}, video {video}, expression {key}"
        number = _object(entry, where)
        of_type = value_of(entry, "type", str, where, _MEND)
        if of_type not in _TYPES:
            raise ValueError(f"{where}: expected a type of {', '.join(_TYPES)}, got {of_type!r}; {_MEND}")
        if number not in tracks:
            folder = root / split / "Annotations" / video / number
            there = {mask.stem: mask for mask in folder.glob("*.png")}
            if not there:
                raise ValueError(f"{folder}: expected PNG files, got none; {_MEND}")
            tracks[number] = tuple(there.get(name) for name in names)
        targets = (list(tracks).index(number),)
        asked.append(Referral(value_of(entry, "exp", str, where, _MEND), f"{REFERRING} {of_type}", targets, name=key))
    masks = PngMasks(tuple(tracks.values()), (0,) * len(tracks), len(names), frames[0].size_hw)
    return EvaluationClip(video, frames, masks, tuple(asked), frame_names=tuple(names))


KINDS = tuple(f"{REFERRING} {of_type}" for of_type in _TYPES)
SOURCE = Source("long_rvos", KINDS, {"valid": True, "test": True, "train": True}, videos, read)
