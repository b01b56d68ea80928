"""Compares the node's answers with the ground truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from decaf_ros.evaluation.metrics import names_category
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.types import QueryState
from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.world.bag import GroundTruth
from decaf_tabletop.world.clip import TabletopObject

# Lowest mean IoU of a right answer.
_RIGHT_J = 0.6
# An object counts as masked too if more than this share of its visible area is masked.
_MASKED_SHARE = 0.5


class Verdict(NamedTuple):
    """An answer compared with the ground truth.

    Attributes:
        meant: names of the queried objects, empty if there are none.
        masked: name of the object with most of the masked pixels, then names of other masked objects.
        j: region similarity (IoU), mean over the tracked frames; None without tracked frames.
        frames: number of tracked frames.
        right: whether exactly the queried objects are masked and no wrong category is named. For a query without
            targets: whether the state is NOT_FOUND.
    """

    query_id: str
    text: str
    kind: str
    state: QueryState
    category: str
    presence: float
    meant: str
    masked: str
    j: float | None
    frames: int
    right: bool


def judge(recording: Recording, truth: GroundTruth) -> list[Verdict]:
    """One verdict for each answered query with an expression in the ground truth, in order."""
    expressions = {expression.text: expression for expression in truth.expressions}
    verdicts = []
    for state in recording.states:
        expression = expressions.get(state.query)
        if expression is None or not state.state.is_answer:
            continue
        stamps = [stamp_ns for stamp_ns, query_id in recording.tracked.items() if query_id == state.query_id]
        masks = [recording.labels[stamp_ns] > 0 for stamp_ns in stamps]
        labels = [truth.labels[stamp_ns] for stamp_ns in stamps]
        meant = np.array(expression.targets, np.uint8) + 1
        pairs = [(mask, np.isin(label, meant)) for mask, label in zip(masks, labels)]
        overlaps = [mask_iou(*pair) if pair[0].any() or pair[1].any() else 1.0 for pair in pairs]
        j = float(np.mean(overlaps)) if overlaps else None
        covered = np.sum([np.bincount(label[mask], minlength=256) for mask, label in zip(masks, labels)], axis=0)
        most = int(np.argmax(covered)) if np.any(covered) else None
        visible = np.sum([np.bincount(label.ravel(), minlength=256) for label in labels], axis=0)
        unmeant = np.setdiff1d(np.arange(1, len(truth.objects) + 1), meant)
        extra = [int(k) for k in unmeant if np.any(covered) and covered[k] > _MASKED_SHARE * visible[k]]
        only_meant = state.state == QueryState.TRACKING and most in meant and not extra
        well_tracked = only_meant and j is not None and j >= _RIGHT_J
        category_fits = names_category(state.category or None, expression.category) is not False
        masked = [k for k in dict.fromkeys([most, *extra]) if k is not None]
        verdicts.append(
            Verdict(
                query_id=state.query_id,
                text=state.query,
                kind=expression.kind,
                state=state.state,
                category=state.category,
                presence=state.presence,
                meant=", ".join(_name(truth.objects[target]) for target in expression.targets),
                masked=", ".join(_name(truth.objects[k - 1]) if k else "the surroundings" for k in masked),
                j=j,
                frames=len(stamps),
                right=well_tracked and category_fits if expression.targets else state.state == QueryState.NOT_FOUND,
            )
        )
    return verdicts


def _name(thing: TabletopObject) -> str:
    return f"{thing.color} {thing.category}"
