"""Whether the node's answers were right, where the clip comes with the truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from decaf_ros.evaluation.metrics import says
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.types import QueryState
from decaf_tabletop.demo.recording import Recording
from decaf_tabletop.world.bag import GroundTruth
from decaf_tabletop.world.clip import TabletopObject

# From which mean overlap on the object that is meant is masked, not just touched.
_RIGHT_J = 0.6
# Of what is seen of an object that is not meant: from where on it counts as masked too.
_TAKEN_ALONG = 0.5


class Verdict(NamedTuple):
    """An answer and the truth. meant, masked: names of objects, empty for none; masked: on which most of the masks'
    pixels lie, and what else is masked that is not meant. frames: on which it was tracked; j: region similarity, mean
    over these, None where there are none. right: the right objects are masked, and no wrong category is named."""

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
    """Of every answered query that the truth knows, in order."""
    known = {said.text: said for said in truth.expressions}
    found = []
    for state in recording.states:
        said = known.get(state.query)
        if said is None or not state.state.is_answer:
            continue
        stamps = [stamp_ns for stamp_ns, query_id in recording.tracked.items() if query_id == state.query_id]
        masks = [recording.labels[stamp_ns] > 0 for stamp_ns in stamps]
        labels = [truth.labels[stamp_ns] for stamp_ns in stamps]
        meant = np.array(said.targets, np.uint8) + 1
        pairs = [(mask, np.isin(label, meant)) for mask, label in zip(masks, labels)]
        overlaps = [mask_iou(*pair) if pair[0].any() or pair[1].any() else 1.0 for pair in pairs]
        j = float(np.mean(overlaps)) if overlaps else None
        covered = np.sum([np.bincount(label[mask], minlength=256) for mask, label in zip(masks, labels)], axis=0)
        most = int(np.argmax(covered)) if np.any(covered) else None
        visible = np.sum([np.bincount(label.ravel(), minlength=256) for label in labels], axis=0)
        others = np.setdiff1d(np.arange(1, len(truth.objects) + 1), meant)
        along = [int(k) for k in others if np.any(covered) and covered[k] > _TAKEN_ALONG * visible[k]]
        tracked = state.state == QueryState.TRACKING and most in meant and not along and j >= _RIGHT_J
        named = says(state.category or None, said.category) is not False
        masked = [k for k in dict.fromkeys([most, *along]) if k is not None]
        found.append(
            Verdict(
                query_id=state.query_id,
                text=state.query,
                kind=said.kind,
                state=state.state,
                category=state.category,
                presence=state.presence,
                meant=", ".join(_name(truth.objects[target]) for target in said.targets),
                masked=", ".join(_name(truth.objects[k - 1]) if k else "the surroundings" for k in masked),
                j=j,
                frames=len(stamps),
                right=tracked and named if said.targets else state.state == QueryState.NOT_FOUND,
            )
        )
    return found


def _name(thing: TabletopObject) -> str:
    return f"{thing.color} {thing.category}"
