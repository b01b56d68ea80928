"""The command `decaf calibrate`."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import yaml

from decaf_ros.cli.calibrate import ClipQueries, read_data
from decaf_ros.cli.main import main
from decaf_ros.config import DecafConfig
from decaf_ros.io.bag_writer import BagWriter
from decaf_ros.io.film import VideoWriter
from decaf_ros.io.parameter_files import load_config
from decaf_ros.pipeline import Decaf
from decaf_ros.types import Presence

START_NS, STEP_NS = 1_700_000_000_000_000_000, 500_000_000


def picture(index):
    image = cv2.resize(np.random.default_rng(0).integers(0, 200, (8, 12, 3), dtype=np.uint8), (192, 128))
    return cv2.circle(image, (40 + 12 * index, 64), 24, (220, 60, 30), -1)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "clips").mkdir()
    with VideoWriter(tmp_path / "clips" / "ball.webm") as file:
        for index in range(4):
            file.write(picture(index), START_NS + index * STEP_NS)
    with BagWriter(tmp_path / "clips" / "bag") as file:
        for index in range(6):
            file.write_image("/camera/image", picture(index), START_NS + index * STEP_NS, "optical")
    clips = [
        {"file": "ball.webm", "present": ["the red ball"], "absent": ["the zebra"]},
        {
            "file": "bag",
            "topic": "/camera/image",
            "start": 0.5,
            "duration": 1.6,
            "absent": ["the mug"],
            "present": ["a ball"],
        },
    ]
    (tmp_path / "clips" / "data.yaml").write_text(yaml.safe_dump({"clips": clips}))
    return tmp_path / "clips" / "data.yaml"


def test_data_file(data):
    video, bag = read_data(data)
    assert video == ClipQueries(data.parent / "ball.webm", present=("the red ball",), absent=("the zebra",))
    assert (bag.topic, bag.start_s, bag.duration_s, bag.name) == ("/camera/image", 0.5, 1.6, str(data.parent / "bag"))


@pytest.fixture
def models(tiny_mllm_dir, tiny_sam2_dir):
    return ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--set", "window.size=4"]


def test_a_fit_that_the_node_takes(data, models, tmp_path, capsys, monkeypatch):
    windows = []

    def measured(decaf, window, query):
        windows.append([frame.stamp_ns for frame in window.frames])
        found = segment(decaf, window, query)
        value = 0.8 if "ball" in query else 0.3
        object.__setattr__(found, "presence", Presence(0.5, *[value] * 6, asked=found.presence.asked))
        return found

    segment = Decaf.segment
    monkeypatch.setattr(Decaf, "segment", measured)
    out = tmp_path / "presence.yaml"
    assert main(["calibrate", str(data), "--out", str(out), *models]) == 0
    printed = capsys.readouterr().out
    assert "TOO FEW EXAMPLES (2 there, 2 not)" in printed and out.read_text() in printed
    # The whole video, and the part of the bag.
    assert windows[0] == [0, STEP_NS, 2 * STEP_NS, 3 * STEP_NS]
    assert windows[2] == [START_NS + step * STEP_NS for step in (1, 2, 3, 4)]
    config = load_config(out, DecafConfig()).presence
    assert config.ask and 0.3 < config.threshold < 0.8 and sum(config.weights.values()) == pytest.approx(1, abs=0.05)


def test_real_evidence_of_random_models(data, models, tmp_path, capsys):
    """Random models separate nothing reliably: either a fit, or an error that says so."""
    status = main(["calibrate", str(data), "--out", str(tmp_path / "presence.yaml"), *models])
    assert status == 0 or "no part of the evidence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("clips", "words"),
    [
        ([], "expected a list 'clips'"),
        ([{"present": ["x"]}], "clip 1: expected a mapping with 'file'"),
        ([{"file": "ball.webm"}], "expected queries as texts"),
        ([{"file": "ball.webm", "present": [""]}], "expected queries as texts"),
        ([{"file": "ball.webm", "present": "the ball"}], "present: unexpected value 'the ball'"),
        ([{"file": "ball.webm", "present": ["x"], "stop": 3}], "got 'stop'"),
        ([{"file": "none.mp4", "present": ["x"]}], "no such file or folder"),
        ([{"file": "ball.webm", "start": True, "present": ["x"]}], "start: unexpected value True"),
    ],
)
def test_a_bad_data_file_is_refused_before_the_models_load(data, clips, words, tmp_path, capsys):
    data.write_text(yaml.safe_dump({"clips": clips}))
    assert main(["calibrate", str(data), "--out", str(tmp_path / "presence.yaml")]) == 1
    assert words in capsys.readouterr().err


def test_a_bad_output_is_refused_before_the_models_load(data, tmp_path, capsys):
    assert main(["calibrate", str(data), "--out", str(tmp_path)]) == 1
    assert "--out: expected a file" in capsys.readouterr().err
    assert main(["calibrate", str(data), "--out", str(tmp_path / "none" / "p.yaml")]) == 1
    assert "--out: no folder" in capsys.readouterr().err
