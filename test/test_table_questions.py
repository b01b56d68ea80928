"""Three questions at once on the table's clip and models have the masks of three that are asked one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from decaf_ros.config import replace
from decaf_ros.io.bags import BagReader
from decaf_ros.io.parameter_files import load_config
from decaf_ros.online.segmenter import OnlineSegmenter
from decaf_ros.pipeline import Decaf
from decaf_ros.types import FrameResult, Query, QueryEvent, QueryState
from decaf_tabletop.world.bag import COMPRESSED_TOPIC

TABLE = Path(__file__).parents[1] / "decaf_tabletop"
QUERIES = ("the purple cone", "the object that moved right", "the largest object")
# Frames of the bag: the questions are asked after the first ones, in which a ball rolls.
BEFORE, ALL = 63, 67


@pytest.fixture(scope="module")
def decaf() -> Decaf:
    config = load_config(TABLE / "config" / "tabletop.yaml")
    return Decaf.from_config(replace(config, {"queries.mode": "add"}))


@pytest.fixture(scope="module")
def frames():
    with BagReader(TABLE / "demo" / "bags" / "story") as reader:
        return [frame for frame, _ in zip(reader.frames(COMPRESSED_TOPIC), range(ALL))]


def test_masks_are_those_of_each_question_alone(decaf, frames):
    together = watch(decaf, frames, QUERIES)
    for query in QUERIES:
        alone = watch(decaf, frames, [query])
        assert len(alone) == len(together) == ALL - BEFORE
        for ours, theirs in zip(together, alone):
            mine = [target for target in ours.targets if f"q{query}" in target.query_ids]
            assert len(mine) == len(theirs.targets) > 0, query
            one, other = (np.any([target.mask for target in targets], axis=0) for targets in (mine, theirs.targets))
            assert other.sum() > 50
            # Rounding of the maps decides pixels at the edge.
            assert (one & other).sum() >= 0.99 * (one | other).sum(), query


def watch(decaf: Decaf, frames, queries) -> list[FrameResult]:
    """Results of the frames after the answers to these questions, which are asked at one moment."""
    decaf.release()
    outputs: list = []
    online = OnlineSegmenter(decaf, outputs.append, live=True)
    for frame in frames[:BEFORE]:
        online.observe(frame)
    for query in queries:
        online.ask(Query(f"q{query}", query))
    while online.advance():
        pass
    answers = [event.state for event in outputs if isinstance(event, QueryEvent) and event.state.is_answer]
    assert answers == [QueryState.TRACKING] * len(queries)
    del outputs[:]
    for frame in frames[BEFORE:]:
        online.observe(frame)
        while online.advance():
            pass
    return [one for one in outputs if isinstance(one, FrameResult)]
