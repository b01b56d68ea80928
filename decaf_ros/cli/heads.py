"""The command `decaf heads`: finds the localization heads of a model, for the baseline Loc-Head."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from decaf_ros.cli.options import add_config_arguments, read_config
from decaf_ros.config import DecafConfig, replace

PAIRS = 1000
EDGES = ("bottom", "right", "left")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `heads` to the commands of `decaf`."""
    parser = commands.add_parser(
        "heads",
        help="find the localization heads of a model, for decaf eval --method loc-head",
        description="Finds the attention heads of a multimodal LLM that look at what a phrase names (Loc-Head, Kang et "
        "al., 2025): by their attention to the image, then by the spatial entropy of their maps, over image-text "
        "pairs. Writes a file for --heads of `decaf eval` and `decaf reproduce` (docs/baselines.md).",
    )
    parser.set_defaults(configure=read_heads_config, run=run)
    add = parser.add_argument
    add(
        "--pairs",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of RefCOCO with refs(...).p and instances.json, or with pairs.jsonl",
    )
    add("--images", type=Path, metavar="DIR", help="RefCOCO's images, COCO train2014 (default: where its reader looks)")
    add("--split", default="train", help="of RefCOCO (%(default)s)")
    add("--out", type=Path, required=True, metavar="FILE", help="new file for the heads")
    add("--count", type=int, default=PAIRS, metavar="N", help="number of pairs, chosen at random (%(default)s)")
    add("--seed", type=int, default=0, help="of this choice (%(default)s)")
    add(
        "--exclude",
        default="bottom",
        metavar="A,B",
        help=f"some of {', '.join(EDGES)}, or none: a head whose strongest token is at such an edge of the image gets "
        "no vote for it (%(default)s, as in Loc-Head's code; the paper: Qwen2-VL right, LLaVA-OneVision bottom,left)",
    )
    add("--per-image", type=int, default=10, metavar="K", help="heads that get a vote in an image (%(default)s)")
    add("--used", type=int, default=3, metavar="K", help="number of heads to choose (%(default)s)")
    add_config_arguments(parser)


def read_heads_config(args: argparse.Namespace) -> DecafConfig:
    """The configuration: frames are not tiled, unless --set mllm.frame_tiles says so, because tiles hide the heads
    (App. C). Raises OSError or ValueError."""
    for name, least in (("count", 1), ("used", 1), ("per_image", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected {least} or more, got {getattr(args, name)}")
    _edges(args.exclude)
    if args.out.exists() or not args.out.parent.is_dir():
        raise ValueError(f"--out {args.out}: expected a new file in an existing folder")
    config = read_config(args)
    tiled = any(entry.startswith("mllm.frame_tiles=") for entry in args.set)
    return config if tiled else replace(config, {"mllm.frame_tiles": 1})


def run(args: argparse.Namespace, config: DecafConfig) -> None:
    """Finds and writes the heads. Raises OSError, ValueError or RuntimeError."""
    from decaf_ros.evaluation.baselines.head_files import write_heads
    from decaf_ros.evaluation.baselines.head_search import Search, find_heads
    from decaf_ros.evaluation.baselines.pairs import read_pairs, sample
    from decaf_ros.grounding.loading import load_mllm

    pairs = sample(read_pairs(args.pairs, args.images, args.split), args.count, args.seed)
    mllm = load_mllm(config.mllm)

    def say(done: int) -> None:
        if done % 50 == 0 or done == len(pairs):
            print(f"{done} of {len(pairs)} pairs", file=sys.stderr, flush=True)

    search = Search(_edges(args.exclude), args.per_image, args.used)
    name = Path(config.mllm.checkpoint).name
    found, check = find_heads(mllm, config, pairs, search, args.pairs.resolve().name, name, say)
    write_heads(args.out, found)
    print(f"heads with an attention sum of {found.threshold:.3f} or more, by their share of votes:")
    for one in found.heads:
        seen = f"{one.frequency:.1%} of the pairs, attention sum {one.attention_sum:.3f}"
        print(f"  layer {one.layer}, head {one.head}: {seen}")
    if check is not None:
        print(
            f"on {check.pairs} of these pairs: strongest token in the box {check.pointing:.1%}, mean IoU of the hull's "
            f"box {check.iou:.1%}"
        )
    print(f"written to {args.out}")


def _edges(text: str) -> tuple[str, ...]:
    """Raises ValueError for an unknown edge."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if names == ("none",) or not names:
        return ()
    if unknown := [name for name in names if name not in EDGES]:
        raise ValueError(f"--exclude: expected some of {', '.join(EDGES)}, or none, got {', '.join(unknown)}")
    return names
