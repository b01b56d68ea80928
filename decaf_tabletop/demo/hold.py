"""Checks that answers are held: each question about the story bag is followed to the end of the bag.

python -m decaf_tabletop.demo.hold [--set regrounding.policy=off] [--query TEXT]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from decaf_ros.cli.options import add_config_arguments, with_arguments
from decaf_ros.io.bags import BagReader
from decaf_ros.io.parameter_files import load_config
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.resources import resolve_path
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.types import Frame, FrameResult, Output, Query, QueryEvent, QueryState, TargetState
from decaf_tabletop.demo.clip import STORY
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, GroundTruth, read_ground_truth
from decaf_tabletop.world.clip import Expression

# Counted from this long after the question, on frames on which so much of the target is visible.
SETTLED_S, MIN_VISIBLE_PX = 1.0, 100
HELD_IOU = 0.8


class Held(NamedTuple):
    """How one answer was held.

    Attributes:
        frames: counted frames.
        held: those with IoU >= HELD_IOU.
        elsewhere: frames on which most masked pixels lie on no target, of all frames after SETTLED_S.
        wrongly_tracked: frames with a TRACKED state and an IoU below 0.5, or a mask of an invisible target.
        total: all frames after SETTLED_S.
        groundings: number of windows that were grounded.
        cpu_s: process time of the whole run.
    """

    frames: int
    held: int
    elsewhere: int
    wrongly_tracked: int
    total: int
    groundings: int
    cpu_s: float


def follow(decaf: Decaf, frames: Sequence[Frame], truth: GroundTruth, question: Expression) -> Held:
    """Plays all frames and asks the question at its time. Raises RuntimeError if a grounding or tracking fails."""
    outputs: list[Output] = []
    segmenter = OnlineSegmenter(decaf, outputs.append, want_heatmaps=lambda: False)
    start_ns, asked_s = frames[0].stamp_ns, question.asked_s or 0.0
    groundings = _count_calls(decaf)
    began_s, asked = time.process_time(), False
    for frame in frames:
        segmenter.observe(frame)
        if not asked and frame.stamp_ns - start_ns >= asked_s * 1e9:
            segmenter.ask(Query("q", question.text))
            asked = True
    cpu_s = time.process_time() - began_s
    if any(isinstance(output, QueryEvent) and output.state is QueryState.FAILED for output in outputs):
        raise RuntimeError(f"{question.text!r}: the query failed")
    targets = np.array(question.targets, np.uint8) + 1
    results = [
        output
        for output in outputs
        if isinstance(output, FrameResult) and output.frame.stamp_ns - start_ns >= (asked_s + SETTLED_S) * 1e9
    ]
    counts = np.array([_score(result, np.isin(truth.labels[result.frame.stamp_ns], targets)) for result in results])
    return Held(*counts.sum(axis=0).tolist(), len(results), len(groundings), cpu_s)


def _score(result: FrameResult, truth: np.ndarray) -> tuple[bool, bool, bool, bool]:
    """Counted, held, elsewhere, wrongly tracked: of one frame."""
    mask = result.labels > 0
    iou, visible = mask_iou(mask, truth), np.count_nonzero(truth)
    counted = visible >= MIN_VISIBLE_PX
    elsewhere = bool(mask.any()) and np.count_nonzero(mask & truth) < np.count_nonzero(mask) / 2
    is_tracked = any(target.state is TargetState.TRACKED for target in result.targets)
    return counted, counted and iou >= HELD_IOU, elsewhere, is_tracked and (iou < 0.5 if counted else elsewhere)


def _count_calls(decaf: Decaf) -> list[str]:
    """Makes `decaf.segment` count its calls in the returned list, which is emptied first."""
    calls: list[str] = []
    segment = type(decaf).segment

    def counted(window, query, *rest, **options):
        calls.append(query)
        return segment(decaf, window, query, *rest, **options)

    decaf.segment = counted  # type: ignore[method-assign]
    return calls


def main() -> int:
    """Prints a row per question."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, " (default: tabletop.yaml)")
    parser.add_argument("--query", default="", help="only this question")
    args = parser.parse_args()
    default = resolve_path("package://decaf_tabletop/config/tabletop.yaml")
    decaf = Decaf.from_config(with_arguments(load_config(args.config or default, node=args.node), args))
    truth = read_ground_truth(STORY)
    with BagReader(STORY) as reader:
        frames = list(reader.frames(COMPRESSED_TOPIC))
    print(_row("question", "held", "", "elsewhere", "wrongly tracked", "groundings", "CPU s"))
    for question in truth.expressions:
        if question.targets and args.query in ("", question.text):
            decaf.release()
            held = follow(decaf, frames, truth, question)
            share = f"{100 * held.held / max(held.frames, 1):.1f} %"
            counts = f"{held.held} of {held.frames}", share, f"{held.elsewhere} of {held.total}"
            print(_row(question.text, *counts, held.wrongly_tracked, held.groundings, f"{held.cpu_s:.1f}"), flush=True)
    return 0


def _row(question: str, *cells: object) -> str:
    return f"{question:<28}" + "".join(f"{cell!s:>16}" for cell in cells)


if __name__ == "__main__":
    sys.exit(main())
