"""Runs what tables need, continuing where an earlier run ended, and collects what was measured."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.devices import resolve_device, resolve_dtype
from decaf_ros.evaluation.datasets.clips import Dataset
from decaf_ros.evaluation.datasets.registry import find_source
from decaf_ros.evaluation.protocol import protocol
from decaf_ros.evaluation.run import Case
from decaf_ros.evaluation.submission import Submission
from decaf_ros.evaluation.tables.catalogue import Column
from decaf_ros.evaluation.tables.plan import Plan, RunKey
from decaf_ros.evaluation.tables.samples import Sample, Work, read_case
from decaf_ros.evaluation.tables.scheduling import Outcome, Pool, WorkersDiedError, run_samples
from decaf_ros.evaluation.tables.store import StoredRun
from decaf_ros.io.files import write_text
from decaf_ros.types import AnswerCount
from decaf_ros.version import __version__
from decaf_ros.weights.folders import digest

LOST = "its masks are missing or damaged"
PACKAGES = ("torch", "transformers", "sam2", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Measured:
    """The measurements of a run.

    Attributes:
        name: name of the run's folder.
        cases: of the samples that are done.
        keys: of these samples, in the same order.
        failed: why samples failed, by their key.
        submission: the file for the server that scores the split, which is complete; None if there is none.
    """

    name: str
    cases: Sequence[Case]
    keys: Sequence[str]
    failed: Mapping[str, str]
    submission: Path | None = None

    @property
    def malformed(self) -> AnswerCount | None:
        """The answers of all cases; None for a method that reads no points from text."""
        counts = [case.malformed for case in self.cases if case.malformed]
        return AnswerCount(*map(sum, zip(*counts))) if counts else None

    def of(self, only: Collection[str] | None) -> list[Case]:
        """The cases of the samples with these keys; None: all."""
        return [case for key, case in zip(self.keys, self.cases) if only is None or key in only]

    def scores(
        self, column: Column, names: Sequence[str], only: Collection[str] | None = None
    ) -> dict[str, float | None]:
        """The scores of a column, fractions; None where nothing was measured. Without public masks there are none, nor
        if a sample failed: leaving it out would favour the method. only: see `of`."""
        cases = self.of(only)
        if self.failed or not cases:
            return dict.fromkeys(names)
        found = protocol(cases)
        means = found["by_subset"].get(column.subset, {}) if column.subset else found["overall"]
        prefix = "attention_" if column.masks == "attention" else ""
        return {name: means.get(prefix + name) for name in names}


def measure(
    plan: Plan,
    keys: Sequence[RunKey],
    out: Path,
    make_pool: Callable[[Sequence[Work]], tuple[Pool, int]],
    device: str,
    say: Callable[[str], None],
) -> dict[RunKey, Measured]:
    """Evaluates all samples of all runs that are not stored yet. If the workers die again and again, the samples that
    are left count as failed.

    Args:
        plan: from which the keys are.
        keys: the runs.
        out: folder of the results.
        make_pool: makes the workers for the runs' Works, and says how many to start. Not called if nothing is to do.
        device: of the workers, where the configuration says `auto`.
        say: called with lines about the progress.

    Raises:
        OSError: the folder cannot be written.
        ValueError: a stored run is damaged or of other data, or the data cannot be read.
        RuntimeError: another process uses the folder.
    """
    # Runs with the same models one after the other: a worker loads them once.
    keys = sorted(dict.fromkeys(keys), key=lambda key: (key.config.mllm.checkpoint, key.config.sam2.checkpoint))
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        digests = _Digests(out / "checkpoints.json")
        runs = []
        for key in keys:
            name, dataset = "-".join(filter(None, (key.dataset, key.split))), plan.dataset(key)
            identity = _identity(key, dataset, digests, device)
            runs.append(StoredRun(out / "runs", name, identity, submits=not dataset.has_truth))
            stack.callback(runs[-1].close)
        samples = [
            dataclasses.replace(sample, work=place) for place, key in enumerate(keys) for sample in plan.samples(key)
        ]
        left = [sample for sample in samples if not runs[sample.work].done(sample)]
        say(f"{len(samples)} samples in {len(keys)} runs, {len(samples) - len(left)} of them done before")
        stopped = ""
        if left:
            works = [Work(plan.dataset(key), resolved(key.config, device), key.start, key.method) for key in keys]
            pool, workers = make_pool(works)
            stack.callback(pool.close)
            try:
                for count, outcome in enumerate(run_samples(left, pool, workers), 1):
                    runs[outcome.result.sample.work].add(outcome)
                    say(f"{count} of {len(left)}: {_described(outcome, runs)}")
            except WorkersDiedError as error:
                stopped = f"not measured, as {error}"
                say(f"stopped: {error}")
        return {key: _collected(key, plan, run, out, stopped) for key, run in zip(keys, runs)}


def _described(outcome: Outcome, runs: Sequence[StoredRun]) -> str:
    result = outcome.result
    text = f"{runs[result.sample.work].folder.name} {result.sample.key}, {result.seconds:.1f} s"
    if outcome.attempts > 1:
        text += f", {outcome.attempts} attempts ({outcome.deaths} ended with their worker)"
    return text + (f", FAILED: {result.error}" if result.error else "")


def _collected(key: RunKey, plan: Plan, run: StoredRun, out: Path, stopped: str) -> Measured:
    """stopped: why samples were not tried."""
    samples = plan.samples(key)
    stored = {sample: run.case_of(sample) if run.done(sample) else None for sample in samples}
    cases = {sample.key: read_case(case) for sample, case in stored.items() if case is not None}
    failed = {sample.key: run.error_of(sample) or stopped or LOST for sample, case in stored.items() if case is None}
    failed = dict(sorted(failed.items(), key=lambda one: one[1] == stopped))  # those that were tried come first
    submission = None
    if not plan.dataset(key).has_truth and not failed and not plan.given.part:
        submission = _submission(key, samples, run, out)
    return Measured(run.folder.name, tuple(cases.values()), tuple(cases), failed, submission)


def _submission(key: RunKey, samples: Sequence[Sample], run: StoredRun, out: Path) -> Path:
    folder = find_source(key.dataset).submission
    assert folder is not None, "a split without public masks has a server"
    file = out / f"{run.folder.name}.zip"
    with Submission(file, folder) as submission:
        for sample in samples:
            masks, named = run.masks_of(sample), run.folder_of(sample)
            if masks is None:
                raise ValueError(f"{named}: masks changed during the run; the same command makes them again")
            submission.add(named.parent.name, named.name, masks)
    return file


def resolved(config: DecafConfig, device: str) -> DecafConfig:
    """With the device and type of numbers that `auto` stands for: all workers, now and later, have the same."""
    stages = {"mllm": config.mllm.device, "sam2": config.sam2.device}
    changes = {f"{stage}.device": device for stage, named in stages.items() if named == "auto"}
    dtype = resolve_dtype(config.mllm.dtype, resolve_device(changes.get("mllm.device", config.mllm.device)))
    return replace(config, {**changes, "mllm.dtype": str(dtype).removeprefix("torch.")})


def _identity(key: RunKey, dataset: Dataset, digests: _Digests, device: str) -> dict[str, Any]:
    """The settings that tell a run from others. Paths are left out: data and models may move. device: see `measure`."""
    parameters = {option.name: option.value for option in options(resolved(key.config, device))}
    for stage in ("mllm", "sam2"):  # which one of several equal devices makes no difference
        parameters[f"{stage}.device"] = resolve_device(parameters[f"{stage}.device"]).type
    checkpoints = {stage: parameters.pop(f"{stage}.checkpoint") for stage in ("mllm", "sam2")}
    return {
        "dataset": {"name": key.dataset, **dataset.settings},
        "parameters": json.loads(json.dumps(parameters)),
        "first_layer": key.start,
        **key.method.identity(),
        "checkpoints": {
            stage: {"name": Path(path).name, "sha256": digests(Path(path))} for stage, path in checkpoints.items()
        },
        "versions": {"decaf_ros": __version__, **{name: _version(name) for name in PACKAGES}},
    }


def _version(package: str) -> str | None:
    """None for a package without metadata, as the OpenCV of a Linux distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _Digests:
    """SHA-256 of checkpoints: of the digests and names of their files. Kept in a file by size and time of the files."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._known: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # only saves time
            self._known = {}

    def __call__(self, path: Path) -> str:
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
        total = hashlib.sha256()
        for file in files:
            status = file.stat()
            told = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
            if told not in self._known:
                self._known[told] = digest(file)
                write_text(self._file, json.dumps(self._known, indent=1) + "\n")
            total.update(f"{self._known[told]}  {file.name}\n".encode())
        return total.hexdigest()


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps other processes out of a folder of results, which is made. Raises RuntimeError if one is in it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"{out}: another process writes to this folder; wait, or name another --out") from error
        yield
