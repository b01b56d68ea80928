"""`decaf reproduce` from the command line to its tables, with the real method on tiny random checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from benchmark_layouts import FRAMES, WRITERS

from decaf_ros.cli import reproduce
from decaf_ros.cli.main import main
from decaf_ros.evaluation.baselines.head_files import Head, HeadFile, write_heads
from decaf_ros.evaluation.tables import local_pool, samples

PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, max_new_tokens: 1}
    window: {size: 2, min_frames: 1}
    segmentation: {max_points: 2, fallback: best}
    presence: {threshold: 0.0, ask: false}
"""
DATASETS_OF_TABLE_2 = ("ref_davis17", "reasonvos", "revos")
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


def arguments(models, data, folder):
    return ["reproduce", "--data", str(data), "--models", str(models), "--config", str(folder / "tiny.yaml"), "--set",
            "sam2.checkpoint=facebook/sam2-hiera-large", "--workers", "0", "--threads", "1"]  # fmt: skip


@pytest.fixture
def given(models, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    return arguments(models, data, tmp_path)


def content(name, out="decaf_reproduce"):
    return json.loads(Path(out, f"{name}.json").read_text())


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
        parameters = [json.loads(Path(f"decaf_reproduce/runs/{run}/run.json").read_text()) for run in (single, double)]
        assert [one["parameters"]["mllm.frame_tiles"] for one in parameters] == [1, 0]
        assert len(parameters[0]["checkpoints"]["mllm"]["sha256"]) == 64
        assert parameters[0]["versions"].keys() >= {"decaf_ros", "torch", "transformers", "sam2"}
    printed = capsys.readouterr()
    assert "| one resolution  | InternVL3-8B | Ref-DAVIS17 |" in printed.out and "54.0" in printed.out
    assert printed.out.strip() == Path("decaf_reproduce/table4c.md").read_text().strip()


def test_every_layout_gives_figures_or_a_submission(given, data, capsys):
    assert main([*given, "table2", "--limit", "1"]) == 1
    missing = capsys.readouterr().err
    for name in ("llava-1.5-7b-hf", "llava-onevision-qwen2-7b-ov-hf"):
        assert f"model llava-hf/{name}: not in " in missing
    found = {(model, dataset) for _, model, dataset, _, _ in figures("table2")}
    assert found == {(model, name) for model in ("InternVL3-8B", "Qwen2.5VL-7B") for name in DATASETS_OF_TABLE_2}
    lines = content("table2")["lines"]
    loc_head = {line["model"]: line for line in lines if line["method"] == "Loc-Head"}
    assert loc_head["LLaVA-7B"]["missing"][0].startswith("model llava-hf/llava-1.5-7b-hf: not in ")
    (missing,) = loc_head["Qwen2.5VL-7B"]["missing"]
    assert missing.startswith("heads of Qwen2.5-VL-7B-Instruct: ") and "decaf heads --mllm" in missing
    assert [line["scores"]["j_and_f"]["published"] for line in lines if line["method"] == "LISA"][:2] == [64.8, 31.1]
    assert main([*given, "table3"]) == 1  # no heads for Loc-Head
    by_data = {line["dataset"]: line for line in content("table3")["lines"] if line["method"] == "DecAF"}
    for name, folder, count in (("mevis", "", 6), ("ref_youtube_vos", "Annotations/", 4)):
        assert by_data[name]["scores"]["j"]["ours"] is None and by_data[name]["samples"] == count
        with zipfile.ZipFile(f"decaf_reproduce/{by_data[name]['run']}.zip") as written:
            assert len(written.namelist()) == count * FRAMES and f"{folder}alpha/0/00000.png" in written.namelist()
            whole = {entry: written.read(entry) for entry in written.namelist()}
    assert (
        "figures taken to be of version 1 of MeViS; version of the data: unknown"
        in Path("decaf_reproduce/table3.md").read_text()
    )
    # A lost mask costs its sample, not the frame in the submission.
    run = by_data["ref_youtube_vos"]["run"]
    Path(f"decaf_reproduce/runs/{run}/masks/alpha/0/00000.png").unlink()
    capsys.readouterr()
    assert main([*given, "table3"]) == 1
    assert "10 samples in 2 runs, 9 of them done before" in capsys.readouterr().err
    with zipfile.ZipFile(f"decaf_reproduce/{run}.zip") as written:
        assert {entry: written.read(entry) for entry in written.namelist()} == whole
    # The same row of another table is the same run.
    assert main([*given, "table13", "--limit", "1"]) == 0
    assert "1 samples in 1 runs, 1 of them done before" in capsys.readouterr().err
    for name in ("long_rvos", "folder"):
        command = [*given, "table13", "--dataset", name, "--limit", "1", "--out", name]
        command[command.index("--data") + 1] = str(data / name)
        assert main([*command, "--mllm", str(Path(given[4]) / CHECKPOINTS[1])]) == 0
        assert {(model, dataset) for _, model, dataset, _, _ in figures("table13", name)} == {(CHECKPOINTS[1], name)}
        assert [line["note"] for line in content("table13", name)["lines"]][-1].startswith("the paper does not list")


SAMPLES = 10


def on_davis(given, data, out, *more):
    """Table 8, of the full method alone, on ten samples of two clips."""
    command = [*given, "table8", "--dataset", "ref_davis17", "--limit", str(SAMPLES), "--out", str(out), *more]
    command[command.index("--data") + 1] = str(data / "ref_davis17")
    return [*command, "--mllm", str(Path(given[4]) / CHECKPOINTS[1])]


def entries(out):
    """The lines of all runs, by run and sample; each sample is there once."""
    found = {}
    for file in Path(out).glob("runs/*/samples.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            assert (file.parent.name, entry["sample"]) not in found
            found[file.parent.name, entry["sample"]] = entry
    return found


class KillingPool(local_pool.LocalPool):
    """Kills one of its two workers, with the second sample that it has got."""

    starts: list[int] = []
    sent: list[int] = []
    killed: list[int] = []

    def start(self):
        self.starts.append(super().start())
        return self.starts[-1]

    def send(self, worker, sample):
        super().send(worker, sample)
        self.sent.append(worker)
        if not self.killed and self.sent.count(worker) == 2:
            self.killed.append(worker)
            os.kill(self._workers[worker].process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(models, data, tmp_path_factory):
    """A complete run of `on_davis` without workers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "tiny.yaml").write_text(PARAMETERS)
    assert main(on_davis(arguments(models, data, folder), data, folder / "out")) == 0
    assert len(entries(folder / "out")) == SAMPLES
    assert len(figures("table8", folder / "out")) == 1
    assert max(entry["case"]["attention"]["j"] for entry in entries(folder / "out").values()) > 0.01
    return folder / "out"


def measured(out):
    """All that was measured, but times, by run, sample and name: numbers, which caches of the models change by
    rounding, and the rest."""
    numbers, others = {}, {}
    for key, entry in entries(out).items():
        rest = [((*key, name), value) for name, value in entry["case"].items() if name != "seconds"]
        while rest:
            name, value = rest.pop()
            if isinstance(value, dict):
                rest += [((*name, inner), part) for inner, part in value.items()]
            else:
                (numbers if isinstance(value, float) else others)[name] = value
    return numbers, others


def check_same(out, undisturbed):
    """Two runs have the same table, and measured the same of every sample."""
    assert Path(out, "table8.md").read_text() == Path(undisturbed, "table8.md").read_text()
    (numbers, others), (wanted_numbers, wanted_others) = measured(out), measured(undisturbed)
    assert others == wanted_others and len(numbers) > 10 * SAMPLES
    assert numbers == pytest.approx(wanted_numbers, abs=1e-6)


def test_a_killed_worker_changes_no_figure(given, data, undisturbed, monkeypatch):
    monkeypatch.setattr(local_pool, "LocalPool", KillingPool)
    assert main(on_davis(given, data, "out", "--workers", "2")) == 0
    assert len(KillingPool.killed) == 1 and len(KillingPool.starts) == 3, "a third worker takes its place"
    check_same("out", undisturbed)
    found = entries("out")
    assert sum(entry["deaths"] for entry in found.values()) == 1
    assert sum(entry["attempts"] for entry in found.values()) == SAMPLES + 1
    assert all("error" not in entry for entry in found.values())


def test_a_killed_run_goes_on_to_the_same_table(given, data, undisturbed):
    command = on_davis(given, data, "out")
    with subprocess.Popen([sys.executable, "-m", "decaf_ros.cli.main", *command], stderr=subprocess.PIPE) as run:
        while len(entries("out")) < 2:
            assert run.poll() is None, run.stderr.read().decode()
            time.sleep(0.02)
        run.kill()
    done = entries("out")
    assert 2 <= len(done) < SAMPLES
    # As if it had been killed while it wrote the next line.
    last = max(Path("out").glob("runs/*/samples.jsonl"), key=lambda file: file.stat().st_mtime)
    with last.open("a") as file:
        file.write('{"sample": "alpha/0", "text": "the le')
    assert main(command) == 0
    check_same("out", undisturbed)
    found = entries("out")
    assert {key: found[key] for key in done} == done, "what was done is not done again"


class DyingPool(local_pool.LocalPool):
    """Kills its worker whenever it gets one sample."""

    def send(self, worker, sample):
        if sample.key == "alpha/1":
            os.kill(self._workers[worker].process.pid, signal.SIGKILL)
        super().send(worker, sample)


def test_a_sample_that_kills_its_workers_costs_its_figure(given, data, monkeypatch, capsys):
    monkeypatch.setattr(local_pool, "LocalPool", DyingPool)
    command = on_davis(given, data, "out", "--workers", "1", "--limit", "2")
    for text in ("0 of them done before", "1 of them done before"):
        assert main(command) == 1
        error = capsys.readouterr().err
        assert text in error and "1 samples failed; the same command tries them again" in error
        (line,) = [line for line in content("table8", "out")["lines"] if line["samples"]]
        assert line["failed"] == {"alpha/1": "its worker died"} and line["scores"]["j"]["ours"] is None


class StillbornPool(local_pool.LocalPool):
    """Kills its workers while they start."""

    def start(self):
        number = super().start()
        self._workers[number].process.kill()
        return number


def test_tables_are_written_if_all_workers_die(given, data, monkeypatch, capsys):
    monkeypatch.setattr(local_pool, "LocalPool", StillbornPool)
    assert main(on_davis(given, data, "out", "--workers", "1", "--limit", "2")) == 1
    assert "stopped: 3 workers died while they started" in capsys.readouterr().err
    (line,) = [line for line in content("table8", "out")["lines"] if line["failed"]]
    assert line["failed"]["alpha/0"] == "not measured, as 3 workers died while they started"


def test_a_score_that_is_no_number_fails_its_sample(given, data, monkeypatch, capsys):
    entry = samples.case_entry
    monkeypatch.setattr(samples, "case_entry", lambda case: {**entry(case), "robustness": float("nan")})
    assert main(on_davis(given, data, "out", "--limit", "1")) == 1
    assert "expected a finite score, got robustness = nan" in capsys.readouterr().err


def test_it_is_decaf_eval_on_one_cell(given, data, models, tmp_path, tiny_heads):
    """DecAF's rows, and those of the baselines beside it."""
    source = ["--dataset", "folder", "--clips", "1", "--mllm", str(models / CHECKPOINTS[1])]
    one = [*given, "table1", "table2", *source, "--heads", str(tiny_heads)]
    one[one.index("--data") + 1] = str(data / "folder")
    assert main(one) == 0
    lines = {line["method"]: line for line in content("table1")["lines"] if line["samples"]}
    assert set(lines) == {"DecAF", "Loc-Head", "TAM", "TAM (best token)", "rollout (mean)", "rollout (max)"}
    common = one[one.index("--data") : one.index("--models")] + one[one.index("--config") : one.index("table1")]
    own = ["--set", f"sam2.checkpoint={models}/sam2-hiera-large", "--json", "eval.json"]
    for method, *more in (("decaf",), ("tam",), ("loc-head", "--heads", str(tiny_heads))):
        assert main(["eval", *common, *source, *own, "--method", method, *more, "--out", method]) == 0
        found = json.loads(Path("eval.json").read_text())
        overall = found["protocol"]["overall"]
        line = lines[{"decaf": "DecAF", "tam": "TAM", "loc-head": "Loc-Head"}[method]]
        for name in ("j_and_f", "j", "f"):
            assert line["scores"][name]["ours"] == pytest.approx(overall[f"attention_{name}"], abs=1e-6)
        assert overall["attention_j"] > 0.01 and found["settings"].get("method", "decaf") == method
    # All in one table; the best token by the truth is no worse than the first one.
    methods = {one["method"]: one for one in content("comparison")["methods"]}
    assert list(methods)[0] == "DecAF" and set(methods) == set(lines) | {"Loc-Head, its boxes"}
    assert methods["DecAF"]["attention_j"] == lines["DecAF"]["scores"]["j"]["ours"]
    assert methods["TAM (best token)"]["attention_j"] >= methods["TAM"]["attention_j"]
    assert len({one["attention_j"] for one in methods.values()}) > 3 and len(methods) == len(
        {line["run"] for name in ("table1", "table2") for line in content(name)["lines"] if line["samples"]}
    )


@pytest.fixture
def tiny_heads(tmp_path):
    heads = tmp_path / "heads.yaml"
    chosen = (Head(1, 2, 0.9, 0.5), Head(3, 0, 0.8, 0.4))
    write_heads(heads, HeadFile("tiny", "qwen2_5_vl", 4, 4, 1, "by hand", (), "original", 0.1, chosen))
    return heads


def test_a_sample_that_fails_costs_the_figure_until_it_is_done(given, tmp_path, models, capsys):
    root = WRITERS["folder"][0](tmp_path / "mine")
    frame = root / "JPEGImages/beta/00010.jpg"
    good = frame.read_bytes()
    frame.write_bytes(b"no picture")
    command = [*given, "table13", "--dataset", "folder", "--mllm", str(models / CHECKPOINTS[1])]
    command[command.index("--data") + 1] = str(root)
    assert main(command) == 1
    assert "2 samples failed; the same command tries them again" in capsys.readouterr().err
    (line,) = [line for line in content("table13")["lines"] if line["samples"] is not None]
    assert line["samples"] == 2 and line["scores"]["j"]["ours"] is None, "the others alone would be another figure"
    assert line["failed"].keys() == {"beta/0", "beta/1"} and "00010.jpg" in line["failed"]["beta/1"]
    assert [entry["attempts"] for entry in entries("decaf_reproduce").values()] == [1, 1, 3, 3]
    frame.write_bytes(good)
    assert main(command) == 0
    assert "4 samples in 1 runs, 2 of them done before" in capsys.readouterr().err
    (line,) = [line for line in content("table13")["lines"] if line["samples"] is not None]
    assert line["samples"] == 4 and line["failed"] == {} and line["scores"]["j"]["ours"] is not None


def test_a_dry_run_lists_runs_and_what_is_missing(given, models, capsys):
    assert main([*given, "table5b", "table13", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert not Path("decaf_reproduce").exists()
    # Two clips of five frames, eight expressions each: (2 x 1.515 s + 14 x 0.259 s + 80 frames / 20) / 3600.
    assert "| ref_davis17 valid | Qwen2.5VL-7B | table5b: from 1/4 of the layers" in listed
    row = next(line for line in listed.splitlines() if "Qwen2.5VL-7B | table5b: from 1/4" in line and "davis" in line)
    assert [cell.strip() for cell in row.split("|")][4:7] == ["2", "16", "0.00"]
    assert "Runs: 12." in listed and "a lower bound" in listed and "Missing" not in listed
    assert "table13: DecAF, subset, Qwen2.5VL-7B: the paper does not list the 187 samples" in listed
    bare = [*given, "table3", "--dry-run"]
    bare[bare.index("--data") : bare.index("--models") + 2] = []
    assert main(bare) == 0
    listed = capsys.readouterr().out
    # (140 x 1.515 + 2096 x 0.259 + 2236 x 80 / 20) / 3600
    row = next(line for line in listed.splitlines() if line.startswith("| mevis valid"))
    assert [cell.strip() for cell in row.split("|")][4:7] == ["140", "2236", "2.69"] and "lacks model Qwen" in row
    for text in ("- data mevis: expected --data DIR with the folder DIR/mevis", "decaf weights get Qwen/Qwen2.5-VL-7B"):
        assert text in listed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["table14"], "expected one of table1, table2"),
        (["table4", "--limit", "0"], "--limit: expected 1 or more, got 0"),
        (["table4", "--workers", "-1"], "--workers: expected 0 or more, got -1"),
        (["table4", "--engine", "ray"], "--workers 0: only with --engine local"),
        (["table4", "--engine", "ray", "--workers", "1"], "expected Ray to be installed: pip install"),
        (
            ["table4", "--workers", "1", "--set", "mllm.device=cuda:1"],
            "mllm.device: expected auto or cuda, got 'cuda:1'",
        ),
        (["table4", "--split", "valid"], "--split: only with --dataset"),
        (["table4", "--address", "auto"], "--address: only with --engine ray"),
    ],
)
def test_bad_arguments_are_one_line(given, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(reproduce, "find_spec", lambda name: None)  # as if Ray were not installed
    assert main([*given, *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("decaf: ") and error.count("\n") == 1 and words in error


def test_two_processes_do_not_share_a_folder(given, tmp_path, capsys):
    from decaf_ros.evaluation.tables.runs import locked

    with locked(tmp_path / "decaf_reproduce"):
        assert main([*given, "table13", "--limit", "1"]) == 1
    assert "another process writes to this folder" in capsys.readouterr().err
