"""Errors about public benchmarks that are incomplete, or have wrong content."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from benchmark_layouts import (
    NAMES,
    SIZE_HW,
    WRITERS,
    labels,
    rle,
    write_converted_davis17,
    write_images,
    write_json,
    write_palette_masks,
    write_ref_youtube_vos,
)

from decaf_ros.evaluation.datasets.registry import Selection, find_source


def opened(name, root, split=""):
    return find_source(name).select(Selection(folder=root, split=split))


def written(name, root):
    writer, split = WRITERS[name]
    return opened(name, writer(root), split)


# Faults. Each entry: dataset, file or folder to remove, words of the error.
REMOVED = [
    ("ref_davis17", "DAVIS/ImageSets", "val.txt: not found"),
    ("ref_davis17", "DAVIS/JPEGImages/480p/beta", "480p/beta: missing, 1 of 2 folders are not complete"),
    ("ref_davis17", "DAVIS/Annotations_unsupervised", "Annotations_unsupervised/480p: no such folder"),
    ("ref_davis17", "DAVIS/Annotations_unsupervised/480p/alpha/00010.png", "alpha/00010.png: missing, 1 of 2"),
    ("ref_davis17", "davis_text_annotations/Davis17_annot2.txt", "Davis17_annot2.txt: not found"),
    ("ref_youtube_vos", "meta_expressions", "meta_expressions/train/meta_expressions.json: not found"),
    ("ref_youtube_vos", "train/JPEGImages/alpha/00020.jpg", "JPEGImages/alpha/00020.jpg: missing"),
    ("ref_youtube_vos", "train/Annotations/beta/00000.png", "Annotations/beta/00000.png: missing"),
    ("mevis", "valid_u", "valid_u/meta_expressions.json: not found; unpack the valid_u archive"),
    ("mevis", "valid_u/JPEGImages", "valid_u/JPEGImages: no such folder"),
    ("mevis", "valid_u/mask_dict.json", "valid_u/mask_dict.json: not found"),
    ("revos", "mask_dict_foreground.json", "mask_dict_foreground.json: not found"),
    ("revos", "mask_dict.json", "mask_dict.json: not found"),
    ("revos", "JPEGImages/beta/00005.jpg", "JPEGImages/beta/00005.jpg: missing, 1 of 2 folders"),
    ("reasonvos", "Annotations/mose_beta_3", "Annotations/MOSE_beta_3: no such folder"),
    ("reasonvos", "JPEGImages/beta/00010.jpg", "JPEGImages/beta/00010.jpg: missing"),
    ("reasonvos", "Annotations/mose_beta_3/*.png", "Annotations/mose_beta_3: missing"),
    ("long_rvos", "valid/Annotations/alpha", "Annotations/alpha/1: missing, 2 of 4"),
    ("long_rvos", "valid/Annotations/beta/3", "Annotations/beta/3: missing, 1 of 4"),
    ("long_rvos", "valid/Annotations/beta/3/*.png", "Annotations/beta/3: missing, 1 of 4"),
    ("folder", "meta_expressions.json", "meta_expressions.json: not found; docs/evaluation.md"),
    ("folder", "JPEGImages/alpha", "JPEGImages/alpha: missing"),
    ("folder", "Annotations", "Annotations: no such folder"),
]


@pytest.mark.parametrize(("name", "gone", "words"), REMOVED)
def test_an_incomplete_benchmark_is_found_before_anything_runs(tmp_path, name, gone, words):
    writer, split = WRITERS[name]
    for path in list(writer(tmp_path).glob(gone)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=re.escape(words)):
        opened(name, tmp_path, split)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mevis", "valid_u/mask_dict.json"), ("revos", "mask_dict.json"), ("revos", "mask_dict_foreground.json")],
)
def test_incomplete_encoded_masks_are_found_before_anything_runs(tmp_path, name, file):
    """Those of the last video, too: the file is cut, or lacks an entry."""
    writer, split = WRITERS[name]
    (tmp_path / "cut").mkdir()
    path = writer(tmp_path / "cut") / file
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected one complete JSON object; ")):
        opened(name, tmp_path / "cut", split)
    path = writer(tmp_path / "lacks") / file
    masks = json.loads(path.read_text())
    lost, _ = masks.popitem()
    write_json(path, masks)
    with pytest.raises(ValueError, match=re.escape(f"{path}: expected an entry '{lost}', got {len(masks)} others; ")):
        opened(name, tmp_path / "lacks", split)


def test_a_split_without_the_test_videos_is_refused(tmp_path):
    shutil.rmtree(write_ref_youtube_vos(tmp_path) / "meta_expressions/test")
    with pytest.raises(ValueError, match="meta_expressions/test/meta_expressions.json: not found; unpack"):
        opened("ref_youtube_vos", tmp_path, "valid")


# Wrong content. Each entry: dataset, file, content (a function of the old JSON, or text), words.
def changed(**values):
    """Changes the first expression of the first video."""

    def change(content):
        expressions = content["videos"]["alpha"]["expressions"]
        (expressions[0] if isinstance(expressions, list) else expressions["0"]).update(values)
        return content

    return change


CHANGED = [
    ("mevis", "valid_u/meta_expressions.json", "<html>", "expected JSON"),
    ("mevis", "valid_u/meta_expressions.json", "[]", 'expected {"videos": {name: ...}}'),
    ("mevis", "valid_u/meta_expressions.json", '{"videos": {"a": {"frames": [1]}}}', 'video a: expected "frames"'),
    ("mevis", "valid_u/meta_expressions.json", '{"videos": {"a": {"frames": ["1"]}}}', 'expected "expressions"'),
    ("mevis", "valid_u/meta_expressions.json", changed(exp=""), "expression 0: expected 'exp', str, got ''"),
    ("mevis", "valid_u/meta_expressions.json", changed(anno_id=7), "expected 'anno_id', list, got 7"),
    ("mevis", "valid_u/meta_expressions.json", changed(anno_id=[99]), "mask_dict.json: expected an entry '99'"),
    (
        "mevis",
        "valid_u/mask_dict.json",
        lambda masks: {**masks, "7": masks["7"][:-1]},
        "expected 5 masks, one a frame, got 4",
    ),
    ("mevis", "valid_u/mask_dict.json", '{"7": [', "expected one complete JSON object"),
    ("revos", "meta_expressions_valid_.json", changed(type_id=4), "expected a type_id from 0 to 2, got 4"),
    (
        "revos",
        "mask_dict_foreground.json",
        lambda masks: {**masks, "alpha": masks["alpha"]["masks_rle"][1:]},
        "one a frame, got 4",
    ),
    ("reasonvos", "meta_expressions.json", changed(exp_text=None), "expected 'exp_text', str, got None"),
    ("long_rvos", "valid/meta_expressions.json", changed(type="odd"), "expected a type of static, dynamic, hybrid"),
    (
        "long_rvos",
        "valid/meta_expressions.json",
        changed(obj_id=9),
        "Annotations/alpha/9: missing",
    ),
    ("folder", "meta_expressions.json", changed(obj_id=0), 'expected "obj_id" above 0, got 0'),
    ("folder", "meta_expressions.json", changed(type="absent"), "expected the type referring or reasoning"),
    (
        "mevis",
        "valid_u/mask_dict.json",
        lambda masks: {**masks, "8": [None, None, [{"counts": "6"}], None, None]},
        "mask_dict.json, video alpha, entry '8', mask 2: expected a mask with \"size\"",
    ),
    (
        "mevis",
        "valid_u/mask_dict.json",
        lambda masks: {**masks, "8": [False] * 5},
        "entry '8', mask 0: expected a mask",
    ),
    (
        "ref_youtube_vos",
        "meta_expressions/train/meta_expressions.json",
        changed(obj_id="x"),
        "video alpha, expression 0: expected 'obj_id', a number above 0, got 'x'",
    ),
    ("ref_youtube_vos", "meta_expressions/train/meta_expressions.json", changed(obj_id=True), "got True"),
    ("ref_youtube_vos", "meta_expressions/train/meta_expressions.json", changed(obj_id="0"), "above 0, got '0'"),
    ("folder", "meta_expressions.json", changed(obj_id=[True]), 'expected "obj_id" above 0, got [True]'),
    (
        "folder",
        "meta_expressions.json",
        changed(obj_id=[1, 9]),
        "video alpha, expression 0: no mask in",
    ),
    ("ref_davis17", "davis_text_annotations/Davis17_annot1.txt", "alpha one box", "line 1: expected VIDEO OBJECT"),
    ("ref_davis17", "davis_text_annotations/Davis17_annot1.txt", 'alpha 1 "box"', "annot1.txt: no line of beta"),
]


@pytest.mark.parametrize(("name", "file", "content", "words"), CHANGED)
def test_wrong_content_is_named_with_its_file(tmp_path, name, file, content, words):
    writer, split = WRITERS[name]
    path = writer(tmp_path) / file
    if callable(content):
        write_json(path, content(json.loads(path.read_text())))
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=re.escape(words)) as failed:
        opened(name, tmp_path, split).clip(0)
    assert str(tmp_path) in str(failed.value) and ";" in str(failed.value)


META_FILES = {
    "ref_davis17": "meta_expressions/valid/meta_expressions.json",
    "ref_youtube_vos": "meta_expressions/train/meta_expressions.json",
    "mevis": "valid_u/meta_expressions.json",
    "revos": "meta_expressions_valid_.json",
    "long_rvos": "valid/meta_expressions.json",
    "folder": "meta_expressions.json",
}


@pytest.mark.parametrize("name", META_FILES)
def test_only_reasonvos_lists_its_expressions(tmp_path, name):
    writer, split = WRITERS[name] if name != "ref_davis17" else (write_converted_davis17, "valid")
    file = writer(tmp_path) / META_FILES[name]
    content = json.loads(file.read_text())
    for meta in content["videos"].values():
        meta["expressions"] = list(meta["expressions"].values())
    write_json(file, content)
    with pytest.raises(ValueError, match='video alpha: expected "expressions" by id, got list; '):
        opened(name, tmp_path, split)


@pytest.mark.parametrize(
    ("key", "entry", "words"),
    [
        ("0", {"exp": "a", "obj_id": "x"}, "video alpha, expression 0: expected 'obj_id', a number above 0, got 'x'"),
        ("e0", {"exp": "a", "obj_id": "1"}, "video alpha: expected numbers as ids of expressions, got 'e0'"),
    ],
)
def test_wrong_content_of_a_converted_davis(tmp_path, key, entry, words):
    file = write_converted_davis17(tmp_path) / META_FILES["ref_davis17"]
    content = json.loads(file.read_text())
    expressions = content["videos"]["alpha"]["expressions"]
    del expressions["0"]
    expressions[key] = entry
    write_json(file, content)
    with pytest.raises(ValueError, match=re.escape(f"{file}, {words}")):
        opened("ref_davis17", tmp_path).clip(0)


def test_several_encoded_masks_of_a_frame_mean_their_union(tmp_path):
    writer, split = WRITERS["revos"]
    file = writer(tmp_path) / "mask_dict_foreground.json"
    foreground = json.loads(file.read_text())
    foreground["beta"]["masks_rle"] = [[rle(image == 1), rle(image == 3)] for image in labels("beta")]
    foreground["beta"]["masks_rle"][1] = []
    write_json(file, foreground)
    masks = opened("revos", tmp_path, split).clip(1).foreground
    for frame in (0, 2, 3, 4):
        np.testing.assert_array_equal(masks.at(frame, [0])[0], labels("beta")[frame] > 0)
    assert not masks.at(1, [0]).any()


def test_an_encoded_mask_that_cannot_be_decoded_is_named(tmp_path):
    writer, split = WRITERS["revos"]
    file = writer(tmp_path) / "mask_dict.json"
    masks = json.loads(file.read_text())
    masks["9"][2]["counts"] = "1"
    write_json(file, masks)
    clip = opened("revos", tmp_path, split).clip(1)
    with pytest.raises(ValueError, match="mask_dict.json, video beta, entry '9', mask 2: counts: expected run lengths"):
        clip.at(2, [0])


SMALL = (40, 50)


def test_masks_of_another_size(tmp_path):
    """Encoded masks are checked when the video is read, pictures when they are decoded."""
    dataset = written("mevis", tmp_path / "mevis")
    for name in NAMES:
        cv2.imwrite(str(tmp_path / f"mevis/valid_u/JPEGImages/alpha/{name}.jpg"), np.zeros((*SMALL, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"mask_dict.json, video alpha, entry '7', mask 0: expected \(40, 50\).*got \(96, 128\)"
    ):
        dataset.clip(0)
    clip = written("ref_youtube_vos", tmp_path / "youtube").clip(0)
    write_palette_masks(tmp_path / "youtube/train/Annotations/alpha", np.zeros((1, *SMALL), np.uint8))
    with pytest.raises(ValueError, match=r"alpha/00000.png: expected \(96, 128\) .*, got \(40, 50\)"):
        clip.mask((0,))


def test_files_that_cannot_be_decoded(tmp_path):
    clip = written("ref_youtube_vos", tmp_path).clip(0)
    folder = tmp_path / "train/JPEGImages/alpha"
    (folder / "00010.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="00010.jpg: cannot be read: .*; unpack or download it again"):
        clip.frames[2]
    write_images(folder, ("00015",), SMALL)
    with pytest.raises(ValueError, match=r"00015.jpg: expected \(96, 128\) .* as the other frames, got \(40, 50\)"):
        clip.frames[3]
    masks = tmp_path / "train/Annotations/alpha"
    cv2.imwrite(str(masks / "00005.png"), np.zeros((*SIZE_HW, 3), np.uint8))
    with pytest.raises(ValueError, match="00005.png: cannot be read as a mask: .* got the mode RGB"):
        clip.at(1, [0])
    (masks / "00005.png").write_bytes(b"cut")
    with pytest.raises(ValueError, match="00005.png: cannot be read as a mask"):
        clip.at(1, [0])


def test_masks_of_a_frame_that_is_missing(tmp_path):
    dataset = written("reasonvos", tmp_path)
    (tmp_path / "Annotations/mose_alpha_1/00003.png").write_bytes(b"")
    with pytest.raises(ValueError, match="mose_alpha_1/00003.png: no image .*JPEGImages/alpha/00003.jpg"):
        dataset.clip(0)
