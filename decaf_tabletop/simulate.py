"""The command `decaf simulate`: tabletop clips with ground truth, as bags or as compact files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FORMATS = ("bag", "npz")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `simulate` to the subcommands of `decaf`."""
    parser = subparsers.add_parser(
        "simulate",
        help="make clips of objects on a table, with ground truth",
        description="Simulates and renders clips of objects on a table (3.2 s, 10 frames a second, 320 x 240), with "
        "masks, poses and referring expressions that are known to be true. The same seed gives the same clip. Needs "
        "MuJoCo: pip install 'decaf_ros[tabletop]'.",
    )
    parser.set_defaults(configure=_checked, run=_simulate)
    add = parser.add_argument
    add("--seed", type=int, default=0, help="the first clip's seed, >= 0; each further clip has the next one")
    add("--clips", type=int, default=1, help="how many")
    add("--out", type=Path, required=True, help="folder for clip_SEED[_crossing], bags or .npz files")
    add("--format", choices=FORMATS, default="bag", help="mcap bags, or files for training")
    add("--depth", action="store_true", help="bags: depth images as well")
    add("--compressed", action="store_true", help="bags: JPEG images, and depth in millimetres")
    add("--crossing", action="store_true", help="in each clip one object passes in front of another and hides it")
    add(
        "--story",
        action="store_true",
        help="instead, as OUT/story, the one clip of 28 s that `make demo` plays, with questions and their times",
    )


def _checked(given: argparse.Namespace) -> None:
    """Raises ValueError for values that do not fit together."""
    if given.seed < 0:
        raise ValueError(f"--seed: expected a number >= 0, got {given.seed}")
    if given.clips < 1:
        raise ValueError(f"--clips: expected a number >= 1, got {given.clips}")
    for name in ("depth", "compressed"):
        if given.format == "npz" and getattr(given, name):
            raise ValueError(f"--{name}: only bags have it, got --format npz")
    if given.story and (given.seed, given.clips, given.crossing) != (0, 1, False):
        raise ValueError("--story: it is one clip and has no seed, got --seed, --clips or --crossing")


def _simulate(given: argparse.Namespace, _: None) -> None:
    """Raises FileExistsError for a clip that is there already."""
    # Only here: `decaf --help` shall answer at once.
    from decaf_tabletop.world.bag import write_tabletop_bag
    from decaf_tabletop.world.expressions import expressions_of
    from decaf_tabletop.world.simulator import make_clip, play_scene
    from decaf_tabletop.world.store import clip_path, write_clip
    from decaf_tabletop.world.story import QUESTIONS, story

    given.out.mkdir(parents=True, exist_ok=True)
    for seed in range(given.seed, given.seed + given.clips):
        file = given.out / "story.npz" if given.story else clip_path(given.out, seed, given.crossing)
        path = file if given.format == "npz" else file.with_suffix("")
        if path.exists():
            raise FileExistsError(f"{path}: exists already")
        if given.story:
            clip, said = play_scene(story(), given.depth), QUESTIONS
        else:
            clip = make_clip(seed, depth=given.depth, crossing=given.crossing)
            said = expressions_of(clip)
        if given.format == "npz":
            write_clip(path, clip)
        else:
            write_tabletop_bag(path, clip, said, compressed=given.compressed)
        things = ", ".join(f"{thing.size} {thing.color} {thing.category}" for thing in clip.objects)
        print(f"{path}: {things}", file=sys.stderr, flush=True)
