"""Measures part IoU with and without negative points: python -m decaf_tabletop.parts_check --questions 100.

Questions such as "the handle of the red mug" about simulated clips (`decaf_tabletop.world.parts`). With --attention
true the map is the part itself on the token grid instead of the model's attention: it shows what SAM 2 makes of points.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from decaf_ros.config import DecafConfig, replace
from decaf_ros.io.parameter_files import load_config
from decaf_ros.offline import key_frames
from decaf_ros.pipeline import STAGES, Decaf
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.points import attention_points
from decaf_ros.segmentation.scoring import score_tracklets, select_tracklets
from decaf_ros.segmentation.tracklets import propose_tracklets
from decaf_ros.stages import StageClock, finish
from decaf_ros.types import Tracklet, Window
from decaf_tabletop.dataset import SOURCE
from decaf_tabletop.world.clip import FRAMES
from decaf_tabletop.world.parts import PART_PX, PARTS, part_labels, part_questions
from decaf_tabletop.world.scenes import sample_scene
from decaf_tabletop.world.simulator import make_clip

ATTENTIONS = ("model", "true")
# Grid of the frame branch, of which the true map is made.
_GRID = (12, 16)


class Answer(NamedTuple):
    """One question, answered without (0) and with (1) negative points.

    part: "handle" or "neck". on_part: whether the map's highest token is on the part. iou: mean part IoU over the key
    frames that show the part. picture: the first of them beside its two answers.
    """

    part: str
    text: str
    on_part: bool
    iou: tuple[float, float]
    picture: np.ndarray


def answers(decaf: Decaf, first_seed: int, attention: str, negative_points: int) -> Iterator[Answer]:
    """Endless answers about the clips of these seeds, in order. attention: one of ATTENTIONS."""
    seed = first_seed
    while True:
        if any(placed.thing.category in PARTS for placed in sample_scene(seed).objects):
            clip = make_clip(seed, depth=True)
            layer = part_labels(clip)
            window = key_frames(clip.frames(), decaf.config.window.size)
            places = [frame.index for frame in window.frames]
            for question in part_questions(clip, layer):
                truth = layer[places] == question.target + 1
                if truth.sum(axis=(1, 2)).max() >= PART_PX:
                    yield _answer(decaf, window, question.text, question.part, truth, attention, negative_points)
        seed += 1


def _answer(
    decaf: Decaf, window: Window, text: str, part: str, truth: np.ndarray, attention: str, negative_points: int
) -> Answer:
    """truth: (T, H, W) bool, the part on the key frames."""
    if attention == "true":
        fused = true_attention(truth)
    else:
        steps = decaf.grounder.ground(window, text, decaf.config, StageClock(STAGES))
        fused = finish(steps).maps.fused
    frame, row, column = np.unravel_index(fused.argmax(), fused.shape)
    (height, width), (rows, columns) = window.size_hw, fused.shape[1:]
    y, x = int((row + 0.5) / rows * height), int((column + 0.5) / columns * width)
    targets = [_target(decaf, window, fused, count) for count in (0, negative_points)]
    shown = np.flatnonzero(truth.sum(axis=(1, 2)) >= PART_PX)
    ious = [
        0.0 if target is None else float(np.mean([mask_iou(truth[place], target.masks[place]) for place in shown]))
        for target in targets
    ]
    image = window.frames[shown[0]].image
    nothing = np.zeros((height, width), bool)
    masks = [truth[shown[0]], *(nothing if target is None else target.masks[shown[0]] for target in targets)]
    picture = np.concatenate([_painted(image, mask) for mask in masks], axis=1)
    return Answer(part, text, bool(truth[frame, y, x]), (ious[0], ious[1]), picture)


def true_attention(truth: np.ndarray) -> np.ndarray:
    """(T, h, w) float32 in [0, 1]: the share of each token that the part covers, relative to the highest. truth:
    (T, H, W) bool."""
    height, width = _GRID
    shares = [cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for mask in truth]
    covered = np.stack(shares)
    return (covered / covered.max()).astype(np.float32)


def _target(decaf: Decaf, window: Window, fused: np.ndarray, negative_points: int) -> Tracklet | None:
    """The best candidate for one target; None without any."""
    config = replace(decaf.config, {"segmentation.negative_points": negative_points}).segmentation
    points = attention_points(fused, config)
    with decaf.sam2.holding(window.frames):
        proposals = finish(propose_tracklets(decaf.sam2, window, points, config, fused))
    chosen = select_tracklets(score_tracklets(proposals, fused, config), config, means_several=False)
    return chosen[0] if chosen else None


def _painted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], (image * 0.4 + np.array([255, 0, 255]) * 0.6).astype(np.uint8), image)


def report(found: Sequence[Answer]) -> str:
    """Part IoU by part as a table, in percent."""
    rows = [f"{'part':8}{'questions':>10}{'on part':>9}{'IoU':>7}{'with negative':>15}{'better':>8}{'worse':>7}"]
    for name in (*sorted({answer.part for answer in found}), "all"):
        group = [answer for answer in found if name in (answer.part, "all")]
        without, with_ = np.array([answer.iou for answer in group]).T * 100
        on_part = 100 * np.mean([answer.on_part for answer in group])
        better, worse = (with_ > without + 1).sum(), (with_ < without - 1).sum()
        rows.append(
            f"{name:8}{len(group):10}{on_part:9.1f}{without.mean():7.1f}{with_.mean():15.1f}{better:8}{worse:7}"
        )
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m decaf_tabletop.parts_check",
        description="Part IoU with and without negative points, in percent, on simulated clips. Seeds from 900000 on "
        "belong to no training.",
    )
    add = parser.add_argument
    add("--seed", type=int, default=900000, help="seed of the first clip (%(default)s)")
    add("--questions", type=int, default=100, help="number of questions (%(default)s)")
    add("--attention", choices=ATTENTIONS, default="model", help="the model's map, or the true part (%(default)s)")
    add("--negative-points", type=int, default=3, metavar="N", help="segmentation.negative_points (%(default)s)")
    add("--config", type=Path, help="parameter file (default: the table's)")
    add("--picture", type=Path, metavar="PNG", help="also draw the first questions: truth, without, with")
    args = parser.parse_args(arguments)
    for name, low in (("seed", 0), ("questions", 1), ("negative_points", 1)):
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')}: expected {low} or more, got {getattr(args, name)}")
    try:
        config: DecafConfig = load_config(args.config or resolve_path(SOURCE.default_config))
        decaf = Decaf.from_config(replace(config, {"sam2.embedding_cache": max(config.sam2.embedding_cache, FRAMES)}))
        stream = answers(decaf, args.seed, args.attention, args.negative_points)
        found = []
        for number in range(args.questions):
            found.append(next(stream))
            print(f"{number + 1} of {args.questions}: {found[-1].text}", file=sys.stderr, flush=True)
        if args.picture is not None:
            rows = np.concatenate([answer.picture for answer in found[:6]], axis=0)
            args.picture.write_bytes(cv2.imencode(".png", rows[..., ::-1])[1].tobytes())
    except (OSError, RuntimeError, ValueError) as error:
        print(f"parts_check: {error}", file=sys.stderr)
        return 1
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
