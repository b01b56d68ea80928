"""Public benchmarks in their published layouts, read end to end, and what is said of incomplete ones."""

from __future__ import annotations

import gc
import json
import pickle
import re
import shutil
import weakref

import cv2
import numpy as np
import pytest
from benchmark_layouts import (
    FRAMES,
    NAMES,
    SIZE_HW,
    VIDEOS,
    WRITERS,
    labels,
    rle,
    write_converted_davis17,
    write_images,
    write_json,
    write_mevis,
    write_palette_masks,
    write_reasonvos,
    write_ref_davis17,
    write_ref_youtube_vos,
)

from decaf_ros.evaluation.datasets import frame_files
from decaf_ros.evaluation.datasets.clips import ExpressionChoice
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.ref_davis17 import SUBSETS
from decaf_ros.evaluation.datasets.registry import BENCHMARKS, Selection, find_source


def opened(name, root, split=""):
    return find_source(name).select(Selection(folder=root, split=split))


def written(name, root):
    writer, split = WRITERS[name]
    return opened(name, writer(root), split)


def questions(clip):
    return [(one.text, one.kind, one.targets) for one in clip.expressions]


def test_every_benchmark_has_a_layout_here():
    assert set(WRITERS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_layout_is_read_as_another_process_reads_it(tmp_path, name):
    dataset = pickle.loads(pickle.dumps(written(name, tmp_path)))
    assert (dataset.name, dataset.scored, dataset.tracking_only, dataset.has_truth) == (name, 2, 0, True)
    source = find_source(name)
    assert source.every_expression and dataset.settings == {"split": WRITERS[name][1]}
    for index, video in enumerate(VIDEOS):
        clip = pickle.loads(pickle.dumps(dataset.clip(index)))
        assert clip.name == video and clip.frame_names == NAMES
        assert [frame.index for frame in clip.frames] == list(range(FRAMES))
        assert {frame.size_hw for frame in clip.frames} == {SIZE_HW}
        picture = cv2.imread(str(next(tmp_path.rglob(f"JPEGImages/**/{video}/00010.jpg"))))
        np.testing.assert_array_equal(clip.frames[2].image, picture[..., ::-1])
        asked = ExpressionChoice(0, None)(clip)
        assert asked == list(clip.expressions) and {one.kind for one in asked} <= set(source.kinds)
        assert len({one.name for one in asked}) == len(asked) >= 2
        truths = {1: labels(video) == 1, 3: labels(video) == 3}
        for one in asked:
            known = list(range(FRAMES) if one.scored is None else one.scored)
            union = clip.mask(one.targets, known)
            wanted = {"both": (1, 3), "angular": (1, 3), "late": (3,), "comes": (3,), "bird": (), "sings": ()}
            numbers = next((numbers for word, numbers in wanted.items() if word in one.text), (1,))
            numbers = (int(one.text[-1]),) if one.text.startswith("text") else numbers
            truth = np.any([truths[number] for number in numbers], axis=0) if numbers else np.zeros_like(truths[1])
            np.testing.assert_array_equal(union, truth[known])


def test_every_annotator_of_davis_is_a_subset(tmp_path):
    found = written("ref_davis17", tmp_path / "official").clip(0)
    assert [one.subset for one in found.expressions] == [*SUBSETS, *SUBSETS]
    assert questions(found)[4] == ("text 0 of é 3", "referring single", (1,))
    converted = opened("ref_davis17", write_converted_davis17(tmp_path / "converted")).clip(0)
    assert [(one.text, one.targets, one.subset, one.name) for one in converted.expressions] == [
        (one.text, one.targets, one.subset, one.name) for one in found.expressions
    ]
    assert (converted.mask((1,)) == (labels("alpha") == 3)).all()


def test_an_object_that_one_annotator_left_out_is_not_asked_of_him(tmp_path):
    file = write_ref_davis17(tmp_path) / "davis_text_annotations/Davis17_annot2.txt"
    file.write_text(
        "\n".join(line for line in file.read_text("latin-1").splitlines() if not line.startswith("alpha 3"))
    )
    asked = opened("ref_davis17", tmp_path).clip(0).expressions
    assert len(asked) == 7 and [one.targets for one in asked if one.subset == SUBSETS[2]] == [(0,)]


def test_the_types_of_mevis_and_revos(tmp_path):
    clip = written("mevis", tmp_path / "mevis").clip(1)
    assert questions(clip) == [
        ("the box that moves", "referring single", (0,)),
        ("both boxes", "referring several", (0, 1)),
        ("a bird that lands", "absent", ()),
    ]
    clip = written("revos", tmp_path / "revos").clip(1)
    assert [(one.kind, one.subset) for one in clip.expressions] == [
        ("referring single", "referring"),
        ("reasoning single", "reasoning"),
        ("reasoning several", "reasoning"),
        ("absent", "absent"),
    ]
    assert clip.foreground.shape == (1, FRAMES, *SIZE_HW)
    np.testing.assert_array_equal(clip.foreground.at(3, [0])[0], labels("beta")[3] > 0)


def test_hidden_masks(tmp_path):
    """The split that a server scores. The file of Ref-YouTube-VOS names the videos of its test split too."""
    for name, root in (
        ("mevis", write_mevis(tmp_path / "mevis")),
        ("ref_youtube_vos", write_ref_youtube_vos(tmp_path / "youtube")),
    ):
        dataset = opened(name, root, "valid")
        assert not dataset.has_truth and [dataset.clip(index).name for index in range(dataset.scored)] == list(VIDEOS)
        clip = dataset.clip(0)
        assert {one.targets for one in clip.expressions} == {None} and clip.count == 0
        assert len(clip.frames) == FRAMES


@pytest.mark.parametrize("by_id", [False, True])
def test_reasonvos_scores_the_frames_with_masks(tmp_path, by_id):
    clip = opened("reasonvos", write_reasonvos(tmp_path, by_id)).clip(1)
    assert [one.scored for one in clip.expressions] == [(0, 2, 4), (0, 2, 4)]
    assert [one.name for one in clip.expressions] == (["1", "3"] if by_id else ["0", "at1"])
    assert len(clip.frames) == FRAMES


def test_selection(tmp_path):
    written("mevis", tmp_path)
    source = find_source("mevis")
    assert source.select(Selection(folder=tmp_path, count=1)).scored == 1
    for selection, words in (
        (Selection(folder=tmp_path, count=3), r"--clips: expected 1 to 2 \(the videos of valid_u\), got 3"),
        (
            Selection(folder=tmp_path, split="test"),
            "--split: expected one of valid_u, valid, train for mevis, got 'test'",
        ),
        (Selection(), "--data: expected the folder of mevis"),
        (Selection(folder=tmp_path, calibration=True), "--calibrate: no effect with --dataset mevis"),
    ):
        with pytest.raises(ValueError, match=words):
            source.select(selection)
    with pytest.raises(ValueError, match="--split: tabletop has no splits, got 'valid'"):
        find_source("tabletop").select(Selection(split="valid"))


def test_version_2_of_mevis_has_another_file_name(tmp_path):
    write_mevis(tmp_path)
    (tmp_path / "valid_u/meta_expressions.json").rename(tmp_path / "valid_u/meta_expressions_v2.json")
    assert opened("mevis", tmp_path).clip(0).expressions[2].kind == "absent"


def test_encoded_masks_are_in_the_order_of_the_frames(tmp_path):
    """Names of different lengths: "9" comes before "10"."""
    names = tuple(str(index) for index in range(7, 7 + FRAMES))
    file = write_mevis(tmp_path) / "valid_u/meta_expressions.json"
    write_images(tmp_path / "valid_u/JPEGImages/alpha", names)
    content = json.loads(file.read_text())
    content["videos"]["alpha"]["frames"] = names
    write_json(file, content)
    clip = opened("mevis", tmp_path).clip(0)
    assert clip.frame_names == names
    np.testing.assert_array_equal(clip.mask((1,)), labels("alpha") == 3)
    picture = cv2.imread(str(tmp_path / "valid_u/JPEGImages/alpha/10.jpg"))
    np.testing.assert_array_equal(clip.frames[3].image, picture[..., ::-1])


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
    """Of encoded masks when the video is read, of pictures when they are decoded."""
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


def test_frames_are_decoded_on_demand_and_kept_up_to_a_limit(tmp_path, monkeypatch):
    """One object for each frame while somebody holds it: SAM 2 keeps image embeddings by object."""
    write_images(tmp_path)
    read = []
    decode = frame_files.picture_to_rgb
    monkeypatch.setattr(frame_files, "picture_to_rgb", lambda data: read.append(len(data)) or decode(data))
    monkeypatch.setattr(frame_files, "KEPT_BYTES", 2 * SIZE_HW[0] * SIZE_HW[1] * 3)
    frames = FrameFiles(sorted(tmp_path.glob("*.jpg")))
    assert len(frames) == FRAMES and not read
    held = frames[4]
    assert frames[-1] is held and frames[1:][3] is held and frames[4:][0] is held and len(read) == 1
    assert [frame.index for frame in frames[1::2]] == [1, 3] and len(frames[1::2]) == 2
    seen = weakref.ref(frames[2])
    gc.collect()
    assert seen() is None, "frames 4 and 1 fill the limit"
    count = len(read)
    assert frames[1] is frames[1] and frames[4] is held and len(read) == count
    assert [frame.stamp_ns for frame in pickle.loads(pickle.dumps(frames[2:4]))] == [83333333, 125000000]
