"""Any folder of frames with masks, as `decaf eval --dataset folder --data DIR` reads it:

    JPEGImages/CLIP/NAME.jpg (or .png), in the order of their numbers
    Annotations/CLIP/NAME.png, grey or with a palette: the value of a pixel is its object, 0 the background
    meta_expressions.json: {"videos": {CLIP: {"expressions": {ID: {"exp": text, "obj_id": number or [numbers],
        "type": "referring" (default) or "reasoning"}}}}}

The names are those of Ref-YouTube-VOS. The method sees every frame; one without a mask file is not scored. An
expression with "obj_id": [] has no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from decaf_ros.evaluation.datasets.clips import ABSENT, EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.public import (
    REASONING,
    REFERRING,
    Source,
    check_files,
    kind_of,
    read_videos,
    value_of,
)
from decaf_ros.evaluation.datasets.stored_masks import PngMasks
from decaf_ros.io.image_folder import image_files

_MEND = "docs/evaluation.md shows the layout"


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    metas = read_videos(root / "meta_expressions.json", _MEND)
    for name in ("JPEGImages", "Annotations"):
        check_files(root / name, dict.fromkeys(metas, ()), "", _MEND)
    return list(metas)


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file = root / "meta_expressions.json"
    meta = read_videos(file, _MEND)[video]
    images = image_files(root / "JPEGImages" / video)
    if not images:
        raise ValueError(f"{root / 'JPEGImages' / video}: expected JPEG or PNG files, got none; {_MEND}")
    frames = FrameFiles(images)
    there = {mask.stem: mask for mask in (root / "Annotations" / video).glob("*.png")}
    stems = {image.stem for image in images}
    if not there or not there.keys() <= stems:
        wrong = next(iter(sorted(there.keys() - stems)), None)
        got = f"{wrong}.png, which has no image" if wrong else "no PNG file"
        raise ValueError(f"{root / 'Annotations' / video}: expected masks of the images, got {got}; {_MEND}")
    files = tuple(there.get(image.stem) for image in images)
    scored = tuple(place for place, mask in enumerate(files) if mask is not None)
    entries = meta["expressions"]
    numbers: dict[str, list[int]] = {}
    for key, entry in entries.items():
        given = value_of(entry, "obj_id", (int, list), f"{file}, video {video}, expression {key}", _MEND)
        numbers[key] = given if isinstance(given, list) else [given]
        if not all(type(number) is int and number > 0 for number in numbers[key]):
            raise ValueError(
                f'{file}, video {video}, expression {key}: expected "obj_id" above 0, got {given!r}; {_MEND}'
            )
    objects = sorted({number for listed in numbers.values() for number in listed})
    asked = []
    for key, entry in entries.items():
        where = f"{file}, video {video}, expression {key}"
        task = entry.get("type", REFERRING)
        if task not in (REFERRING, REASONING):
            raise ValueError(f"{where}: expected the type {REFERRING} or {REASONING}, got {task!r}; {_MEND}")
        targets = tuple(map(objects.index, numbers[key]))
        text = value_of(entry, "exp", str, where, _MEND)
        asked.append(Referral(text, kind_of(task, targets), targets, name=key, scored=scored))
    masks = PngMasks((files,) * len(objects), tuple(objects), len(images), frames[0].size_hw)
    unseen = list(range(len(objects)))
    for place in scored:
        if not unseen:  # usually after the first frame
            break
        unseen = [target for target, mask in zip(unseen, masks.at(place, unseen)) if not mask.any()]
    for one in asked:
        if lost := set(unseen).intersection(one.targets or ()):
            raise ValueError(
                f"{file}, video {video}, expression {one.name}: no mask in {root / 'Annotations' / video} has the "
                f'"obj_id" {objects[min(lost)]}; {_MEND}'
            )
    return EvaluationClip(video, frames, masks, tuple(asked), frame_names=tuple(image.stem for image in images))


KINDS = (*(f"{task} {number}" for task in (REFERRING, REASONING) for number in ("single", "several")), ABSENT)
SOURCE = Source("folder", KINDS, {"all": True}, videos, read)
