"""The command `decaf reproduce`: the paper's tables, with its figures beside ours."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaf_ros.cli.evaluate import EMBEDDING_CACHE, PRESENT_PER_CLIP
from decaf_ros.cli.methods import add_heads_argument
from decaf_ros.cli.options import add_config_arguments, with_arguments
from decaf_ros.config import DecafConfig, options, replace
from decaf_ros.evaluation.datasets.registry import dataset_names, find_source
from decaf_ros.io.parameter_files import load_config
from decaf_ros.resources import resolve_path
from decaf_ros.version import __version__

if TYPE_CHECKING:
    from decaf_ros.evaluation.tables.plan import RunKey
    from decaf_ros.evaluation.tables.runs import Measured
    from decaf_ros.evaluation.tables.samples import Work
    from decaf_ros.evaluation.tables.scheduling import Pool

PAPER = "package://decaf_ros/config/paper.yaml"
TABLES = tuple(f"table{number}" for number in range(1, 14))


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `reproduce` to the commands of `decaf`."""
    parser = commands.add_parser(
        "reproduce",
        help="measure the tables of the paper, with its figures beside ours",
        description="Measures tables of the paper: every row on every data set that is there, with the published "
        "figures and the difference. What is missing is named. A run that was stopped goes on where it ended "
        "(docs/evaluation.md).",
    )
    parser.set_defaults(configure=read_reproduce_config, run=run)
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help="table1 to table13, a part such as table4c, or all")
    add("--data", type=Path, metavar="DIR", help="folder with a folder for each data set, named as in decaf eval")
    add("--models", type=Path, metavar="DIR", help="folder with the checkpoints (default: the hub's cache)")
    add("--out", type=Path, default=Path("decaf_reproduce"), help="folder of the results (%(default)s)")
    add("--dry-run", action="store_true", help="only list the runs, what is missing, and the GPU hours")
    add("--limit", type=int, metavar="N", help="only the first N samples (expressions) of each data set")
    add(
        "--dataset",
        choices=dataset_names(),
        default="",
        help="measure the tables' rows on this data set instead; --data is then its own folder",
    )
    add("--split", default="", help="split of --dataset")
    add(
        "--similar",
        type=Path,
        metavar="FILE",
        help="samples with similar objects (Tab. 13): CLIP/EXPRESSION lines (default: those that the data set knows)",
    )
    add_heads_argument(parser)
    add("--clips", type=int, help="number of clips of each data set (default: all of a benchmark)")
    add("--engine", choices=("local", "ray"), default="local", help="processes, or a Ray cluster (docs/scale.md)")
    add("--workers", type=int, help="number of workers (default: one a GPU, else one a core; 0: none, local only)")
    add("--threads", type=int, help="threads of a worker (default: the cores divided among them)")
    add(
        "--address",
        default="",
        help="with --engine ray: address of the cluster (default: RAY_ADDRESS, or this machine)",
    )
    add_config_arguments(parser, " (default: config/paper.yaml, or the parameter file of --dataset)")


def read_reproduce_config(args: argparse.Namespace) -> DecafConfig:
    """The configuration that the rows of the tables change. Raises OSError or ValueError."""
    file = args.config or resolve_path(_default_config(args) or PAPER)
    config = with_arguments(load_config(file, node=args.node), args)
    return replace(config, {"sam2.embedding_cache": max(config.sam2.embedding_cache, EMBEDDING_CACHE)})


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Measures and prints the tables. Raises OSError, ValueError or RuntimeError.

    The last also if figures are missing that this command could measure, after everything else was measured.
    """
    _check(args, config)
    # Imports torch, which takes seconds; `decaf --help` must not wait for it.
    from decaf_ros.evaluation.tables.catalogue import catalogue
    from decaf_ros.evaluation.tables.estimate import dry_run
    from decaf_ros.evaluation.tables.plan import Given, Plan
    from decaf_ros.evaluation.tables.runs import measure
    from decaf_ros.evaluation.tables.samples import read_list
    from decaf_ros.evaluation.tables.tables import comparison, table_content, table_text, write_table

    tables = catalogue()
    names = TABLES if "all" in args.tables else tuple(dict.fromkeys(args.tables))
    parts = {part.name: part for name in names for part in tables.named(name)}
    own = bool(args.mllm) or any(entry.startswith("mllm.checkpoint=") for entry in args.set)
    own = own or _default_config(args) not in ("", PAPER)
    if args.similar and not any(row.similar for part in parts.values() for row in part.rows):
        raise ValueError(f"--similar: only table13 has a subset, got {', '.join(parts)}")
    similar = read_list(args.similar) if args.similar else None
    given = Given(
        *(args.data, args.models, args.dataset, args.split, args.clips, own, args.limit),
        *(PRESENT_PER_CLIP, args.heads, similar),
    )
    plan = Plan(tables, config, given)
    lines = {name: plan.lines(part) for name, part in parts.items()}
    if args.dry_run:
        print(dry_run(plan, [line for listed in lines.values() for line in listed]))
        return
    keys = list(dict.fromkeys(line.ready for listed in lines.values() for line in listed if line.ready))
    measured: dict[RunKey, Measured] = {}
    if keys:
        with ExitStack() as stack:
            make_pool, device = _on_ray(args, stack) if args.engine == "ray" else _local(args, config)
            measured = measure(plan, keys, args.out, make_pool, device, _log)
    args.out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "version": __version__,
        "limit": args.limit,
        "parameters": {option.name: option.value for option in options(config)},
    }
    for name, listed in lines.items():
        text = table_text(listed, measured)
        print(f"{text}\n")
        write_table(args.out, name, text, table_content(listed, measured, settings))
    if args.dataset and len(lines) > 1:
        text, content = comparison([line for listed in lines.values() for line in listed], measured)
        print(f"{text}\n")
        write_table(args.out, "comparison", text, {**settings, "methods": content})
    _log(f"tables in {args.out}")
    if failed := sum(len(found.failed) for found in measured.values()):
        raise RuntimeError(f"{failed} samples failed; the same command tries them again")
    if missing := dict.fromkeys(text for listed in lines.values() for line in listed for text in line.missing):
        raise RuntimeError(f"missing: {', '.join(missing)}")


def _check(args: argparse.Namespace, config: DecafConfig) -> None:
    """Finds bad values before anything is read. Raises ValueError."""
    for name, least in (("limit", 1), ("clips", 1), ("workers", 0), ("threads", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name}: expected {least} or more, got {value}")
    if args.engine == "ray" and args.workers == 0:
        raise ValueError("--workers 0: only with --engine local")
    if args.engine == "ray" and find_spec("ray") is None:
        raise ValueError("--engine ray: expected Ray to be installed: pip install 'decaf_ros[ray]'")
    if args.address and args.engine != "ray":
        raise ValueError("--address: only with --engine ray")
    for name, device in (("mllm.device", config.mllm.device), ("sam2.device", config.sam2.device)):
        if ":" in device and args.workers != 0:
            raise ValueError(
                f"{name}: expected auto or {device.partition(':')[0]}, got {device!r}: each worker sees one GPU only; "
                "choose GPUs with CUDA_VISIBLE_DEVICES, or use --workers 0"
            )
    if args.split and not args.dataset:
        raise ValueError("--split: only with --dataset; the tables name their splits")


def _default_config(args: argparse.Namespace) -> str:
    return find_source(args.dataset).default_config if args.dataset else ""


# Makes the workers, and says how many to start.
PoolMaker = Callable[["Sequence[Work]"], "tuple[Pool, int]"]


def _local(args: argparse.Namespace, config: DecafConfig) -> tuple[PoolMaker, str]:
    """Processes of this machine, and the device that `auto` stands for."""
    import torch

    from decaf_ros.devices import resolve_device
    from decaf_ros.evaluation.tables import local_pool

    def make(works: Sequence[Work]) -> tuple[Pool, int]:
        devices: list[str] = []
        if resolve_device(config.mllm.device).type == "cuda":
            seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
            devices = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = args.workers if args.workers is not None else len(devices) or cores
        threads = args.threads or max(1, cores // max(workers, 1))
        if workers == 0:
            return local_pool.OwnProcess(works, threads), 1
        return local_pool.LocalPool(works, threads, devices), workers

    return make, resolve_device("auto").type


def _on_ray(args: argparse.Namespace, stack: ExitStack) -> tuple[PoolMaker, str]:
    """Actors of a Ray cluster, and the device that `auto` stands for. The connection lasts as long as the stack."""
    from decaf_ros.evaluation.tables import ray_pool

    cluster = ray_pool.Cluster(args.threads or 1, args.address)
    stack.callback(cluster.close)

    def make(works: Sequence[Work]) -> tuple[Pool, int]:
        return ray_pool.RayPool(works, cluster), args.workers or cluster.room

    return make, "cuda" if cluster.gpus else "cpu"


_began = time.monotonic()


def _log(text: str) -> None:
    print(f"[{time.monotonic() - _began:.0f} s] {text}", file=sys.stderr, flush=True)
