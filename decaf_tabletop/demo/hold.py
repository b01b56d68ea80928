"""Checks that answers are held: each question about the story bag is followed to the end of the bag.

python -m decaf_tabletop.demo.hold [--set regrounding.policy=off] [--query TEXT] [--compare-off]

The exit status is 1 if an answer is not held, or costs too much more than without later groundings (--compare-off).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np

from decaf_ros.cli.options import add_config_arguments, with_arguments
from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.long import CountingDecaf
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
# An answer is held if this share of the frames is, and at most that share shows something else.
HELD_SHARE, ELSEWHERE_SHARE = 0.97, 0.01
# CPU time over all questions, of that with `regrounding.policy: off`.
MOST_CPU = 1.3


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

    @property
    def is_held(self) -> bool:
        return (
            0 < self.frames and self.held >= HELD_SHARE * self.frames and self.elsewhere <= ELSEWHERE_SHARE * self.total
        )


def follow(decaf: Decaf, frames: Sequence[Frame], truth: GroundTruth, question: Expression) -> Held:
    """Plays all frames and asks the question at its time. Raises RuntimeError if a grounding or tracking fails."""
    outputs: list[Output] = []
    counting = CountingDecaf(decaf)
    segmenter = OnlineSegmenter(cast(Decaf, counting), outputs.append, want_heatmaps=lambda: False)
    start_ns, asked_s = frames[0].stamp_ns, question.asked_s or 0.0
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
    return Held(*counts.sum(axis=0).tolist(), len(results), counting.groundings, cpu_s)


def _score(result: FrameResult, truth: np.ndarray) -> tuple[bool, bool, bool, bool]:
    """Counted, held, elsewhere, wrongly tracked: of one frame."""
    mask = result.labels > 0
    iou, visible = mask_iou(mask, truth), np.count_nonzero(truth)
    counted = visible >= MIN_VISIBLE_PX
    elsewhere = bool(mask.any()) and np.count_nonzero(mask & truth) < np.count_nonzero(mask) / 2
    is_tracked = any(target.state is TargetState.TRACKED for target in result.targets)
    return counted, counted and iou >= HELD_IOU, elsewhere, is_tracked and (iou < 0.5 if counted else elsewhere)


def main() -> int:
    """Prints a row per question. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_config_arguments(parser, " (default: tabletop.yaml)")
    parser.add_argument("--query", default="", help="only this question")
    parser.add_argument("--compare-off", action="store_true", help="also measure with regrounding.policy=off")
    args = parser.parse_args()
    default = resolve_path("package://decaf_tabletop/config/tabletop.yaml")
    decaf = Decaf.from_config(with_arguments(load_config(args.config or default, node=args.node), args))
    truth = read_ground_truth(STORY)
    with BagReader(STORY) as reader:
        frames = list(reader.frames(COMPRESSED_TOPIC))
    print(_row("question", "held", "", "elsewhere", "wrongly tracked", "groundings", "CPU s", "of off"))
    off = replace(decaf.config, {"regrounding.policy": "off"})
    all_held, cpu_s, off_cpu_s = True, 0.0, 0.0
    for question in truth.expressions:
        if question.targets and args.query in ("", question.text):
            held = _fresh(decaf, decaf.config, frames, truth, question)
            all_held &= held.is_held
            cpu_s += held.cpu_s
            ratio = ""
            if args.compare_off:
                without = _fresh(decaf, off, frames, truth, question)
                off_cpu_s += without.cpu_s
                ratio = f"{held.cpu_s / without.cpu_s:.2f}"
            share = f"{100 * held.held / max(held.frames, 1):.1f} %"
            counts = f"{held.held} of {held.frames}", share, f"{held.elsewhere} of {held.total}"
            cells = *counts, held.wrongly_tracked, held.groundings, f"{held.cpu_s:.1f}", ratio
            print(_row(question.text, *cells), flush=True)
    if args.compare_off:
        print(f"CPU time: {cpu_s / off_cpu_s:.2f} of that with regrounding.policy: off (at most {MOST_CPU})")
    return int(not all_held or (args.compare_off and cpu_s > MOST_CPU * off_cpu_s))


def _fresh(
    decaf: Decaf, config: DecafConfig, frames: Sequence[Frame], truth: GroundTruth, question: Expression
) -> Held:
    """As `follow`, with this configuration and without caches of earlier runs."""
    before, decaf.config = decaf.config, config
    decaf.release()
    decaf.sam2.forget()
    try:
        return follow(decaf, frames, truth, question)
    finally:
        decaf.config = before


def _row(question: str, *cells: object) -> str:
    return f"{question:<28}" + "".join(f"{cell!s:>16}" for cell in cells).rstrip()


if __name__ == "__main__":
    sys.exit(main())
