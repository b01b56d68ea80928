"""Public benchmarks in their published layouts, read end to end."""

from __future__ import annotations

import gc
import json
import pickle
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
    write_converted_davis17,
    write_images,
    write_json,
    write_mevis,
    write_reasonvos,
    write_ref_davis17,
    write_ref_youtube_vos,
)

from decaf_ros.evaluation.datasets import frame_files
from decaf_ros.evaluation.datasets.clips import ExpressionChoice
from decaf_ros.evaluation.datasets.frame_files import FrameFiles
from decaf_ros.evaluation.datasets.public import read_videos
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
    assert source.every_expression and dataset.settings == {
        "split": WRITERS[name][1],
        **({"version": "2"} if name == "mevis" else {}),
    }
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


def test_the_version_of_mevis_shows_in_its_files(tmp_path):
    write_mevis(tmp_path)

    def version(split):
        return find_source("mevis").select(Selection(folder=tmp_path, split=split)).settings.get("version")

    assert version("valid_u") == "2", "an expression without targets"
    assert version("valid") is None, "targets and counts do not tell"
    file = tmp_path / "valid/meta_expressions.json"
    named = file.rename(file.with_stem("meta_expressions_v2"))
    assert version("valid") == "2"
    named.rename(file)
    content = json.loads(file.read_text())
    first = next(iter(content["videos"].values()))
    others = sum(len(meta["expressions"]) for meta in content["videos"].values()) - len(first["expressions"])
    for number, count in (("1", 2236), ("2", 2523)):
        first["expressions"] = {str(place): {"exp": "a box"} for place in range(count - others)}
        file.write_text(json.dumps(content))
        read_videos.cache_clear()
        assert version("valid") == number


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
