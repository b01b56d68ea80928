"""ReasonVOS. The layout is documented at https://github.com/showlab/VideoLISA (BENCHMARK.md, benchmark_check.py).

    JPEGImages/VIDEO/FRAME.jpg
    Annotations/SOURCE_VIDEO_OBJECT/FRAME.png, not 0 on the target
    meta_expressions.json: {"videos": {VIDEO: {"source": SOURCE, "frames": [FRAME],
        "expressions": [{"exp_id": number, "obj_id": OBJECT, "exp_text": text, ...}], or an object of these by ID}}}

All of it is one test split. The method sees every image; a frame without a PNG file is not scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.public import REASONING, Source, check_files, kind_of, read_videos, value_of
from decaf_ros.evaluation.datasets.stored_masks import PngMasks
from decaf_ros.io.image_folder import image_files

_MEND = "unpack the archive of ReasonVOS again (showlab/VideoLISA, BENCHMARK.md)"


def _entries(meta: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and content of each expression. An id that occurs twice in a list names the first one only."""
    listed = meta["expressions"]
    taken: set[str] = set()
    for place, (key, entry) in enumerate(
        listed.items() if isinstance(listed, dict) else ((entry.get("exp_id"), entry) for entry in listed)
    ):
        name = str(key) if key is not None and str(key) not in taken else f"at{place}"
        taken.add(name)
        yield name, entry


def _mask_folder(root: Path, meta: Mapping[str, Any], video: str, entry: Mapping[str, Any], where: str) -> Path:
    number = value_of(entry, "obj_id", (int, str), where, _MEND)
    source = value_of(meta, "source", str, where, _MEND)
    folders = [root / "Annotations" / f"{name}_{video}_{number}" for name in (source, source.lower())]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ValueError(f"{folders[0]}: no such folder; {_MEND}")
    return folder


def videos(root: Path, split: str) -> Sequence[str]:
    """See `Source.videos`."""
    file = root / "meta_expressions.json"
    metas = read_videos(file, _MEND, lists=True)
    check_files(root / "JPEGImages", {video: meta.get("frames", []) for video, meta in metas.items()}, ".jpg", _MEND)
    folders = [
        _mask_folder(root, meta, video, entry, f"{file}, video {video}, expression {name}")
        for video, meta in metas.items()
        for name, entry in _entries(meta)
    ]
    check_files(root / "Annotations", {folder.name: () for folder in folders}, "", _MEND)
    return list(metas)


def read(root: Path, split: str, video: str) -> EvaluationClip:
    """See `Source.read`."""
    file = root / "meta_expressions.json"
    meta = read_videos(file, _MEND, lists=True)[video]
    check_files(root / "JPEGImages", {video: meta.get("frames", [])}, ".jpg", _MEND)
    images = image_files(root / "JPEGImages" / video)
    if not images:
        raise ValueError(f"{root / 'JPEGImages' / video}: expected JPEG files, got none; {_MEND}")
    frames = FrameFiles(images)
    place_of = {image.stem: place for place, image in enumerate(images)}
    tracks: dict[Path, tuple[Path | None, ...]] = {}
    asked = []
    for name, entry in _entries(meta):
        where = f"{file}, video {video}, expression {name}"
        folder = _mask_folder(root, meta, video, entry, where)
        masks = {mask.stem: mask for mask in folder.glob("*.png")}
        if unknown := sorted(masks.keys() - place_of.keys()):
            raise ValueError(f"{masks[unknown[0]]}: no image {root / 'JPEGImages' / video / unknown[0]}.jpg; {_MEND}")
        if not masks:
            raise ValueError(f"{folder}: expected PNG files, got none; {_MEND}")
        tracks[folder] = tuple(masks.get(image.stem) for image in images)
        target = (list(tracks).index(folder),)
        text = value_of(entry, "exp_text", str, where, _MEND)
        scored = tuple(sorted(place_of[stem] for stem in masks))
        asked.append(Referral(text, kind_of(REASONING, target), target, name=name, scored=scored))
    return EvaluationClip(
        video,
        frames,
        PngMasks(tuple(tracks.values()), (0,) * len(tracks), len(images), frames[0].size_hw),
        tuple(asked),
        frame_names=tuple(place_of),
    )


SOURCE = Source("reasonvos", (f"{REASONING} single",), {"test": True}, videos, read)
