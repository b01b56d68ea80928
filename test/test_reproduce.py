"""`decaf reproduce` from the command line to its tables, with the real method on tiny random checkpoints."""

from __future__ import annotations

import json



import pytest
from benchmark_layouts import WRITERS

from decaf_ros.cli.main import main
from decaf_ros.evaluation.tables import local_pool
from decaf_ros.evaluation.tables.catalogue import catalogue

PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, max_new_tokens: 1}
    window: {size: 2, min_frames: 1}
    segmentation: {max_points: 2, fallback: best}
    presence: {threshold: 0.0, ask: false}
"""
CHECKPOINTS = ("InternVL3-8B-hf", "Qwen2.5-VL-7B-Instruct")


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_mllm_dir, tiny_sam2_dir):
    """A folder with tiny checkpoints under the names of the published ones, of two of the paper's four families."""
    from tiny_models.internvl import write_tiny_internvl

    root = tmp_path_factory.mktemp("models")
    write_tiny_internvl(root / CHECKPOINTS[0])
    (root / CHECKPOINTS[1]).symlink_to(tiny_mllm_dir)
    (root / "sam2-hiera-large").symlink_to(tiny_sam2_dir)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, (write, _) in WRITERS.items():
        write(root / name)
    return root


@pytest.fixture
def given(models, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    return ["reproduce", "--data", str(data), "--models", str(models), "--config", "tiny.yaml", "--set",
            "sam2.checkpoint=facebook/sam2-hiera-large", "--workers", "0", "--threads", "1"]  # fmt: skip


def content(name, out="decaf_reproduce"):
    return json.loads(open(f"{out}/{name}.json").read())


def figures(name, out="decaf_reproduce"):
    """J&F of every line that was measured."""
    return [
        (line["method"], line["model"], line["dataset"], line["masks"], line["scores"]["j_and_f"]["ours"])
        for line in content(name, out)["lines"]
        if line["scores"]["j_and_f"]["ours"] is not None
    ]


def test_a_table_of_two_models_and_two_data_sets(given, capsys):
    """Both families at one and at two resolutions, beside the paper's figures."""
    assert main([*given, "table4c", "--limit", "1"]) == 0
    lines = content("table4c")["lines"]
    assert len(lines) == 8 and all(line["samples"] == 1 and line["note"] == "first 1 samples" for line in lines)
    by_row = {(line["method"], line["model"], line["dataset"]): line for line in lines}
    one = by_row["one resolution", "InternVL3-8B", "ref_davis17"]["scores"]["j_and_f"]
    assert one["published"] == 54.0 and one["difference"] is None, "one sample is not the data set"
    for model in ("InternVL3-8B", "Qwen2.5VL-7B"):
        single, double = (by_row[f"{count} resolution{'s' * (count == 'two')}", model, "ref_davis17"]["run"]
                          for count in ("one", "two"))  # fmt: skip
        assert single != double
        parameters = [json.loads(open(f"decaf_reproduce/runs/{run}/run.json").read()) for run in (single, double)]
        assert [one["parameters"]["mllm.frame_tiles"] for one in parameters] == [1, 0]
        assert len(parameters[0]["checkpoints"]["mllm"]["sha256"]) == 64
        assert parameters[0]["versions"].keys() >= {"decaf_ros", "torch", "transformers", "sam2"}
    printed = capsys.readouterr()
    assert "| one resolution  | InternVL3-8B | Ref-DAVIS17 |" in printed.out and "54.0" in printed.out
    assert printed.out.strip() == open("decaf_reproduce/table4c.md").read().strip()
    # The same rows of another table are the same runs.
    assert main([*given, "table4a", "--limit", "1"]) == 0
    assert "8 samples in 8 runs, 4 of them done before" not in printed.err
    assert "samples in 8 runs, 4 of them done before" in capsys.readouterr().err
