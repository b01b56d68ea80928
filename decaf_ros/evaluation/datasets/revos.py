"""ReVOS. The layout is documented at https://github.com/cilinyan/ReVOS-api (README, "File Structure").

    JPEGImages/VIDEO/FRAME.jpg
    meta_expressions_SPLIT_.json: {"videos": {VIDEO: {"frames": [FRAME],
        "expressions": {ID: {"exp": text, "anno_id": [number], "type_id": 0 referring, 1 reasoning, 2 no target}}}}}
    mask_dict.json: {ANNO_ID: [mask, one a frame, or null]}, COCO's run-length encoding
    mask_dict_foreground.json: {VIDEO: {"masks_rle": [mask, or list of masks, one a frame]}}, all objects, for the
        robustness score

Referring and reasoning expressions are its subsets: the overall score is the mean of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.datasets.clips import ABSENT, EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.mask_file import check_entries
from decaf_ros.evaluation.datasets.public import (
    REASONING,
    REFERRING,
    Source,
    check_files,
    frames_of,
    kind_of,
    read_videos,
    value_of,
)
from decaf_ros.evaluation.datasets.stored_masks import rle_masks

_MEND = "download or unpack that file of ReVOS again (cilinyan/ReVOS-api)"
# By "type_id".
_TASKS = (REFERRING, REASONING, ABSENT)


def _meta_file(root: Path, split: str) -> Path:
    return root / f"meta_expressions_{split}_.json"


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    file = _meta_file(root, split)
    metas = read_videos(file, _MEND)
    names = {video: frames_of(meta, file, video, _MEND) for video, meta in metas.items()}
    check_files(root / "JPEGImages", names, ".jpg", _MEND)
    ids = {one for video, meta in metas.items() for _, listed in _targets(meta, file, video).values() for one in listed}
    check_entries(root / "mask_dict.json", sorted(ids), _MEND)
    check_entries(root / "mask_dict_foreground.json", metas, _MEND)
    return list(metas)


def _targets(meta: Mapping[str, Any], file: Path, video: str) -> dict[str, tuple[str, list[str]]]:
    """Task of each expression and ids of its encoded masks."""
    found = {}
    for key, entry in meta["expressions"].items():
        where = f"{file}, video {video}, expression {key}"
        number = value_of(entry, "type_id", int, where, _MEND)
        if not 0 <= number < len(_TASKS):
            raise ValueError(f"{where}: expected a type_id from 0 to {len(_TASKS) - 1}, got {number}; {_MEND}")
        # An expression without a target may name objects that it does not mean.
        listed = value_of(entry, "anno_id", list, where, _MEND) if _TASKS[number] != ABSENT else []
        found[key] = _TASKS[number], [str(one) for one in listed]
    return found


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file = _meta_file(root, split)
    meta = read_videos(file, _MEND)[video]
    names = frames_of(meta, file, video, _MEND)
    check_files(root / "JPEGImages", {video: names}, ".jpg", _MEND)
    frames = FrameFiles([root / "JPEGImages" / video / f"{name}.jpg" for name in names])
    size_hw = frames[0].size_hw
    targets = _targets(meta, file, video)
    ids = list(dict.fromkeys(one for _, listed in targets.values() for one in listed))
    asked = tuple(
        Referral(
            value_of(meta["expressions"][key], "exp", str, f"{file}, video {video}, expression {key}", _MEND),
            kind_of(task, listed),
            tuple(map(ids.index, listed)),
            name=key,
            subset=task,
        )
        for key, (task, listed) in targets.items()
    )
    return EvaluationClip(
        video,
        frames,
        rle_masks(root / "mask_dict.json", video, ids, len(names), size_hw, _MEND),
        asked,
        rle_masks(root / "mask_dict_foreground.json", video, [video], len(names), size_hw, _MEND, within="masks_rle"),
        tuple(names),
    )


KINDS = (*(f"{task} {number}" for task in (REFERRING, REASONING) for number in ("single", "several")), ABSENT)
SOURCE = Source("revos", KINDS, {"valid": True, "train": True}, videos, read)
