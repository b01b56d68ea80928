"""The command `decaf eval`: evaluates the method on clips with ground truth, or fits the presence score."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decaf_ros.cli.calibrate import check_out
from decaf_ros.cli.evaluate_bag import add_bag_arguments, bag_source, check_bag_arguments
from decaf_ros.cli.methods import add_method_argument, method_spec
from decaf_ros.cli.options import add_config_arguments, with_arguments
from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.evaluation.datasets.clips import ABSENT, is_absent_kind
from decaf_ros.evaluation.datasets.registry import DatasetSource, Selection, dataset_names, find_source
from decaf_ros.io.files import write_text
from decaf_ros.io.parameter_files import load_config
from decaf_ros.resources import resolve_path
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.evaluation.datasets.clips import Dataset
    from decaf_ros.evaluation.jobs import Plan
    from decaf_ros.evaluation.long import Watched
    from decaf_ros.evaluation.run import ClipScores

DEFAULT_DATASET = "tabletop"
# Expressions per clip, with and without targets.
PRESENT_PER_CLIP, ABSENT_PER_CLIP = 3, 2
# Scored clips on which the variants are scored, and on which one expression is asked online.
ABLATION_CLIPS, ONLINE_CLIPS = 10, 4
# Questions per long clip, and its length in seconds.
WATCHED_PER_CLIP, LONG_S = 1, 60.0
# Image embeddings to keep: each expression of a clip masks the same frames.
EMBEDDING_CACHE = 64


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `eval` to the commands of `decaf`."""
    parser = commands.add_parser(
        "eval",
        help="evaluate the whole method on clips with ground truth",
        description="Asks expressions about clips with ground truth and scores masks, pointing, categories and "
        '"not found", with the ablations of the paper. The clips of a seed are always the same; '
        "those of the simulated table overlap with no other seed's, and its models were not trained on them. A public "
        "benchmark is read from --data (docs/evaluation.md), and all its expressions are asked.",
    )
    parser.set_defaults(configure=read_evaluation_config, run=run)
    add = parser.add_argument
    add("--dataset", choices=dataset_names(), help=f"source of the clips ({DEFAULT_DATASET})")
    add("--seed", type=int, help="selects the clips and the expressions, except of a benchmark; 0 or more (default: 0)")
    add("--clips", type=int, help="number of clips (default: that of the dataset; with --clips-from: all)")
    add(
        "--clips-from",
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of a benchmark as published, or of stored clips of the simulated table (no renderer needed)",
    )
    add(
        "--split", default="", help="part of a benchmark, such as valid_u (default: that of the paper's offline tables)"
    )
    add("--submission", type=Path, metavar="FILE", help="only write the masks as a benchmark's server expects them")
    add("--kinds", default="", metavar="A,B", help="types of expressions to ask (default: all)")
    add("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    add(
        "--out", type=Path, help="folder of the report (default: decaf_eval); with --calibrate: parameter file to write"
    )
    add_method_argument(parser)
    add("--no-ablation", action="store_true", help="skip the variants of the method")
    add(
        "--ablation-clips",
        type=int,
        metavar="K",
        help=f"score the variants on the first K clips only (default: {ABLATION_CLIPS}, of a benchmark: 0); they need "
        "up to 8 GiB of memory in addition to the multimodal LLM",
    )
    add("--calibrate", action="store_true", help="fit the presence score instead, on clips of no --seed")
    add("--long", action="store_true", help="ask early in each long clip, then only watch: scores by time since then")
    add("--seconds", type=float, metavar="S", help=f"with --long: length of rendered clips (default: {LONG_S:g})")
    add(
        "--workers",
        type=int,
        help="processes that score clips (default: one per core, 1 with cuda; 0: no further process)",
    )
    add("--threads", type=int, help="threads per process (default: the cores divided among them)")
    add_bag_arguments(parser)
    add_config_arguments(parser, " (default: the parameter file of the dataset)")


def read_evaluation_config(args: argparse.Namespace) -> DecafConfig:
    """The configuration to evaluate. Raises OSError or ValueError."""
    default = "" if args.bag else _source(args).default_config
    file = args.config or (resolve_path(default) if default else None)
    return with_arguments(load_config(file, node=args.node) if file else DecafConfig(), args)


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Evaluates or calibrates. Raises OSError, ValueError or RuntimeError; the last names clip and expression."""
    check_bag_arguments(args)
    source = bag_source(args, config) if args.bag else _source(args)
    kinds = _kinds(args, source)
    _check(args, config, kinds, source.every_expression)
    if args.long:
        _run_long(args, config, source, kinds)
        return
    if args.submission:
        _run_submission(args, config, source)
        return
    # Imports torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.evaluation.calibration import Example, calibrate, calibration_text, parameter_text
    from decaf_ros.evaluation.datasets.clips import ExpressionChoice
    from decaf_ros.evaluation.jobs import Plan, clip_scores, load_evaluator
    from decaf_ros.evaluation.report import check_folder, report_text, write_json, write_report
    from decaf_ros.evaluation.run import is_absent
    from decaf_ros.evaluation.summary import Collected, summary

    every = source.every_expression
    ablation_clips = (0 if every else ABLATION_CLIPS) if args.ablation_clips is None else args.ablation_clips
    dataset = source.select(Selection(args.seed or 0, args.clips, args.clips_from, args.calibrate, split=args.split))
    if not dataset.has_truth:
        raise ValueError(f"{dataset.name}: the masks of this split are not public; use --submission FILE")
    out = args.out or Path("decaf_eval")
    if not args.calibrate:
        check_folder(out, args.json)
    config = replace(config, {"sam2.embedding_cache": max(config.sam2.embedding_cache, EMBEDDING_CACHE)})
    if args.calibrate:
        config = replace(config, {"presence.threshold": 0.0})
    method = method_spec(args)
    workers, threads = _processes(args, config, dataset.scored + dataset.tracking_only)
    plan = Plan(
        ExpressionChoice(args.seed or 0, None if every else PRESENT_PER_CLIP, ABSENT_PER_CLIP, kinds),
        masks=not args.calibrate,
        segmenter=not args.calibrate and not every and method.is_decaf,
        ablation_clips=0 if args.no_ablation or args.calibrate or not method.is_decaf else ablation_clips,
        online_clips=0 if args.calibrate or every or not method.is_decaf else ONLINE_CLIPS,
        tracks=method.is_decaf,
    )
    load = functools.partial(load_evaluator, config, threads, method)
    collected, progress = Collected(), _Progress(dataset, plan)
    for scores in clip_scores(dataset, plan, load, workers):
        collected.add(scores)
        progress.show(scores)
    if not collected.cases:
        raise ValueError(f"no expression of the types {', '.join(kinds)} in {dataset.scored} clips")
    if args.calibrate:
        examples = [Example(case.clip, not is_absent(case), case.found, case.presence) for case in collected.cases]
        fitted = calibrate(examples, config.presence)
        print(calibration_text(fitted))
        if args.out:
            write_text(args.out, parameter_text(fitted))
        if args.json:
            write_json(args.json, {"weights": dict(fitted.weights), "threshold": fitted.threshold})
        return
    numbers = summary(collected, kinds, config.presence.threshold) | {
        "settings": _settings(args, dataset, kinds, config, every),
        "version": __version__,
    }
    text = report_text(numbers)
    print(text)
    if args.json:
        write_json(args.json, numbers)
    write_report(out, numbers, collected, text)
    _log(f"report in {out}, {progress.seconds:.0f} s")


def _run_submission(args: argparse.Namespace, config: DecafConfig, source: DatasetSource) -> None:
    """Writes the masks of a split for the server that scores them. Raises as `run`."""
    from decaf_ros.evaluation.datasets.clips import ExpressionChoice
    from decaf_ros.evaluation.jobs import Plan, clip_scores, load_evaluator
    from decaf_ros.evaluation.submission import Submission

    if source.submission is None:
        raise ValueError(f"--submission: no server scores {args.dataset or DEFAULT_DATASET}; its masks are public")
    dataset = source.select(Selection(count=args.clips, folder=args.clips_from, split=args.split))
    workers, threads = _processes(args, config, dataset.scored)
    plan = Plan(ExpressionChoice(0, None), submit=True)
    progress = _Progress(dataset, plan)
    load = functools.partial(load_evaluator, config, threads, method_spec(args))
    with Submission(args.submission, source.submission) as submission:
        for scores in clip_scores(dataset, plan, load, workers):
            for entry in scores.cases:
                submission.add(scores.clip, entry.case.name, entry.masks)
            progress.show(scores)
    _log(f"{submission.count} expressions of {dataset.scored} videos in {args.submission}, {progress.seconds:.0f} s")


def _run_long(args: argparse.Namespace, config: DecafConfig, source: DatasetSource, kinds: list[str]) -> None:
    """Evaluates on long clips. Raises as `run`."""
    from decaf_ros.evaluation.datasets.clips import ExpressionChoice
    from decaf_ros.evaluation.jobs import Plan, clip_scores, load_evaluator
    from decaf_ros.evaluation.long_report import long_report_text, write_long_report
    from decaf_ros.evaluation.long_summary import long_summary
    from decaf_ros.evaluation.report import check_folder, write_json

    seconds = None if args.clips_from else args.seconds or LONG_S
    dataset = source.select(Selection(args.seed or 0, args.clips, args.clips_from, seconds=seconds, split=args.split))
    if left_out := dataset.settings.get("left_out"):
        _log(f"left out, without a mask in --ground-truth: {left_out}")
    out = args.out or Path("decaf_eval")
    check_folder(out, args.json)
    workers, threads = _processes(args, config, dataset.scored)
    count = None if args.bag else WATCHED_PER_CLIP
    plan = Plan(ExpressionChoice(args.seed or 0, count, 0, kinds), watch=True)
    watched: list[Watched] = []
    progress = _Progress(dataset, plan)
    for scores in clip_scores(dataset, plan, functools.partial(load_evaluator, config, threads), workers):
        watched += scores.watched
        progress.show(scores)
    if not watched:
        raise ValueError(f"no expression of the types {', '.join(kinds)} to ask early in {dataset.scored} clips")
    numbers = long_summary(watched) | {
        "settings": _settings(args, dataset, kinds, config, bool(args.bag)),
        "version": __version__,
    }
    text = long_report_text(numbers)
    print(text)
    if args.json:
        write_json(args.json, numbers)
    write_long_report(out, numbers, watched, text)
    _log(f"report in {out}, {progress.seconds:.0f} s")


def _check(args: argparse.Namespace, config: DecafConfig, kinds: Sequence[str], every: bool) -> None:
    """Finds errors before hours of evaluation. Raises OSError or ValueError."""
    _check_file("--json", args.json)
    _check_file("--submission", args.submission)
    if args.submission:
        names = ("seed", "json", "out", "kinds", "calibrate", "long", "ablation_clips", "no_ablation")
        _refuse(args, names, "no effect with --submission")
    if every and not args.bag:
        _refuse(args, ("seed", "long"), f"no effect with --dataset {args.dataset}, whose expressions are all asked")
    if not method_spec(args).is_decaf:
        refused = ("calibrate", "long", "ablation_clips", "no_ablation")
        _refuse(args, refused, f"no effect with --method {args.method}, which is not run on streams or in variants")
    if args.ablation_clips is not None and args.ablation_clips < 0:
        raise ValueError(f"--ablation-clips: expected 0 or more, got {args.ablation_clips}")
    if args.seconds is not None and (not args.long or args.clips_from):
        raise ValueError("--seconds: only with --long, and without --clips-from")
    if args.long:
        _refuse(args, ("calibrate", "ablation_clips", "no_ablation"), "no effect with --long")
    if not args.calibrate:
        return
    if args.out:
        check_out(args.out)
    _refuse(args, ("seed", "ablation_clips", "no_ablation"), "no effect with --calibrate")
    if config.grounding.branches != "both":
        # The score of a single branch leaves agreement out; the fit would use 0 for it.
        raise ValueError(f"--calibrate: expected grounding.branches both, got {config.grounding.branches}")
    if not config.grounding.contrast:
        # Without a background map there is no separation.
        raise ValueError("--calibrate: expected grounding.contrast true, got false")
    if len({is_absent_kind(kind) for kind in kinds}) == 1:
        raise ValueError(f"--calibrate: expected --kinds with {ABSENT} and another one, got {', '.join(kinds)}")


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises ValueError if one of these options is given. A number may be 0."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value is not False and value != "":
            raise ValueError(f"--{name.replace('_', '-')}: {why}")


def _check_file(option: str, file: Path | None) -> None:
    """Raises OSError if a file cannot be written."""
    if file is None:
        return
    if file.is_dir():
        raise IsADirectoryError(f"{option}: expected a file, got the folder {file}")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{option}: no folder {file.parent}")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(f"{option}: {file} cannot be written")


def _source(args: argparse.Namespace) -> DatasetSource:
    return find_source(args.dataset or DEFAULT_DATASET)


def _kinds(args: argparse.Namespace, source: DatasetSource) -> list[str]:
    """The types to ask, in the order of the dataset. Raises ValueError for an unknown type."""
    kinds = {kind.strip() for kind in args.kinds.split(",") if kind.strip()} or set(source.kinds)
    if unknown := sorted(kinds - set(source.kinds)):
        raise ValueError(f"--kinds: expected some of {', '.join(source.kinds)}, got {', '.join(unknown)}")
    return [kind for kind in source.kinds if kind in kinds]


def _processes(args: argparse.Namespace, config: DecafConfig, clips: int) -> tuple[int, int]:
    """Number of workers, and of threads per worker. Raises ValueError for a bad number."""
    from decaf_ros.devices import resolve_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = resolve_device(config.mllm.device).type == "cuda"
    workers = args.workers if args.workers is not None else min(1 if on_gpu else cores, clips)
    threads = args.threads if args.threads is not None else max(1, cores // max(workers, 1))
    if workers < 0 or threads < 1:
        raise ValueError(f"expected --workers >= 0 and --threads >= 1, got {workers} and {threads}")
    return workers, threads


def _settings(
    args: argparse.Namespace, dataset: Dataset, kinds: list[str], config: DecafConfig, every: bool = False
) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        **method_spec(args).identity(),
        "seed": args.seed or 0,
        "clips": dataset.scored,
        **dataset.settings,
        "kinds": kinds,
        "expressions_a_clip": "all" if every else _expressions_a_clip(args.long),
        "parameters": {option.name: option.value for option in options(config)},
    }


def _expressions_a_clip(is_long: bool) -> dict[str, int]:
    return {"present": WATCHED_PER_CLIP if is_long else PRESENT_PER_CLIP, "absent": 0 if is_long else ABSENT_PER_CLIP}


class _Progress:
    """Prints the progress and the estimated remaining time to stderr."""

    def __init__(self, dataset: Dataset, plan: Plan) -> None:
        self._began = time.monotonic()
        total = plan.total(dataset)
        # Clips with the same work take about the same time.
        self._work = [
            (index < plan.ablation_clips, index < plan.online_clips, index >= dataset.scored) for index in range(total)
        ]
        self._seconds_by_work: dict[tuple[bool, ...], list[float]] = {}
        self._done = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def show(self, scores: ClipScores) -> None:
        """To be called after each clip, in order."""
        self._seconds_by_work.setdefault(self._work[self._done], []).append(scores.seconds)
        self._done += 1
        spent = [second for seconds in self._seconds_by_work.values() for second in seconds]
        means = {work: sum(seconds) / len(seconds) for work, seconds in self._seconds_by_work.items()}
        remaining = sum(means.get(work, sum(spent) / len(spent)) for work in self._work[self._done :])
        # Workers run in parallel: scale by the wall time per second of work so far.
        left = remaining * self.seconds / sum(spent)
        asked = f"{len(scores.cases)} expressions" if scores.cases else "tracking only"
        if scores.watched:
            asked = ", ".join(f'"{one.text}": J {100 * one.mean_j:.0f}' for one in scores.watched)
        _log(
            f"clip {self._done} of {len(self._work)} ({scores.clip}): {asked}, {scores.seconds:.1f} s; "
            f"about {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
