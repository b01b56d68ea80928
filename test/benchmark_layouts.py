"""Tiny copies of public benchmarks in their published layouts: two videos of grey noise with moving boxes."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SIZE_HW = (96, 128)
FRAMES = 5
VIDEOS = ("alpha", "beta")
NAMES = tuple(f"{5 * index:05d}" for index in range(FRAMES))


def labels(video: str) -> np.ndarray:
    """(F, H, W) uint8: object 1 moves to the right, object 3 is there on the last three frames."""
    images = np.zeros((FRAMES, *SIZE_HW), np.uint8)
    top = 10 + 20 * VIDEOS.index(video)
    for index in range(FRAMES):
        images[index, top : top + 30, 10 + 8 * index : 40 + 8 * index] = 1
        if index >= 2:
            images[index, 60:90, 90:120] = 3
    return images


def rle(mask: np.ndarray) -> dict[str, object]:
    """A mask in COCO's compressed encoding, written from its definition, one number after the other."""
    runs, value, length = [], False, 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    runs.append(length)
    return {"size": list(mask.shape), "counts": "".join(number(runs, place) for place in range(len(runs)))}


def number(runs: list[int], place: int) -> str:
    left = runs[place] - (runs[place - 2] if place > 2 else 0)
    text = ""
    while True:
        group, left = left & 31, left >> 5
        # Arithmetic shifts end at 0 or -1; the top bit of the last group is the sign.
        if (left == 0 and not group & 16) or (left == -1 and group & 16):
            return text + chr(group + 48)
        text += chr((group | 32) + 48)


def write_images(folder: Path, names: tuple[str, ...] = NAMES, size_hw: tuple[int, int] = SIZE_HW) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(folder.name))
    for name in names:
        cv2.imwrite(str(folder / f"{name}.jpg"), rng.integers(80, 150, (*size_hw, 3), dtype=np.uint8))


def write_palette_masks(folder: Path, images: np.ndarray, names: tuple[str, ...] = NAMES) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, images):
        picture = Image.fromarray(image, "P")
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
        picture.save(folder / f"{name}.png")


def write_json(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_ref_davis17(root: Path) -> Path:
    for video in VIDEOS:
        write_images(root / "DAVIS/JPEGImages/480p" / video)
        write_palette_masks(root / "DAVIS/Annotations_unsupervised/480p" / video, labels(video))
    (root / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (root / "DAVIS/ImageSets/2017/val.txt").write_text("\n".join(VIDEOS) + "\n")
    texts = root / "davis_text_annotations"
    texts.mkdir()
    for number, (name, encoding) in enumerate(
        (("annot1", "utf-8"), ("annot1_full_video", "utf-8"), ("annot2", "latin-1"), ("annot2_full_video", "latin-1"))
    ):
        # Not in the order of the objects; an accent of Latin 1.
        lines = [f'{video} {one} "text {number} of é {one}"' for one in (3, 1) for video in VIDEOS]
        (texts / f"Davis17_{name}.txt").write_bytes("\r\n".join(lines).encode(encoding))
    return root


def write_converted_davis17(root: Path) -> Path:
    metas = {}
    for video in VIDEOS:
        write_images(root / "valid/JPEGImages" / video)
        write_palette_masks(root / "valid/Annotations" / video, labels(video))
        texts = [(f"text {number} of é {one}", str(one)) for one in (1, 3) for number in range(4)]
        expressions = {str(place): {"exp": text, "obj_id": one} for place, (text, one) in enumerate(texts)}
        metas[video] = {"frames": NAMES, "expressions": expressions}
    write_json(root / "meta_expressions/valid/meta_expressions.json", {"videos": metas})
    return root


def write_ref_youtube_vos(root: Path) -> Path:
    expressions = {"0": {"exp": "the left box", "obj_id": "1"}, "2": {"exp": "the late box", "obj_id": "3"}}
    for video in VIDEOS:
        write_images(root / "train/JPEGImages" / video)
        write_palette_masks(root / "train/Annotations" / video, labels(video))
        write_images(root / "valid/JPEGImages" / video)
    metas = {video: {"frames": NAMES, "expressions": expressions} for video in VIDEOS}
    write_json(root / "meta_expressions/train/meta_expressions.json", {"videos": metas})
    unknown = {key: {"exp": entry["exp"]} for key, entry in expressions.items()}
    metas = {video: {"frames": NAMES, "expressions": unknown} for video in (*VIDEOS, "gamma")}
    write_json(root / "meta_expressions/valid/meta_expressions.json", {"videos": metas})
    write_json(root / "meta_expressions/test/meta_expressions.json", {"videos": {"gamma": metas["gamma"]}})
    return root


def tracks(video: str, first: int) -> dict[str, list[object]]:
    """Masks by annotation id: of object 1 and of object 3, null where it is not there."""
    images = labels(video)
    return {
        str(first + place): [rle(image == one) if (image == one).any() else None for image in images]
        for place, one in enumerate((1, 3))
    }


def write_mevis(root: Path) -> Path:
    known, masks = {}, {}
    for place, video in enumerate(VIDEOS):
        first = 7 + 2 * place
        masks |= tracks(video, first)
        known[video] = {
            "vid_id": place,
            "frames": NAMES,
            "expressions": {
                "0": {"exp": "the box that moves", "obj_id": [1], "anno_id": [first]},
                "1": {"exp": "both boxes", "obj_id": [1, 3], "anno_id": [first, first + 1]},
                "2": {"exp": "a bird that lands", "obj_id": [], "anno_id": []},
            },
        }
        for split in ("valid_u", "valid"):
            write_images(root / split / "JPEGImages" / video)
    write_json(root / "valid_u/meta_expressions.json", {"videos": known})
    write_json(root / "valid_u/mask_dict.json", masks)
    hidden = {
        video: {**meta, "expressions": {key: {"exp": entry["exp"]} for key, entry in meta["expressions"].items()}}
        for video, meta in known.items()
    }
    write_json(root / "valid/meta_expressions.json", {"videos": hidden})
    return root


def write_revos(root: Path) -> Path:
    metas, masks, foreground = {}, {}, {}
    for place, video in enumerate(VIDEOS):
        first = 7 + 2 * place
        masks |= tracks(video, first)
        write_images(root / "JPEGImages" / video)
        foreground[video] = {
            "masks_rle": [rle(image > 0) for image in labels(video)],
            "foreground_ratio": [float((image > 0).mean()) for image in labels(video)],
        }
        metas[video] = {
            "vid_id": place,
            "height": SIZE_HW[0],
            "width": SIZE_HW[1],
            "frames": NAMES,
            "expressions": {
                "0": {"exp": "the box on the left", "obj_id": [1], "anno_id": [first], "type_id": 0},
                "1": {"exp": "what came late?", "obj_id": [3], "anno_id": [first + 1], "type_id": 1},
                "2": {"exp": "what is angular?", "obj_id": [1, 3], "anno_id": [first, first + 1], "type_id": 1},
                "3": {"exp": "the box that sings", "obj_id": [1], "anno_id": [first], "type_id": 2},
            },
        }
    write_json(root / "meta_expressions_valid_.json", {"videos": metas})
    write_json(root / "mask_dict.json", masks)
    write_json(root / "mask_dict_foreground.json", foreground)
    return root


def write_reasonvos(root: Path, by_id: bool = False) -> Path:
    """The second video has masks for every other frame only, and one expression id twice. by_id: expressions by id."""
    metas = {}
    for place, video in enumerate(VIDEOS):
        write_images(root / "JPEGImages" / video)
        step = 1 + place
        for one in (1, 3):
            folder = root / "Annotations" / f"mose_{video}_{one}"
            folder.mkdir(parents=True)
            for name, image in list(zip(NAMES, labels(video)))[::step]:
                cv2.imwrite(str(folder / f"{name}.png"), np.where(image == one, 255, 0).astype(np.uint8))
        entries = [
            {"exp_id": 0, "obj_id": 1, "exp_text": "Which one moves?", "is_sent": True},
            {"exp_id": 1 - place, "obj_id": 3, "exp_text": "the one that came late", "is_sent": False},
        ]
        expressions = {str(entry["obj_id"]): entry for entry in entries} if by_id else entries
        metas[video] = {"source": "MOSE", "frames": NAMES[::step], "expressions": expressions}
    write_json(root / "meta_expressions.json", {"videos": metas})
    return root


def write_long_rvos(root: Path) -> Path:
    metas = {}
    for video in VIDEOS:
        write_images(root / "valid/JPEGImages" / video)
        for one in (1, 3):
            folder = root / "valid/Annotations" / video / str(one)
            folder.mkdir(parents=True)
            for name, image in zip(NAMES, labels(video)):
                if (image == one).any():
                    cv2.imwrite(str(folder / f"{name}.png"), np.where(image == one, 255, 0).astype(np.uint8))
        metas[video] = {
            "frames": NAMES,
            "expressions": {
                "0": {"exp": "the left box", "obj_id": 1, "type": "static"},
                "1": {"exp": "the box that comes", "obj_id": 3, "type": "dynamic"},
            },
        }
    write_json(root / "valid/meta_expressions.json", {"videos": metas})
    return root


def write_folder(root: Path) -> Path:
    metas = {}
    for video in VIDEOS:
        write_images(root / "JPEGImages" / video)
        # The last frame has no masks.
        write_palette_masks(root / "Annotations" / video, labels(video)[:-1], NAMES[:-1])
        metas[video] = {
            "expressions": {
                "0": {"exp": "the left box", "obj_id": 1},
                "1": {"exp": "what is angular?", "obj_id": [1, 3], "type": "reasoning"},
                "2": {"exp": "the bird", "obj_id": []},
            }
        }
    write_json(root / "meta_expressions.json", {"videos": metas})
    return root


# Writer and split by name of the dataset.
WRITERS = {
    "ref_davis17": (write_ref_davis17, "valid"),
    "ref_youtube_vos": (write_ref_youtube_vos, "train"),
    "mevis": (write_mevis, "valid_u"),
    "revos": (write_revos, "valid"),
    "reasonvos": (write_reasonvos, "test"),
    "long_rvos": (write_long_rvos, "valid"),
    "folder": (write_folder, "all"),
}
