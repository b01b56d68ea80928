"""Images with phrases and boxes, by which localization heads are found: RefCOCO as published, or any folder."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decaf_ros.io.images import picture_to_rgb

PAIRS = "pairs.jsonl"
# Where the images are from the folder with refs(...).p on, in the layout of the published reader and beside the files.
_IMAGES = ("../images/mscoco/images/train2014", "../train2014", "train2014", "../images/train2014", "images")


class Pair(NamedTuple):
    """A phrase about an image.

    Attributes:
        image: file of the image.
        phrase: the referring expression.
        box: left, top, right, bottom of the object in pixels; None if it is not known. Only for the report.
    """

    image: Path
    phrase: str
    box: tuple[float, float, float, float] | None


class _Plain(pickle.Unpickler):
    """Reads lists, dictionaries, numbers and texts; a pickle with anything else could run code."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"expected plain values, got {module_name}.{global_name}")


def read_pairs(folder: Path, images: Path | None = None, split: str = "train") -> list[Pair]:
    """The pairs of a folder: of RefCOCO's refs(...).p and instances.json, or of `pairs.jsonl`.

    A line of `pairs.jsonl` is {"image": FILE, "phrase": TEXT, "box": [left, top, right, bottom]}: the file relative to
    the folder, the box in pixels, which may be left out.

    Args:
        folder: the folder.
        images: folder of RefCOCO's images (COCO train2014); None: the places where its reader expects them.
        split: of RefCOCO.

    Raises:
        FileNotFoundError: a file is missing, naming it.
        ValueError: a file is damaged or of another form, or has no pair.
    """
    refs = sorted(folder.glob("refs(*).p"))
    if len(refs) > 1:
        raise ValueError(f"{folder}: expected one refs(...).p, got {', '.join(file.name for file in refs)}")
    pairs = _refcoco(refs[0], images, split) if refs else _listed(folder)
    if not pairs:
        raise ValueError(f"{folder}: expected image-text pairs, got none{f' of the split {split}' if refs else ''}")
    return pairs


def _listed(folder: Path) -> list[Pair]:
    file = folder / PAIRS
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: expected {PAIRS}, or RefCOCO's refs(...).p and instances.json")
    pairs = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            box = entry.get("box")
            pair = Pair(folder / entry["image"], str(entry["phrase"]), None if box is None else _box(box))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{file}, line {number}: expected {{"image": FILE, "phrase": TEXT, "box": [4 numbers]}}, '
                f"got {line[:80]!r}"
            ) from error
        pairs.append(_existing(pair))
    return pairs


def _refcoco(refs: Path, images: Path | None, split: str) -> list[Pair]:
    instances = refs.with_name("instances.json")
    if not instances.is_file():
        raise FileNotFoundError(f"{instances}: expected RefCOCO's file beside {refs.name}")
    folder = images or next((found for found in (refs.parent / name for name in _IMAGES) if found.is_dir()), None)
    if folder is None or not folder.is_dir():
        raise FileNotFoundError(
            f"{folder or refs.parent / _IMAGES[0]}: expected COCO's train2014 images; name --images"
        )
    try:
        with refs.open("rb") as file:
            # Written by Python 2.
            entries: list[dict[str, Any]] = _Plain(file, encoding="latin1").load()
        content = json.loads(instances.read_text(encoding="utf-8"))
        files = {image["id"]: image["file_name"] for image in content["images"]}
        boxes = {one["id"]: one["bbox"] for one in content["annotations"]}
        pairs = []
        for entry in entries:
            if entry["split"] == split:
                left, top, width, height = boxes[entry["ann_id"]]
                box = _box((left, top, left + width, top + height))
                file_name = folder / files[entry["image_id"]]
                pairs += [Pair(file_name, sentence["sent"], box) for sentence in entry["sentences"]]
    except (KeyError, TypeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{refs}: expected RefCOCO's layout with {instances.name}, got {error!r}") from error
    return pairs


def _box(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Raises ValueError or TypeError for anything but left < right and top < bottom."""
    left, top, right, bottom = (float(value) for value in values)
    if not (left < right and top < bottom):
        raise ValueError(f"expected left < right and top < bottom, got {values}")
    return left, top, right, bottom


def _existing(pair: Pair) -> Pair:
    if not pair.image.is_file():
        raise FileNotFoundError(f"{pair.image}: no such image, named in {PAIRS}")
    return pair


def read_image(pair: Pair) -> np.ndarray:
    """(H, W, 3) uint8, RGB. Raises OSError or ValueError, naming the file."""
    try:
        return picture_to_rgb(pair.image.read_bytes())
    except ValueError as error:
        raise ValueError(f"{pair.image}: {error}") from error


def sample(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """`count` pairs at random, all if there are fewer; the same for a seed."""
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [pairs[index] for index in chosen]
