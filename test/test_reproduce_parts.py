"""The parts of `decaf reproduce`: the data file, the scheduling, and what is stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from decaf_ros.config import DecafConfig
from decaf_ros.config import replace as changed
from decaf_ros.evaluation import tables
from decaf_ros.evaluation.baselines.registry import MethodSpec
from decaf_ros.evaluation.datasets.registry import BENCHMARKS, find_source
from decaf_ros.evaluation.metrics import MaskScore, Pointing
from decaf_ros.evaluation.report import case_entry
from decaf_ros.evaluation.run import Case
from decaf_ros.evaluation.tables import runs
from decaf_ros.evaluation.tables.catalogue import catalogue, read_catalogue
from decaf_ros.evaluation.tables.estimate import hours
from decaf_ros.evaluation.tables.plan import Given, Plan
from decaf_ros.evaluation.tables.samples import Sample, SampleResult, read_case
from decaf_ros.evaluation.tables.scheduling import (
    ATTEMPTS,
    DEATHS,
    ERRORS,
    Event,
    Outcome,
    WorkersDiedError,
    run_samples,
)
from decaf_ros.evaluation.tables.store import StoredRun
from decaf_ros.types import Presence

SAMPLES = [
    Sample(0, clip, place, f"{clip}/{place}", f"text {place}", 5) for clip in range(4) for place in range(3 + clip)
]
CASE = Case(
    clip="0",
    text="text 0",
    kind="referring single",
    category="",
    decoded_category="cup",
    video_category="cup",
    frame_categories=("cup", "mug"),
    found=True,
    answer="found",
    presence=Presence(0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7),
    always=MaskScore(0.1, 1 / 3),
    pointing=Pointing(0.5, 1.0, 0.25, 0.0),
    seconds=1.5,
    attention=MaskScore(0.2, 0.3),
    points={1: 1.0, 10: 0.7},
    robustness=0.9,
)


def test_the_rows_of_all_tables_fit_the_configuration_and_the_data_sets():
    known = catalogue()
    parts = ["4a", "4b", "4c", "5a", "5b"]
    whole = [str(number) for number in range(1, 14) if number not in (4, 5)]
    assert sorted(known.tables) == sorted(f"table{name}" for name in whole + parts)
    assert [table.name for table in known.named("table4")] == ["table4a", "table4b", "table4c"]
    for table in known.tables.values():
        for row in table.rows:
            changed(DecafConfig(), row.changes)
    for column in known.columns.values():
        assert column.dataset in BENCHMARKS and column.split in find_source(column.dataset).splits
        assert column.masks in ("sam", "attention")


def test_the_same_configuration_has_the_same_figures_in_all_tables():
    """The paper repeats its default in many tables; a slip of the pen would show."""
    seen = {}
    for table in catalogue().tables.values():
        for row in table.rows:
            if row.note:
                continue
            config = changed(DecafConfig(), row.changes)
            for place, key in enumerate(table.columns):
                for offset, score in enumerate(table.scores):
                    figure = row.figures[place * len(table.scores) + offset]
                    cell = row.model, row.baseline, row.similar, config, row.start, key, score
                    assert figure is None or seen.setdefault(cell, figure) == figure, (table.name, row.method, key)
    assert len(seen) > 300


def test_j_and_f_is_the_mean_of_j_and_f():
    for table in catalogue().tables.values():
        for row in table.rows if len(table.scores) == 3 else ():
            for place in range(0, len(row.figures), 3):
                both, j, f = row.figures[place : place + 3]
                if j is None and f is None:
                    continue  # the text of the paper, or a row of ours, has no more
                assert both == pytest.approx((j + f) / 2, abs=0.1001), (table.name, row.method, row.model, place)
    for one in catalogue().published:
        for key, (both, *parts) in one.figures.items():
            assert not parts or both == pytest.approx(sum(parts) / 2, abs=0.1001), (one.method, key)


def test_rows_of_ours_are_shown_on_a_data_set_of_the_users_alone(tmp_path):
    """TAM in table 2, the rollouts, and Loc-Head with a model that the package lacks, once there is one of its own."""
    data, base = Given(data=tmp_path), changed(DecafConfig(), {"mllm.checkpoint": str(tmp_path)})
    rows = {line.row.method for line in Plan(catalogue(), base, data).lines(catalogue().tables["table2"])}
    assert "DecAF" in rows and not rows & {"TAM", "TAM (best token)", "rollout (mean)", "rollout (max)"}
    own = Given(dataset="folder", own_model=True, data=tmp_path)
    lines = Plan(catalogue(), base, own).lines(catalogue().tables["table2"])
    methods = {line.row.method: line.run.method.name for line in lines}
    assert methods == {
        "DecAF": "decaf", "Loc-Head": "loc-head", "Loc-Head, its boxes": "loc-head-box", "TAM": "tam",
        "TAM (best token)": "tam-best", "rollout (mean)": "rollout-mean", "rollout (max)": "rollout-max",
    }  # fmt: skip
    assert len(lines) == len(methods) and len({line.run for line in lines}) == len(methods)
    box = next(row for row in catalogue().tables["table2"].rows if row.baseline == "loc-head-box")
    assert (box.model, box.figures[0], box.figures[1]) == ("LLaVA-7B", 30.3, None)


def test_another_file_of_heads_is_another_run(tmp_path):
    for name, text in (("a", "heads: 1"), ("b", "heads: 2"), ("c", "heads: 1")):
        (tmp_path / name).write_text(text)
    one, other, same = (MethodSpec("loc-head", tmp_path / name).identity() for name in "abc")
    assert one == same != other and one["method"] == "loc-head"
    assert MethodSpec().identity() == {} and MethodSpec("tam").identity() == {"method": "tam"}


def test_a_row_that_does_not_fit_its_table_is_named(tmp_path):
    whole = yaml.safe_load(Path(tables.__file__).with_name("paper_tables.yaml").read_text())
    whole["tables"]["table13"]["rows"][2]["figures"].pop()
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(whole))
    with pytest.raises(ValueError, match="table13, DecAF, all samples with Qwen2.5VL-7B: expected 3 figures, got 2"):
        read_catalogue(tmp_path / "short.yaml")


def test_hours_are_in_proportion_to_work_and_model():
    assert hours(1, 1, 0) * 3600 == pytest.approx(1.515)
    assert hours(1, 3, 60) * 3600 == pytest.approx(1.515 + 2 * 0.259 + 3)
    assert hours(1, 1, 20, billions=14) * 3600 == pytest.approx(2 * 1.515 + 1)


class ScriptedPool:
    """Workers that do what a script says of each sample: a list of errors, "" for success and None for death.

    places: of each worker, in the order of their starts, the last one for all further ones; "nowhere": it never becomes
    ready; None: it dies while it starts. bad: names of places and numbers of workers at which every sample fails.
    after: a bad one's number of results before that.
    """

    def __init__(self, script, places=("here",), bad=(), after=0):
        self.script = {key: list(turns) for key, turns in script.items()}
        self.places, self.bad, self.after = places, bad, after
        self.started, self.sent, self.starting = 0, {}, []
        self.alive, self.order, self.where, self.ended = set(), [], {}, []

    def start(self):
        self.started += 1
        assert self.started < 100, "it would start workers for ever"
        self.alive.add(self.started)
        self.where[self.started] = self.places[min(self.started, len(self.places)) - 1]
        if self.where[self.started] != "nowhere":
            self.starting.append(self.started)
        return self.started

    def send(self, worker, sample):
        assert worker in self.alive and worker not in self.sent, "one sample at a time"
        assert worker not in self.starting and self.where[worker] != "nowhere", "it is ready"
        self.sent[worker] = sample
        self.order.append((worker, sample.key))

    def end(self, worker):
        self.alive.remove(worker)
        self.ended.append(worker)

    def wait(self):
        if self.starting:
            worker = self.starting.pop(0)
            if self.where[worker] is None:
                self.alive.remove(worker)
            return [Event(worker, place=self.where[worker])]
        assert self.sent, "it would wait for ever"
        worker = min(self.sent)
        sample = self.sent.pop(worker)
        error = self.script.get(sample.key, [""]).pop(0) if self.script.get(sample.key) else ""
        if {worker, self.where[worker]} & set(self.bad):
            done = [by for by, _ in self.order].count(worker)
            error = "bad worker" if done > self.after else error
        if error is None:
            self.alive.remove(worker)
            return [Event(worker)]
        return [Event(worker, SampleResult(sample, None if error else {}, error=error))]


def test_every_sample_ends_once_whatever_dies():
    pool = ScriptedPool({"0/1": [None], "1/0": ["full", ""], "2/2": ["a", None, "b"], "3/5": [None, None, None]})
    outcomes = {outcome.result.sample.key: outcome for outcome in run_samples(SAMPLES, pool, 3)}
    assert outcomes.keys() == {sample.key for sample in SAMPLES}
    assert [outcomes["0/1"][1:], outcomes["1/0"][1:]] == [(2, 1), (2, 0)]
    assert outcomes["2/2"].result.error == "b" and outcomes["2/2"][1:] == (ATTEMPTS, 1)
    assert outcomes["3/5"].result.error == "its worker died" and outcomes["3/5"][1:] == (ATTEMPTS, 3)
    assert sum(not outcome.result.error for outcome in outcomes.values()) == len(SAMPLES) - 2
    assert pool.started == 3 + 5, "a new worker for each that died"


def test_a_worker_keeps_a_clip_and_helps_at_the_end():
    pool = ScriptedPool({})
    list(run_samples(SAMPLES, pool, 2))
    clips = {worker: [key[0] for by, key in pool.order if by == worker] for worker in (1, 2)}
    # Worker 1, which always answers first, does clip after clip, and then takes over what is left of the other's.
    assert clips[1][:3] == ["0"] * 3 and clips[2] == ["1"]
    assert len(pool.order) == len(SAMPLES)


def test_a_run_ends_if_workers_only_die():
    pool = ScriptedPool({sample.key: [None] * ATTEMPTS for sample in SAMPLES})
    with pytest.raises(WorkersDiedError, match=f"{2 * DEATHS} workers died before there was any result"):
        list(run_samples(SAMPLES, pool, 2))
    with pytest.raises(WorkersDiedError, match=f"{2 * DEATHS} workers died while they started"):
        list(run_samples(SAMPLES, ScriptedPool({}, places=[None]), 2))


def test_a_sample_that_always_kills_its_worker_ends_no_run():
    for samples, workers in ((SAMPLES, 1), (SAMPLES[:1], 1), (SAMPLES, 3)):
        pool = ScriptedPool({samples[0].key: [None] * 100})
        outcomes = {outcome.result.sample: outcome for outcome in run_samples(samples, pool, workers)}
        assert len(outcomes) == len(samples) and outcomes[samples[0]][1:] == (ATTEMPTS, ATTEMPTS)
        assert [one.key for one, found in outcomes.items() if found.result.error] == [samples[0].key]


def test_workers_without_room_get_no_samples():
    pool = ScriptedPool({"1/0": ["full"]}, places=["here", "nowhere"])
    outcomes = list(run_samples(SAMPLES, pool, 4))
    assert len(outcomes) == len(SAMPLES) and pool.started == 4
    assert {worker for worker, _ in pool.order} == {1}


def test_a_worker_that_turns_bad_is_replaced():
    for workers in (1, 3):
        pool = ScriptedPool({}, bad=[1], after=2)
        outcomes = list(run_samples(SAMPLES, pool, workers))
        assert len(outcomes) == len(SAMPLES) and not any(outcome.result.error for outcome in outcomes)
        assert pool.ended == [1] and sorted(one.attempts for one in outcomes)[-ERRORS - 1 :] == [1] + ERRORS * [2]


def test_what_fails_in_one_place_is_tried_in_another():
    """A machine without the checkpoint fails at once, so it takes most samples; none of them gets lost."""
    pool = ScriptedPool({}, places=["bad", "bad", "good"], bad=["bad"])
    outcomes = list(run_samples(SAMPLES, pool, 3))
    assert len(outcomes) == len(SAMPLES) and not any(outcome.result.error for outcome in outcomes)
    assert max(outcome.attempts for outcome in outcomes) == 2 and pool.started == 3


def outcome(key="0/0", text="text 0", case=CASE, error=""):
    sample = replace(SAMPLES[0], key=key, text=text)
    entry = None if error else case_entry(case)
    return Outcome(SampleResult(sample, entry, error=error, seconds=1.0), 1, 0)


def stored(folder, *outcomes, **identity):
    run = StoredRun(folder, "data", {"parameters": {}, **identity})
    for one in outcomes:
        run.add(one)
    run.close()
    return run


def test_a_case_is_read_as_it_was_written(tmp_path):
    assert read_case(json.loads(json.dumps(case_entry(CASE)))) == CASE
    run = StoredRun(stored(tmp_path, outcome()).folder.parent, "data", {"parameters": {}})
    assert read_case(run.case_of(SAMPLES[0])) == CASE


def test_another_configuration_is_another_run(tmp_path):
    first, second = stored(tmp_path, outcome()), stored(tmp_path, first_layer=0.5)
    assert first.folder != second.folder and second.case_of(SAMPLES[0]) is None
    (first.folder / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="expected the identity of this run"):
        stored(tmp_path)


def test_a_torn_line_is_redone_and_a_damaged_one_is_named(tmp_path):
    file = stored(tmp_path, outcome(), outcome("0/1", "text 1")).folder / "samples.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])  # all but the line break
    run = stored(tmp_path, outcome("0/1", "text 1"))
    assert file.read_bytes() == whole and run.case_of(SAMPLES[1]) is not None
    file.write_bytes(b"{}\n" + whole)
    with pytest.raises(ValueError, match=r"samples.jsonl, line 1: expected a sample"):
        stored(tmp_path)


def test_a_failure_is_kept_until_the_sample_is_done(tmp_path):
    run = stored(tmp_path, outcome(error="no memory"))
    assert run.case_of(SAMPLES[0]) is None and run.error_of(SAMPLES[0]) == "no memory"
    run = stored(tmp_path, outcome())
    assert run.case_of(SAMPLES[0]) is not None and run.error_of(SAMPLES[0]) == ""
    with pytest.raises(ValueError, match="expected each sample once, got 0/0 again"):
        run.add(outcome())
    with pytest.raises(ValueError, match="the data have changed"):
        run.case_of(replace(SAMPLES[0], text="another"))


def test_masks_that_are_not_as_written_are_made_again(tmp_path):
    sample, masks = replace(SAMPLES[0], name="7"), {f"{place:05d}": bytes([place]) for place in range(5)}
    done = Outcome(SampleResult(sample, case_entry(CASE), masks), 1, 0)

    def opened():
        return StoredRun(tmp_path, "data", {}, submits=True)

    run = opened()
    run.add(done)
    run.close()
    assert opened().done(sample) and opened().masks_of(sample) == masks
    file = run.folder_of(sample) / "00003.png"
    assert file.is_file() and file.parent.parts[-2:] == ("0", "7")
    for spoil in (file.unlink, lambda: file.write_bytes(b"")):
        spoil()
        run = opened()
        assert run.case_of(sample) is not None and not run.done(sample) and run.masks_of(sample) is None
        run.add(done)
        run.close()
        assert opened().masks_of(sample) == masks
    run = opened()
    lost = replace(sample, key="0/1", text="text 1", name="8")
    run.add(Outcome(SampleResult(lost, case_entry(CASE), {"00000": b"a"}), 1, 0))
    assert not run.done(lost), "four frames have no mask"
    run.close()


def test_auto_on_another_device_is_another_run():
    for dtype in ("auto", "cuda_bfloat16"):
        config = changed(DecafConfig(), {"mllm.dtype": dtype, "sam2.device": "cpu"})
        found = [runs.resolved(config, device) for device in ("cpu", "cuda")]
        assert [(one.mllm.device, one.sam2.device) for one in found] == [("cpu", "cpu"), ("cuda", "cpu")]
        assert found[1].mllm.dtype == "bfloat16" and found[0].mllm.dtype in ("float32", "bfloat16")
    assert found[0].mllm.dtype == "float32"


def test_the_version_of_mevis_is_assumed_and_told():
    column = catalogue().columns["mevis"]
    assert column.version == "1" and "version 1 of MeViS" in column.assumed
    assert catalogue().sizes["mevis valid"].samples == 2236
    for one in catalogue().published:
        assert not one.split or "version" in one.split
