"""`decaf eval --bag`: a recording with a topic of ground truth, with the real method on tiny random checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from result_folders import SIZE_HW, camera_frame, moving_ball

from decaf_ros.cli.evaluate_bag import bag_source, check_bag_arguments
from decaf_ros.cli.main import _parser, main
from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.datasets.bag import BagSource, TruthTopic
from decaf_ros.evaluation.datasets.registry import Selection
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.bags import BagReader, make_header, make_message

ROOT = Path(__file__).parents[1]
FRAMES = 8
ALWAYS = ["presence.threshold=0", "segmentation.fallback=best", "window.size=3", "window.min_frames=2"]


def labels(index: int) -> np.ndarray:
    """The ball is 5, a still square 9."""
    image = moving_ball(index)[1].astype(np.uint8) * 5
    image[90:110, 20:40] = 9
    return image


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "bag"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            frame = camera_frame(index)
            writer.write_image("/camera/image", frame.image, frame.stamp_ns, "camera")
            writer.write_image("/truth", labels(index), frame.stamp_ns, "camera")
            writer.write_image("/wide", labels(index).astype(np.uint16), frame.stamp_ns, "camera")
            header = make_header(frame.stamp_ns, "camera")
            data = cv2.imencode(".png", labels(index))[1]
            packed = make_message("sensor_msgs/msg/CompressedImage", header=header, format="png", data=data.ravel())
            writer.write_message("/packed", packed, frame.stamp_ns)
            if index % 3 == 0:
                writer.write_image("/some", labels(index), frame.stamp_ns, "camera")
            writer.write_image("/small", labels(index)[::2], frame.stamp_ns, "camera")
            writer.write_image("/late", labels(index), frame.stamp_ns + 1, "camera")
    return path


@pytest.fixture
def given(bag, tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [argument for name in ALWAYS for argument in ("--set", name)]
    return [
        "eval",
        "--bag",
        str(bag),
        "--mllm",
        str(tiny_mllm_dir),
        "--sam2",
        str(tiny_sam2_dir),
        *settings,
        "--threads",
        "1",
    ]


def clip_of(bag, *truths, ask_at_s=None, queries=("the ball",)):
    with BagReader(bag) as reader:
        frames = list(reader.frames("/camera/image"))
    truths = tuple(TruthTopic.parse(text) for text in truths)
    return BagSource(bag, frames, queries, truths, ask_at_s).select(Selection()).clip(0)


@pytest.mark.parametrize("topic", ["/truth", "/wide", "/packed"])
def test_ground_truth_of_every_encoding(bag, topic):
    clip = clip_of(bag, f"{topic}:5", topic, f"{topic}:7", queries=("the ball", "both", "a cup"))
    assert [(one.kind, one.targets) for one in clip.expressions] == [("query", (0,)), ("query", (1,)), ("absent", ())]
    for index in range(FRAMES):
        ball, both, cup = clip.at(index, [0, 1, 2])
        np.testing.assert_array_equal(ball, labels(index) == 5)
        np.testing.assert_array_equal(both, labels(index) > 0)
        assert not cup.any()


def test_a_part_of_the_recording(bag):
    """Seconds 0.25 to 0.65 of frames 0.1 s apart; masks of the other frames are left out."""
    args = _parser().parse_args(
        ["eval", "--bag", str(bag), "--query", "the ball", "--topic", "/camera/image"]
        + ["--start", "0.25", "--duration", "0.4", "--ground-truth", "/truth:5"]
    )
    check_bag_arguments(args)
    dataset = bag_source(args, DecafConfig()).select(Selection())
    assert dataset.settings["start_s"] == 0.25 and dataset.settings["duration_s"] == 0.4
    clip = dataset.clip(0)
    assert len(clip.frames) == 4 and clip.expressions[0].scored == (0, 1, 2, 3)
    for place in range(4):
        np.testing.assert_array_equal(clip.at(place, [0])[0], labels(place + 3) == 5)


def test_frames_without_a_mask_are_not_scored(bag):
    (expression,) = clip_of(bag, "/some").expressions
    assert expression.scored == (0, 3, 6)


def test_the_command(given, tmp_path, capsys):
    """With ground truth, then without: the answers are the same, and only the scores are missing."""
    given += ["--query", "the ball"]
    assert main([*given, "--ground-truth", "/truth:5", "--out", "scored"]) == 0
    assert main([*given, "--out", "unscored"]) == 0
    scored, unscored = (json.loads((tmp_path / out / "cases.json").read_text())[0] for out in ("scored", "unscored"))
    assert scored["text"] == "the ball" and all(0 <= scored["published"][name] <= 1 for name in ("j", "f"))
    assert unscored["published"] is None and unscored["answer"].startswith("tracking")
    for name in ("answer", "found", "presence", "decoded_category"):
        assert scored[name] == unscored[name]
    assert json.loads((tmp_path / "scored" / "report.json").read_text())["settings"]["dataset"] == "bag"
    assert (tmp_path / "unscored" / "report.html").stat().st_size > 10_000
    assert main(["compare", "scored", "scored", "--max-drop", "0"]) == 0
    assert "questions: 1, changed answers: 0" in capsys.readouterr().out
    assert main(["compare", "scored", "unscored"]) == 1
    assert "ground_truth is ['/truth:5'] in scored and [] in unscored" in capsys.readouterr().err


def test_online(given, tmp_path, capsys):
    """A query without a mask is named, as it is not scored."""
    queries = ["--query", "the ball", "--ground-truth", "/truth:5", "--query", "a cup", "--ground-truth", "/truth:7"]
    assert main([*given, *queries, "--online", "--ask-at", "0.2"]) == 0
    report = json.loads((tmp_path / "decaf_eval" / "report.json").read_text())
    assert "left out, without a mask in --ground-truth: ['a cup']" in capsys.readouterr().err
    settings = report["settings"]
    assert (settings["left_out"], settings["ask_at_s"], settings["expressions_a_clip"]) == (["a cup"], 0.2, "all")
    assert report["questions"] == 1 and report["watched"][0]["asked_s"] == 0.2
    assert 0 < report["overall"]["frames"] < FRAMES - 2 and 0 <= report["overall"]["j"] <= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--query: expected a text for --bag, got none"),
        (["--query", "x", "--ground-truth", "/moon"], "--ground-truth: expected a topic of "),
        (["--query", "x", "--ground-truth", "/truth:a"], "expected TOPIC or TOPIC:LABEL,LABEL, got '/truth:a'"),
        (["--query", "x", "--ground-truth", "/camera/image"], "expected one of mono8, 8UC1, mono16, 16UC1, got rgb8"),
        (["--query", "x", "--ground-truth", "/small"], f"/small: expected masks of {SIZE_HW} px as the images"),
        (["--query", "x", "--ground-truth", "/late"], "/late: expected masks with the stamps of the images"),
        (
            ["--query", "x", *["--ground-truth", "/truth"] * 2],
            "expected one topic, or one for each of 1 queries, got 2",
        ),
        (["--query", "x", "--ground-truth", "/some", "--online"], "expected a mask for each of the 8 images with"),
        (["--query", "x", "--online"], "--online: expected --ground-truth too"),
        (["--query", "x", "--ask-at", "1"], "--ask-at: only with --online"),
        (
            ["--query", "x", "--query", "y", "--ground-truth", "/truth:7", "--online"],
            'expected a query with a mask with --online, got none for "x", "y"',
        ),
        (["--query", "x", "--dataset", "tabletop"], "--dataset: no effect with --bag"),
        (["--query", "x", "--start", "-1"], "--start: expected 0 or more seconds, got -1"),
        (["--query", "x", "--duration", "0"], "--duration: expected more than 0 seconds, got 0"),
        (["--query", "x", "--start", "9"], "no frame that can be decoded from 9.0 s on"),
        (["--query", "x", "--long"], "--long: no effect with --bag"),
        (["--query", "x", "--bag", "nowhere"], "--bag: nowhere: no such file or folder"),
    ],
)
def test_errors_before_the_models_are_loaded(given, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("decaf_ros.evaluation.jobs.load_evaluator", lambda *_: pytest.fail("the models are loaded"))
    assert main([*given, "--topic", "/camera/image", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("decaf: ") and error.count("\n") == 1 and words in error


@pytest.mark.parametrize(("name", "value"), [("--query", "x"), ("--start", "0"), ("--ask-at", "0")])
def test_options_of_a_bag_without_one(name, value, capsys):
    assert main(["eval", name, value]) == 1
    assert f"{name}: only with --bag" in capsys.readouterr().err


def test_a_recording_that_is_too_long(given, capsys, monkeypatch):
    monkeypatch.setattr("decaf_ros.cli.clips._MAX_CLIP_GIB", 1e-6)
    assert main([*given, "--topic", "/camera/image", "--query", "x", "--ground-truth", "/truth", "--online"]) == 1
    assert capsys.readouterr().err.endswith("frames; choose a part with --start and --duration\n")


def test_the_program_for_ros(bag, tmp_path):
    """`ros2 run decaf_ros evaluate_bag BAG`, up to its first error, and its help."""
    program = [sys.executable, str(ROOT / "bin" / "evaluate_bag")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    shared = {"cwd": tmp_path, "capture_output": True, "text": True, "env": environment}
    failed = subprocess.run([*program, str(bag)], **shared)
    assert failed.returncode == 1 and "--query: expected a text for --bag" in failed.stderr
    assert "--ground-truth" in subprocess.run([*program, "--help"], **shared).stdout
    for arguments in ([], ["--query", "x"], ["--clips", "1"]):
        unnamed = subprocess.run([*program, *arguments], **shared)
        assert unnamed.returncode == 2 and "evaluate_bag: expected a recording" in unnamed.stderr
