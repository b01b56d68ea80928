"""The command `decaf eval`."""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decaf_ros.cli.options import add_config_arguments, with_arguments
from decaf_ros.config import DecafConfig, load_config, options, replace
from decaf_ros.evaluation.datasets.registry import DatasetSource, Selection, dataset_names, find_source
from decaf_ros.resources import resolve_path
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.evaluation.datasets.clips import Dataset
    from decaf_ros.evaluation.jobs import Plan
    from decaf_ros.evaluation.run import ClipScores

DEFAULT_DATASET = "tabletop"
# Expressions a clip, with and without targets.
PRESENT, ABSENT = 3, 1
# Clips on which the variants are scored, and on which one expression is asked online (besides those for tracking only).
ABLATED, PLAYED = 10, 4
# Every frame of a clip is masked anew for each expression: their embeddings are worth keeping.
_EMBEDDINGS = 64


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `eval` to the commands of `decaf`."""
    parser = commands.add_parser(
        "eval",
        help="measure the whole method on clips with known answers",
        description="Asks expressions about clips with known answers and reports how good masks, pointing, categories "
        'and "not found" are, with the ablations of the paper. The clips of a seed are always the same, in none of '
        "another seed, and were never trained on.",
    )
    parser.set_defaults(configure=configured, run=run)
    add = parser.add_argument
    add("--dataset", choices=dataset_names(), default=DEFAULT_DATASET, help="source of the clips (%(default)s)")
    add("--seed", type=int, help="which clips, and which of their expressions are asked: 0 or more (default: 0)")
    add("--clips", type=int, help="how many clips (default: 20; with --clips-from: all)")
    add("--clips-from", type=Path, metavar="DIR", help="read stored clips from this folder; needs no renderer")
    add("--kinds", default="", metavar="A,B", help="types of expressions that are asked (default: all)")
    add("--json", type=Path, metavar="FILE", help="write the numbers there too")
    add("--out", type=Path, help="folder for report, pictures and numbers (default: decaf_eval)")
    add("--no-ablation", action="store_true", help="leave the variants of the method out")
    add(
        "--ablation-clips",
        type=int,
        metavar="K",
        help=f"variants of the method: on the first K clips only (default: {ABLATED}); they take up to 8 GiB of memory "
        "beside the multimodal LLM",
    )
    add("--calibrate", action="store_true", help="fit the presence score instead, on clips that no --seed gives")
    add("--workers", type=int, help="processes that score clips (default: one a core, or 1 with cuda); 0: no others")
    add("--threads", type=int, help="threads of each (default: the cores divided among them)")
    add_config_arguments(parser, " (default: the parameter file of the dataset)")


def configured(given: argparse.Namespace) -> DecafConfig:
    """The configuration that is measured. Raises OSError or ValueError."""
    source = find_source(given.dataset)
    file = given.config or (resolve_path(source.default_config) if source.default_config else None)
    return with_arguments(load_config(file) if file else DecafConfig(), given)


def run(given: argparse.Namespace, config: DecafConfig) -> None:
    """Evaluates, or calibrates. Raises OSError, ValueError or RuntimeError, with the clip and the expression."""
    source = find_source(given.dataset)
    kinds = _kinds(given, source)
    _check(given, config, kinds)
    # Only here: they bring torch along, and `decaf --help` shall answer at once.
    from decaf_ros.evaluation.calibration import calibrate
    from decaf_ros.evaluation.datasets.clips import ExpressionChoice
    from decaf_ros.evaluation.jobs import Plan, clip_scores, load_evaluator
    from decaf_ros.evaluation.report import calibration_text, check_folder, report_text, write_json, write_report
    from decaf_ros.evaluation.summary import Collected, summary

    ablated = ABLATED if given.ablation_clips is None else given.ablation_clips
    dataset = source.select(Selection(given.seed or 0, given.clips, given.clips_from, given.calibrate))
    out = given.out or Path("decaf_eval")
    if not given.calibrate:
        check_folder(out, given.json)
    config = replace(config, {"sam2.embedding_cache": max(config.sam2.embedding_cache, _EMBEDDINGS)})
    if given.calibrate:
        config = replace(config, {"presence.threshold": 0.0})
    workers, threads = _processes(given, config, dataset.scored + dataset.tracking_only)
    plan = Plan(
        ExpressionChoice(given.seed or 0, PRESENT, ABSENT, kinds),
        masks=not given.calibrate,
        segmenter=not given.calibrate,
        ablated=0 if given.no_ablation or given.calibrate else ablated,
        played=0 if given.calibrate else PLAYED,
    )
    load = functools.partial(load_evaluator, config, threads)
    collected, progress = Collected(), _Progress(dataset, plan)
    for scores in clip_scores(dataset, plan, load, workers):
        collected.take(scores)
        progress.tell(scores)
    if not collected.cases:
        raise ValueError(f"no expression of the types {', '.join(kinds)} in {dataset.scored} clips")
    if given.calibrate:
        fitted = calibrate(collected.cases)
        print(calibration_text(fitted, len(collected.cases)))
        if given.json:
            write_json(given.json, {"weights": dict(fitted.weights), "threshold": fitted.threshold})
        return
    found = summary(collected, kinds, config.presence.threshold) | {
        "settings": _settings(given, dataset, kinds, config),
        "version": __version__,
    }
    text = report_text(found)
    print(text)
    if given.json:
        write_json(given.json, found)
    write_report(out, found, collected, text)
    _say(f"report in {out}, {progress.seconds:.0f} s")


def _check(given: argparse.Namespace, config: DecafConfig, kinds: Sequence[str]) -> None:
    """What would come to light after hours. Raises OSError or ValueError."""
    if given.json and given.json.is_dir():
        raise IsADirectoryError(f"--json: expected a file, got the folder {given.json}")
    if given.json and not given.json.parent.is_dir():
        raise FileNotFoundError(f"--json: no folder {given.json.parent}")
    if given.json and not os.access(given.json if given.json.exists() else given.json.parent, os.W_OK):
        raise PermissionError(f"--json: {given.json} cannot be written")
    if given.ablation_clips is not None and given.ablation_clips < 0:
        raise ValueError(f"--ablation-clips: expected 0 or more, got {given.ablation_clips}")
    if not given.calibrate:
        return
    for name in ("seed", "out", "ablation_clips", "no_ablation"):
        value = getattr(given, name)
        if value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')}: no effect with --calibrate")
    if config.grounding.branches != "both":
        # The node leaves agreement out of the score of one branch; the fit would take it for 0.
        raise ValueError(f"--calibrate: expected grounding.branches both, got {config.grounding.branches}")
    if not config.grounding.contrast:
        # Without a background there is no separation either.
        raise ValueError("--calibrate: expected grounding.contrast true, got false")
    if "absent" not in kinds or len(kinds) == 1:
        raise ValueError(f"--calibrate: expected --kinds with absent and another one, got {', '.join(kinds)}")


def _kinds(given: argparse.Namespace, source: DatasetSource) -> list[str]:
    """The types to ask, in the dataset's order. Raises ValueError for an unknown one."""
    kinds = {kind.strip() for kind in given.kinds.split(",") if kind.strip()} or set(source.kinds)
    if unknown := sorted(kinds - set(source.kinds)):
        raise ValueError(f"--kinds: expected some of {', '.join(source.kinds)}, got {', '.join(unknown)}")
    return [kind for kind in source.kinds if kind in kinds]


def _processes(given: argparse.Namespace, config: DecafConfig, clips: int) -> tuple[int, int]:
    """Workers and threads of each."""
    from decaf_ros.devices import resolve_device

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = resolve_device(config.mllm.device).type == "cuda"
    workers = given.workers if given.workers is not None else min(1 if on_gpu else cores, clips)
    threads = given.threads if given.threads is not None else max(1, cores // max(workers, 1))
    if workers < 0 or threads < 1:
        raise ValueError(f"expected --workers >= 0 and --threads >= 1, got {workers} and {threads}")
    return workers, threads


def _settings(given: argparse.Namespace, dataset: Dataset, kinds: list[str], config: DecafConfig) -> dict[str, object]:
    return {
        "dataset": dataset.name,
        "seed": given.seed or 0,
        "clips": dataset.scored,
        **dataset.settings,
        "kinds": kinds,
        "expressions_a_clip": {"present": PRESENT, "absent": ABSENT},
        "parameters": {option.name: option.value for option in options(config)},
    }


class _Progress:
    """Says on stderr how far an evaluation is, and how long it will still take."""

    def __init__(self, dataset: Dataset, plan: Plan) -> None:
        self._began = time.monotonic()
        total = dataset.scored + dataset.tracking_only
        # Clips cost very different amounts of work.
        self._sorts = [(place < plan.ablated, place < plan.played, place >= dataset.scored) for place in range(total)]
        self._seconds: dict[tuple[bool, ...], list[float]] = {}
        self._done = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, scores: ClipScores) -> None:
        """After each clip, in order."""
        self._seconds.setdefault(self._sorts[self._done], []).append(scores.seconds)
        self._done += 1
        spent = [second for seconds in self._seconds.values() for second in seconds]
        means = {sort: sum(seconds) / len(seconds) for sort, seconds in self._seconds.items()}
        waiting = sum(means.get(sort, sum(spent) / len(spent)) for sort in self._sorts[self._done :])
        # Workers share the work: what a second of it took until now, it will take from now on.
        left = waiting * self.seconds / sum(spent)
        asked = f"{len(scores.cases)} expressions" if scores.cases else "only following"
        _say(
            f"clip {self._done} of {len(self._sorts)} ({scores.clip}): {asked}, {scores.seconds:.1f} s; "
            f"about {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
