"""The command `decaf simulate`: tabletop clips with ground truth, as bags or .npz files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from decaf_tabletop.world.clip import LEAST_S, MOST_S

FORMATS = ("bag", "npz", "pairs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `simulate` to the subcommands of `decaf`."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulate clips of objects on a table, with ground truth",
        description="Simulates and renders clips of objects on a table (3.2 s, 10 frames a second, 320 x 240) with "
        "ground truth: masks, poses and referring expressions. The same seed gives the same clip. Needs "
        "MuJoCo: pip install 'decaf_ros[tabletop]'.",
    )
    parser.set_defaults(configure=_check, run=_simulate)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="seed of the first clip, >= 0; each further clip uses the next seed")
    add("--clips", type=int, default=1, help="number of clips")
    add("--out", type=Path, required=True, help="folder for the clips, named clip_SEED[_crossing or _Ss]")
    add("--name", help="another name for the one clip")
    add(
        "--format",
        choices=FORMATS,
        default="bag",
        help="mcap bags, .npz files for training, or pairs: images with phrases and boxes for `decaf heads`",
    )
    add("--depth", action="store_true", help="bags: add depth images")
    add("--depth-noise", action="store_true", help="bags: depth as a stereo camera measures it, with noise and holes")
    add("--parts", action="store_true", help="bags: add label images of mugs' handles and bottles' necks")
    add("--compressed", action="store_true", help="bags: JPEG images, and depth in millimetres")
    add(
        "--seconds",
        type=float,
        metavar="S",
        help="long clips instead, 30 s or more: objects move, leave, are hidden and come back, and the camera looks "
        "away; the expressions tell when they may be asked",
    )
    add("--crossing", action="store_true", help="in each clip one object passes in front of another and occludes it")
    add(
        "--story",
        action="store_true",
        help="instead write OUT/story, the 28 s clip of `make demo` with its questions and their times",
    )


def _check(arguments: argparse.Namespace) -> None:
    """Raises ValueError for invalid values or combinations."""
    if arguments.seed < 0:
        raise ValueError(f"--seed: expected a number >= 0, got {arguments.seed}")
    if arguments.clips < 1:
        raise ValueError(f"--clips: expected a number >= 1, got {arguments.clips}")
    if arguments.name is not None and (arguments.clips > 1 or Path(arguments.name).name != arguments.name):
        raise ValueError(f"--name: expected the name of one clip, got {arguments.name!r} for {arguments.clips}")
    for name in ("depth", "compressed", "parts"):
        if arguments.format != "bag" and getattr(arguments, name):
            raise ValueError(f"--{name}: only bags have it, got --format {arguments.format}")
    if arguments.depth_noise and not arguments.depth:
        raise ValueError("--depth-noise: expected --depth too")
    if arguments.seconds is not None and not LEAST_S <= arguments.seconds <= MOST_S:
        raise ValueError(f"--seconds: expected {LEAST_S:g} to {MOST_S:g}, got {arguments.seconds:g}")
    if arguments.seconds is not None and (arguments.crossing or arguments.story):
        raise ValueError("--seconds: long clips are neither --crossing nor --story")
    if arguments.format == "pairs" and (arguments.name or arguments.story or arguments.seconds or arguments.crossing):
        raise ValueError("--format pairs: expected --seed, --clips and --out only")
    if arguments.story and (arguments.seed, arguments.clips, arguments.crossing) != (0, 1, False):
        raise ValueError("--story: it is one clip and has no seed, got --seed, --clips or --crossing")


def _simulate(arguments: argparse.Namespace, _: None) -> None:
    """Raises FileExistsError for an existing clip."""
    # Imported here to keep `decaf --help` fast.
    from decaf_tabletop.world.bag import write_tabletop_bag
    from decaf_tabletop.world.depth_noise import measured_clip
    from decaf_tabletop.world.expressions import expressions_of
    from decaf_tabletop.world.long_expressions import long_expressions
    from decaf_tabletop.world.parts import part_labels, part_questions
    from decaf_tabletop.world.simulator import make_clip, make_long_clip, play_scene
    from decaf_tabletop.world.store import clip_path, write_clip
    from decaf_tabletop.world.story import QUESTIONS, story

    if arguments.format == "pairs":
        write_pairs(arguments.out, range(arguments.seed, arguments.seed + arguments.clips))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    depth = arguments.depth or arguments.parts
    for seed in range(arguments.seed, arguments.seed + arguments.clips):
        file = clip_path(arguments.out, seed, arguments.crossing, arguments.seconds)
        if arguments.story or arguments.name:
            file = arguments.out / f"{arguments.name or 'story'}.npz"
        path = file if arguments.format == "npz" else file.with_suffix("")
        if path.exists():
            raise FileExistsError(f"{path}: exists already")
        if arguments.story:
            clip, expressions = play_scene(story(), depth), list(QUESTIONS)
        elif arguments.seconds is not None:
            clip = make_long_clip(seed, arguments.seconds, depth)
            expressions = long_expressions(clip)
        else:
            clip = make_clip(seed, depth=depth, crossing=arguments.crossing)
            expressions = expressions_of(clip)
        things = ", ".join(f"{thing.size} {thing.color} {thing.category}" for thing in clip.objects)
        parts = None
        if arguments.parts:
            parts = part_labels(clip)
            things += "".join(f"; {question.text}: {question.target + 1}" for question in part_questions(clip, parts))
        if arguments.format == "npz":
            write_clip(path, clip)
        else:
            if arguments.depth_noise:
                clip = measured_clip(clip)
            elif not arguments.depth:
                clip = dataclasses.replace(clip, depth_m=None)
            write_tabletop_bag(path, clip, expressions, arguments.compressed, parts)
        print(f"{path}: {things}", file=sys.stderr, flush=True)


def write_pairs(folder: Path, seeds: Iterable[int]) -> None:
    """Writes the middle frame of each clip, and its phrases that name one visible object by itself, with its box.

    Raises FileExistsError if the folder has pairs already.
    """
    import cv2
    import numpy as np

    from decaf_tabletop.dataset import TIMELESS_KINDS
    from decaf_tabletop.world.expressions import expressions_of
    from decaf_tabletop.world.simulator import make_clip

    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with (folder / "pairs.jsonl").open("x", encoding="utf-8") as file:
        for seed in seeds:
            clip = make_clip(seed)
            frame = len(clip) // 2
            image = f"{seed}.png"
            for one in expressions_of(clip):
                if one.kind not in TIMELESS_KINDS or len(one.targets) != 1:
                    continue
                rows, columns = np.nonzero(clip.labels[frame] == one.targets[0] + 1)
                if not len(rows):
                    continue
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                entry = {"image": image, "phrase": one.text, "box": [int(value) for value in box]}
                file.write(json.dumps(entry) + "\n")
                count += 1
            cv2.imwrite(str(folder / image), clip.images[frame][..., ::-1])
    print(f"{folder}: {count} pairs", file=sys.stderr, flush=True)
