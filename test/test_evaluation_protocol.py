"""`decaf eval` on public benchmarks, from the command line to tables and submissions, with tiny random checkpoints."""

from __future__ import annotations

import io
import json
import re
import zipfile

import numpy as np
import pytest
from benchmark_layouts import FRAMES, NAMES, SIZE_HW, VIDEOS, WRITERS, labels, write_mevis, write_ref_youtube_vos
from PIL import Image

from decaf_ros.cli.main import main
from decaf_ros.config import replace
from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.datasets.ref_davis17 import SUBSETS
from decaf_ros.evaluation.datasets.registry import Selection, find_source
from decaf_ros.evaluation.metrics import mask_score, robustness
from decaf_ros.evaluation.protocol import SCORES, protocol
from decaf_ros.evaluation.run import Evaluator, Job
from decaf_ros.evaluation.submission import Submission, frame_files
from decaf_ros.evaluation.truth import Truth
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.io.parameter_files import load_config
from decaf_ros.offline import key_frames
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Frame

PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, local_files_only: true}
    sam2: {local_files_only: true}
    window: {size: 3, min_frames: 2}
    segmentation: {max_points: 3}
"""


@pytest.fixture
def run(tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch):
    """Runs `decaf eval` on a dataset and returns its exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--config", "tiny.yaml"]

    def run_eval(name, folder, *more):
        given = ["eval", "--dataset", name, "--data", str(folder), *models, "--workers", "0", "--threads", "1"]
        return main([*given, *more])

    return run_eval


@pytest.mark.parametrize("name", WRITERS)
def test_every_expression_of_a_benchmark_is_scored(run, name, tmp_path, capsys):
    writer, split = WRITERS[name]
    root = writer(tmp_path / "data")
    assert run(name, root, "--split", split, "--clips", "1") == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "decaf_eval/report.json").read_text())
    cases = json.loads((tmp_path / "decaf_eval/cases.json").read_text())
    clip = find_source(name).select(Selection(folder=root, split=split)).clip(0)
    assert [(case["text"], case["name"], case["subset"]) for case in cases] == [
        (one.text, one.name, one.subset) for one in clip.expressions
    ]
    assert found["settings"]["split"] == split and found["settings"]["expressions_a_clip"] == "all"
    assert found["ablation"] == {} and found["online"]["clips"] == found["segmenter"]["clips"] == 0
    overall = found["protocol"]["overall"]
    assert set(overall) == set(SCORES)
    assert all(
        0 <= overall[score] <= 1 for score in ("j", "f", "j_and_f", "attention_j", "attention_f", "pp_1", "pp_10")
    )
    assert (overall["robustness"] is not None) == bool(re.search(r"\| +R \|", printed)) == (name == "revos")
    present = [case for case in cases if case["always"]]
    by_subset = found["protocol"]["by_subset"]
    assert sum(found["protocol"]["counts"].values()) == len(present)
    for subset, means in by_subset.items():
        of_subset = [case["always"]["j"] for case in present if (case["subset"] or "all") == subset]
        assert means["j"] == pytest.approx(np.mean(of_subset))
    assert overall["j"] == pytest.approx(np.mean([means["j"] for means in by_subset.values()]))
    expected = {"revos": ["referring", "reasoning"], "ref_davis17": list(SUBSETS)}.get(name, ["all"])
    assert list(by_subset) == expected and ("mean of the subsets" in printed) == (len(expected) > 1)


def test_a_split_without_masks_is_written_for_its_server(run, tmp_path, capsys):
    for name, root, folder in (
        ("mevis", write_mevis(tmp_path / "mevis"), ""),
        ("ref_youtube_vos", write_ref_youtube_vos(tmp_path / "youtube"), "Annotations/"),
    ):
        assert run(name, root, "--split", "valid") == 1
        assert f"{name}: the masks of this split are not public; use --submission FILE" in capsys.readouterr().err
        file = tmp_path / f"{name}.zip"
        assert run(name, root, "--split", "valid", "--submission", str(file)) == 0
        clip = find_source(name).select(Selection(folder=root, split="valid")).clip(0)
        expressions = [one.name for one in clip.expressions]
        with zipfile.ZipFile(file) as opened:
            assert opened.namelist() == [
                f"{folder}{video}/{expression}/{frame}.png"
                for video in VIDEOS
                for expression in expressions
                for frame in NAMES
            ]
            for member in opened.namelist():
                picture = Image.open(io.BytesIO(opened.read(member)))
                assert picture.mode == "L" and picture.size == SIZE_HW[::-1]
                assert set(np.unique(picture)) <= {0, 255}
        assert f"{2 * len(expressions)} expressions of 2 videos in {file}" in capsys.readouterr().err
        assert not (tmp_path / "decaf_eval").exists() and list(tmp_path.glob("*.part")) == []


def test_a_submission_has_the_scored_masks(tiny_mllm_dir, tiny_sam2_dir, tmp_path):
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    # A node with this threshold finds nothing; the published protocol masks its targets all the same.
    given = {"mllm.checkpoint": str(tiny_mllm_dir), "sam2.checkpoint": str(tiny_sam2_dir), "presence.threshold": 1.0}
    decaf = Decaf.from_config(replace(load_config(tmp_path / "tiny.yaml"), given))
    writer, split = WRITERS["revos"]
    clip = find_source("revos").select(Selection(folder=writer(tmp_path / "revos"), split=split)).clip(1)
    scores = Evaluator(decaf)(Job(clip, clip.expressions[:2], submit=True))
    window = key_frames(clip.frames, decaf.config.window.size, decaf.config.window.clip_rounding)
    for (case, _, masks), number in zip(scores.cases, (1, 3)):
        pictures = np.stack([np.asarray(Image.open(io.BytesIO(masks[name]))) > 0 for name in NAMES])
        truth = labels("beta") == number
        assert not case.found and pictures.any()
        assert case.always == pytest.approx(mask_score(pictures, truth))
        assert case.robustness == pytest.approx(robustness(pictures, truth, labels("beta") > 0))
        fused = decaf.segment(window, case.text).grounding.maps.fused
        attended = coarse_masks(fused, SIZE_HW)
        assert case.attention == pytest.approx(mask_score(attended, truth[[frame.index for frame in window.frames]]))
    assert any(case.attention != case.always for case, *_ in scores.cases)


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("revos", ["--submission", "x.zip"], "--submission: no server scores revos; its masks are public"),
        ("mevis", ["--submission", "x.zip", "--json", "x.json"], "--json: no effect with --submission"),
        ("mevis", ["--submission", "x.zip", "--kinds", "absent"], "--kinds: no effect with --submission"),
        ("mevis", ["--submission", "none/x.zip"], "--submission: no folder none"),
        ("mevis", ["--split", "test"], "--split: expected one of valid_u, valid, train for mevis"),
        ("mevis", ["--long"], "--long: no effect with --dataset mevis, whose expressions are all asked"),
        ("mevis", ["--seed", "5"], "--seed: no effect with --dataset mevis, whose expressions are all asked"),
        ("mevis", ["--split", "valid", "--submission", "x.zip", "--seed", "0"], "--seed: no effect with --submission"),
        ("mevis", ["--calibrate"], "--calibrate: no effect with --dataset mevis"),
        ("long_rvos", ["--split", "test"], "data/test/meta_expressions.json: not found"),
    ],
)
def test_bad_arguments_are_refused_before_the_models_load(run, tmp_path, capsys, monkeypatch, name, more, words):
    monkeypatch.setattr("decaf_ros.evaluation.jobs.load_evaluator", lambda *_: pytest.fail("the models are loaded"))
    assert run(name, WRITERS[name][0](tmp_path / "data"), *more) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def drawn(scored=None, foreground=None):
    frames = tuple(Frame(np.zeros((*SIZE_HW, 3), np.uint8), index, index=index) for index in range(FRAMES))
    objects = np.stack([labels("alpha") == 1, labels("alpha") == 3])
    asked = Referral("late", "referring single", (1,), scored=scored)
    return EvaluationClip("alpha", frames, objects, (asked,), foreground)


def test_only_frames_with_known_masks_are_scored():
    """Key frames 0, 2 and 4; the masks of frames 1, 2 and 4 are known."""
    clip = drawn(scored=(1, 2, 4))
    truth = Truth.of(clip, clip.expressions[0], key_frames(clip.frames, 3))
    assert truth.frames == [1, 2, 4] and truth.key_frames == [1, 2]
    wrong_on_unknown = np.where(np.isin(np.arange(FRAMES), (0, 3))[:, None, None], 1, labels("alpha") == 3)
    assert truth.score(wrong_on_unknown.astype(np.uint8)) == (1, 1)
    fused = np.zeros((3, 6, 8), np.float32)
    fused[0, 0, 0], fused[1, 4, 6] = 1.0, 0.9  # the first key frame is not known
    assert truth.pointing(fused).window == truth.points(fused)[1] == 1
    fused[2, 4, 5:7] = 0.8
    attended = mask_score(coarse_masks(fused[1:], SIZE_HW), (labels("alpha") == 3)[[2, 4]])
    assert truth.score_map(fused) == attended and attended.j > 0.1
    assert truth.robustness(wrong_on_unknown.astype(np.uint8)) is None
    np.testing.assert_array_equal(truth.on_key_frames(3)[1:], (labels("alpha") == 3)[[2, 4]])
    assert not truth.on_key_frames(3)[0].any()


def test_no_key_frame_with_known_masks():
    clip = drawn(scored=(1, 3))
    truth = Truth.of(clip, clip.expressions[0], key_frames(clip.frames, 3))
    fused = np.ones((3, 6, 8), np.float32)
    assert truth.score_map(fused) is None and truth.pointing(fused) is None and truth.points(fused) == {}
    assert truth.score((labels("alpha") == 3).astype(np.uint8)) == (1, 1)


def test_no_cases():
    scores = protocol([])
    assert scores["by_subset"] == {} and set(scores["overall"].values()) == {None}


def test_an_unfinished_submission_leaves_no_file(tmp_path):
    masks = frame_files(drawn(), labels("alpha"))
    assert list(masks) == [f"{index:05d}" for index in range(FRAMES)]
    file = tmp_path / "masks.zip"
    with pytest.raises(ValueError, match="expected each expression once, got alpha/0 again"):
        with Submission(file, "") as submission:
            submission.add("alpha", "0", masks)
            submission.add("alpha", "0", masks)
    assert list(tmp_path.iterdir()) == []
    with Submission(file, "") as submission:
        submission.add("alpha", "0", masks)
    assert submission.count == 1 and zipfile.ZipFile(file).testzip() is None
