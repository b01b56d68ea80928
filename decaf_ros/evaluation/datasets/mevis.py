"""MeViS. The layout is documented at https://github.com/henghuiding/MeViS (README, "File Structure").

    SPLIT/JPEGImages/VIDEO/FRAME.jpg
    SPLIT/meta_expressions.json (or meta_expressions_v2.json): {"videos": {VIDEO: {"frames": [FRAME],
        "expressions": {ID: {"exp": text, "obj_id": [number], "anno_id": [number]}}}}}
    SPLIT/mask_dict.json: {ANNO_ID: [mask, one a frame, or null]}, COCO's run-length encoding

`valid_u` (50 videos) has masks. `valid` (140 videos) has none: its server scores a zip file with
VIDEO/ID/FRAME.png. Version 2 has more expressions, some without targets, whose "anno_id" is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decaf_ros.evaluation.datasets.clips import ABSENT, EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.mask_file import check_entries
from decaf_ros.evaluation.datasets.public import (
    REFERRING,
    Source,
    check_files,
    frames_of,
    kind_of,
    read_videos,
    value_of,
)
from decaf_ros.evaluation.datasets.stored_masks import rle_masks

_SPLITS = {"valid_u": True, "valid": False, "train": True}


# Expressions of versions 1 (README of the repository in 2023) and 2 (henghuiding.com/MeViS).
_COUNTS = {"valid_u": {793: "1", 907: "2"}, "valid": {2236: "1", 2523: "2"}, "train": {23051: "1", 27502: "2"}}


def _mend(split: str) -> str:
    return f"unpack the {split} archive of MeViS again (henghuiding/MeViS)"


def _meta_file(root: Path, split: str) -> Path:
    files = [root / split / name for name in ("meta_expressions.json", "meta_expressions_v2.json")]
    return next((file for file in files if file.is_file()), files[0])


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    file, mend = _meta_file(root, split), _mend(split)
    metas = read_videos(file, mend)
    names = {video: frames_of(meta, file, video, mend) for video, meta in metas.items()}
    check_files(root / split / "JPEGImages", names, ".jpg", mend)
    if _SPLITS[split]:
        ids = {
            one
            for video, meta in metas.items()
            for listed in _masks(meta, file, video, mend).values()
            for one in listed
        }
        check_entries(root / split / "mask_dict.json", sorted(ids), mend)
    return list(metas)


def version(root: Path, split: str) -> str:
    """See `Source.version`. By the file's name, an expression without targets, or the number of expressions."""
    file = _meta_file(root, split)
    entries = [entry for meta in read_videos(file, _mend(split)).values() for entry in meta["expressions"].values()]
    if file.stem.endswith("_v2") or any(entry.get("anno_id") == [] for entry in entries):
        return "2"
    return _COUNTS[split].get(len(entries), "")


def _masks(meta: Mapping[str, Any], file: Path, video: str, mend: str) -> dict[str, list[str]]:
    """Ids of the encoded masks of each expression."""
    return {
        key: [str(one) for one in value_of(entry, "anno_id", list, f"{file}, video {video}, expression {key}", mend)]
        for key, entry in meta["expressions"].items()
    }


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file, mend = _meta_file(root, split), _mend(split)
    meta = read_videos(file, mend)[video]
    names = frames_of(meta, file, video, mend)
    check_files(root / split / "JPEGImages", {video: names}, ".jpg", mend)
    frames = FrameFiles([root / split / "JPEGImages" / video / f"{name}.jpg" for name in names])
    size_hw = frames[0].size_hw
    entries = {key: (entry, f"{file}, video {video}, expression {key}") for key, entry in meta["expressions"].items()}
    texts = {key: value_of(entry, "exp", str, where, mend) for key, (entry, where) in entries.items()}
    if not _SPLITS[split]:
        asked = tuple(Referral(text, REFERRING, None, name=key) for key, text in texts.items())
        return EvaluationClip(video, frames, np.zeros((0, len(names), *size_hw), bool), asked, frame_names=tuple(names))
    annotations = _masks(meta, file, video, mend)
    ids = list(dict.fromkeys(number for numbers in annotations.values() for number in numbers))
    masks = rle_masks(root / split / "mask_dict.json", video, ids, len(names), size_hw, mend)
    asked = tuple(
        Referral(text, kind_of(REFERRING, annotations[key]), tuple(map(ids.index, annotations[key])), name=key)
        for key, text in texts.items()
    )
    return EvaluationClip(video, frames, masks, asked, frame_names=tuple(names))


KINDS = (f"{REFERRING} single", f"{REFERRING} several", ABSENT)
SOURCE = Source("mevis", KINDS, _SPLITS, videos, read, submission="", version=version)
