"""`decaf eval` from the command line to its files, with the real method on tiny random checkpoints."""

from __future__ import annotations

import argparse
import json

import cv2
import pytest
from evaluation_scenes import drawn_clip

from decaf_ros.cli.evaluate import read_evaluation_config
from decaf_ros.cli.main import main
from decaf_ros.config import replace
from decaf_ros.evaluation.ablation import FULL, VARIANTS
from decaf_ros.evaluation.report import check_folder
from decaf_ros.io.parameter_files import load_config
from decaf_ros.resources import resolve_path
from decaf_tabletop.world.clip import KINDS
from decaf_tabletop.world.store import clip_path, write_clip

MEASURES = {"j_and_f", "j", "f", "pointing", "category"}
PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, local_files_only: true}
    sam2: {local_files_only: true}
    window: {size: 3, min_frames: 2, keyframe_period_s: 0.1}
    segmentation: {max_points: 3}
    presence: {threshold: 0.2}
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with parameters, and clips in clips/ and held_out/."""
    root = tmp_path_factory.mktemp("stored")
    (root / "tiny.yaml").write_text(PARAMETERS)
    for folder, seeds in (("clips", (1_000_000, 1_000_001)), ("held_out", (2_000_000, 2_000_001))):
        (root / folder).mkdir()
        for seed in seeds:
            write_clip(clip_path(root / folder, seed), drawn_clip(seed, frames=5))
    return root


@pytest.fixture
def given(stored, tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir)]
    given = ["eval", "--clips-from", str(stored / "clips"), "--config", str(stored / "tiny.yaml"), *models]
    return [*given, "--workers", "0", "--threads", "1"]


def check_scores(scores):
    assert set(scores) == MEASURES
    assert all(value is None or 0 <= value <= 1 for value in scores.values())


def test_evaluation(given, tmp_path, capsys):
    """Two clips, with the variants on the first one."""
    numbers = tmp_path / "numbers.json"
    assert main([*given, "--dataset", "tabletop", "--seed", "3", "--ablation-clips", "1", "--json", str(numbers)]) == 0
    printed = capsys.readouterr()
    found = json.loads(numbers.read_text())
    check_scores(found["overall"])
    assert set(found["by_type"]) == set(KINDS) - {"absent", "absent event"}
    assert set(found["absent_by_type"]) == {"absent", "absent event"}
    for scores in (*found["by_type"].values(), *found["ablation"].values(), found["always_answered"]):
        check_scores(scores)
    assert list(found["ablation"]) == [FULL, *VARIANTS]
    assert set(found["absent"]) == {"precision", "recall"}
    assert 0 < found["baseline"]["chance_pointing"] < 0.5 and 0 <= found["baseline"]["centre_pointing"] <= 1
    counts = found["counts"]
    assert (counts["clips"], counts["present"], counts["absent"], counts["ablation"]) == (2, 6, 4, 3)
    # Only the cases of the first clip have an ablation.
    cases = json.loads((tmp_path / "decaf_eval" / "cases.json").read_text())
    first = [case for case in cases if case["clip"] == "01000000" and not case["kind"].startswith("absent")]
    assert len(first) == 3 and all(case["ablation"] for case in first)
    always = [(case["always"]["j"] + case["always"]["f"]) / 2 for case in first]
    assert found["ablation"][FULL]["j_and_f"] == pytest.approx(sum(always) / 3)
    assert found["ablation"]["start_layer_half"] == found["ablation"][FULL]
    assert found["ablation"]["object_only"] != found["ablation"][FULL]

    assert found["online"]["clips"] == 2 and found["online"]["frames"] == 2 * 2
    assert [one["frames"] for one in found["online"]["played"]] == [2, 2]
    segmenter = found["segmenter"]
    assert (segmenter["clicks"], segmenter["objects"]) == (6, 6)  # two clips with three balls, one click per ball
    assert 0 <= segmenter["propagated_iou"] <= 1 and segmenter["crossed_iou"] is None
    assert found["settings"]["seed"] == 3 and found["settings"]["parameters"]["window.size"] == 3
    assert found["settings"]["mujoco"] is None, "stored clips are not rendered"
    assert json.loads((tmp_path / "decaf_eval" / "report.json").read_text()) == found
    assert cv2.imread(str(tmp_path / "decaf_eval" / "contact_sheet.png")).shape[1] > 4 * 128
    assert cv2.imread(str(tmp_path / "decaf_eval" / "roc.png")) is not None
    assert printed.out in (tmp_path / "decaf_eval" / "report.md").read_text() + "\n"
    assert "| object_only" in printed.out and "| relation" in printed.out
    assert "clip 1 of 2 (01000000): 5 expressions, " in printed.err and " left" in printed.err


def test_a_second_report_replaces_the_first(given, tmp_path):
    few = [*given, "--clips", "1", "--no-ablation", "--kinds", "attribute"]
    assert main(few) == 0
    old = (tmp_path / "decaf_eval" / "report.json").read_text()
    assert main([*few, "--set", "presence.threshold=1"]) == 0
    new = (tmp_path / "decaf_eval" / "report.json").read_text()
    assert json.loads(new)["overall"]["j"] == 0 and old != new
    assert json.loads(new)["ablation"] == {} and list(json.loads(new)["by_type"]) == ["attribute"]
    # Without absent targets there is no ROC curve.
    assert not (tmp_path / "decaf_eval" / "roc.png").exists()
    (tmp_path / "decaf_eval" / "notes.txt").write_text("mine")
    assert main(few) == 1


def test_calibration(given, stored, tmp_path, capsys):
    given[given.index("--clips-from") + 1] = str(stored / "held_out")
    params = tmp_path / "presence.yaml"
    assert main([*given, "--calibrate", "--json", str(tmp_path / "fit.json"), "--out", str(params)]) == 0
    fit = json.loads((tmp_path / "fit.json").read_text())
    printed = capsys.readouterr().out
    assert sum(fit["weights"].values()) == pytest.approx(1, abs=0.03) and 0 <= fit["threshold"] <= 1
    assert params.read_text() in printed
    assert load_config(params).presence.threshold == pytest.approx(fit["threshold"], abs=5e-4)
    assert f"threshold: {fit['threshold']:.3f}" in printed and "weight_consistency: " in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clips", "3"], "--clips: expected 1 to 2"),
        (["--kinds", "motion,colour"], "--kinds: expected some of explicit, attribute"),
        (["--kinds", "temporal"], "no expression of the types temporal in 2 clips"),
        (["--calibrate"], "expected a clip with a seed from 2000000"),
        (["--clips-from", "nowhere"], "nowhere: no clip there"),
        (["--workers", "-1"], "expected --workers >= 0"),
        (["--mllm", "nowhere"], "mllm.checkpoint 'nowhere': not found"),
        (["--method", "loc-head"], "loc_head.yaml: expected a file with localization heads; decaf heads --mllm"),
    ],
)
def test_failures_are_one_line_and_exit_code_1(given, capsys, arguments, words):
    assert main([*given, *arguments]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("decaf: ") and words in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "missing/numbers.json"], "--json: no folder missing"),
        (["--json", "."], "--json: expected a file, got the folder ."),
        (["--ablation-clips", "-1"], "--ablation-clips: expected 0 or more"),
        (["--calibrate", "--seed", "0"], "--seed: no effect with --calibrate"),
        (["--calibrate", "--out", "none/presence.yaml"], "--out: no folder none"),
        (["--calibrate", "--ablation-clips", "0"], "--ablation-clips: no effect with --calibrate"),
        (["--calibrate", "--no-ablation"], "--no-ablation: no effect with --calibrate"),
        (["--calibrate", "--kinds", "size,several"], "--kinds with absent and another one, got size, several"),
        (["--calibrate", "--kinds", "absent"], "--kinds with absent and another one, got absent"),
        (["--calibrate", "--set", "grounding.branches=video"], "expected grounding.branches both, got video"),
        (["--calibrate", "--set", "grounding.contrast=false"], "expected grounding.contrast true, got false"),
        (["--method", "tam", "--calibrate"], "--calibrate: no effect with --method tam"),
        (["--method", "tam", "--long"], "--long: no effect with --method tam"),
        (["--method", "tam", "--ablation-clips", "0"], "--ablation-clips: no effect with --method tam"),
        (["--method", "tam", "--heads", "x.yaml"], "--heads: the method tam reads none"),
    ],
)
def test_bad_arguments_are_refused_before_the_models_load(given, stored, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("decaf_ros.evaluation.jobs.load_evaluator", lambda *_: pytest.fail("the models are loaded"))
    given[given.index("--clips-from") + 1] = str(stored / ("held_out" if "--calibrate" in arguments else "clips"))
    assert main([*given, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("decaf: ") and error.count("\n") == 1 and words in error


def test_a_negative_seed_is_refused(given, capsys):
    simulated = [argument for argument in given if "clips" not in argument]
    assert len(simulated) == len(given) - 2
    assert main([*simulated, "--seed", "-1"]) == 1
    assert "--seed: expected 0 or more, got -1" in capsys.readouterr().err


def test_bad_usage_is_exit_code_2(given, capsys):
    for arguments, words in ((["--dataset", "moon"], "invalid choice: 'moon'"), (["--set", "x=1"], "unknown option x")):
        with pytest.raises(SystemExit) as ended:
            main([*given, *arguments])
        assert ended.value.code == 2 and words in capsys.readouterr().err


def test_default_parameters_come_from_the_dataset():
    arguments = argparse.Namespace(
        dataset="tabletop", bag=None, config=None, node=None, set=["window.size=8"], mllm=None, sam2=None
    )
    config = read_evaluation_config(arguments)
    assert config == replace(
        load_config(resolve_path("package://decaf_tabletop/config/tabletop.yaml")), {"window.size": 8}
    )
    assert "tabletop" in config.mllm.checkpoint and "tabletop" in config.sam2.checkpoint


def test_a_folder_with_other_files_is_refused(tmp_path):
    numbers = tmp_path / "scores.json"
    for name in ("report.md", "scores.json"):
        (tmp_path / name).touch()
    check_folder(tmp_path, numbers)  # the --json file may lie there
    with pytest.raises(FileExistsError, match=r"holds something besides a report \(scores.json\)"):
        check_folder(tmp_path)
    with pytest.raises(NotADirectoryError, match="expected a folder, got a file"):
        check_folder(numbers)
