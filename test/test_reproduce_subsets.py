"""`decaf reproduce`: native grounding (Tab. 9) and the samples with similar objects (Tab. 13), with the real methods on
tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmark_layouts import FRAMES, write_folder

from decaf_ros.cli.main import main

PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, max_new_tokens: 1}
    window: {size: 2, min_frames: 1}
    segmentation: {max_points: 2, fallback: best}
    presence: {threshold: 0.0, ask: false}
"""


@pytest.fixture
def given(tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    own = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--config", "tiny.yaml"]
    return ["reproduce", "--data", str(write_folder(tmp_path / "data")), *own, "--workers", "0", "--threads", "1"]


def content(name):
    return json.loads(Path(f"decaf_reproduce/{name}.json").read_text())


def test_native_grounding_and_its_malformed_answers(given, capsys):
    """Random weights name no points: the rows are measured, and say how many answers were malformed."""
    assert main([*given, "table9", "--dataset", "folder", "--limit", "1"]) == 1
    printed = capsys.readouterr()
    assert "missing: heads of " in printed.err and "malformed" not in printed.err
    lines = {line["method"]: line for line in content("table9")["lines"]}
    native = {name.removeprefix("native grounding, "): line for name, line in lines.items() if "native" in name}
    assert list(native) == ["all frames", "first frame", "reference and key frames", "16 frames"]
    asked = {name: line["malformed"] for name, line in native.items()}
    key_frames = 2  # as configured
    counts = {"all frames": FRAMES, "16 frames": key_frames}
    assert asked == {name: {"malformed": counts.get(name, 1), "asked": counts.get(name, 1)} for name in native}
    assert all(line["scores"]["j"]["ours"] is not None for line in native.values())
    assert len({line["run"] for line in lines.values() if line["run"]}) == 5
    assert lines["DecAF, 16 frames"]["malformed"] is None
    assert "1 of 1 answers malformed" in printed.out


def test_the_scores_of_similar_objects_are_of_the_listed_samples(given, tmp_path, capsys):
    """The samples of a run that the list names, without another run."""
    command = [*given, "table13", "--dataset", "folder"]
    (tmp_path / "similar.txt").write_text("# two of four\nalpha/0\n\nbeta/1  # the other\n")
    assert main([*command, "--similar", "similar.txt"]) == 0
    assert "4 samples in 1 runs" in capsys.readouterr().err
    whole, subset = [line for line in content("table13")["lines"] if line["samples"] is not None]
    assert (whole["method"], whole["samples"]) == ("DecAF, all samples", 4)
    assert (subset["method"], subset["samples"], subset["run"]) == ("DecAF, subset", 2, whole["run"])
    (run,) = Path("decaf_reproduce/runs").iterdir()
    entries = map(json.loads, (run / "samples.jsonl").read_text().splitlines())
    cases = {entry["sample"]: entry["case"] for entry in entries}
    for name in ("j", "f"):
        listed = [cases[key]["always"][name] for key in ("alpha/0", "beta/1")]
        assert subset["scores"][name]["ours"] == pytest.approx(sum(listed) / 2)
    for text, message in (
        ("alpha/7\n", "--similar: expected samples of folder, such as alpha/0, got alpha/7"),
        ("alpha\n", "similar.txt, line 1: expected CLIP/EXPRESSION, got 'alpha'"),
        ("# none\n", "similar.txt: expected samples, CLIP/EXPRESSION, one a line, got none"),
    ):
        (tmp_path / "similar.txt").write_text(text)
        assert main([*command, "--similar", "similar.txt"]) == 1
        assert message in capsys.readouterr().err
    assert main([*given, "table4", "--similar", "similar.txt"]) == 1
    assert "--similar: only table13 has a subset, got table4a, table4b, table4c" in capsys.readouterr().err
