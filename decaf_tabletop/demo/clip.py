"""The demo's clip: a bag of the simulated table, and the questions asked while it plays."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from decaf_tabletop.world.bag import GroundTruth, read_ground_truth

# Made by `decaf simulate --story --compressed --out decaf_tabletop/demo/bags`.
STORY = Path(__file__).parent / "bags" / "story"


class Question(NamedTuple):
    """A query and the earliest clip time at which it is asked. An empty text clears the current query."""

    text: str
    at_s: float = 0.0


class Clip(NamedTuple):
    """The first `seconds` of the story.

    Attributes:
        seconds: played length, at most the length of the bag.
        questions: all questions of the story in order, also those after `seconds`. The last one clears the query.
        truth: the bag's ground truth.
    """

    seconds: float
    questions: tuple[Question, ...]
    truth: GroundTruth

    @property
    def due(self) -> list[str]:
        """The non-empty questions whose time lies within the played part."""
        return [question.text for question in self.questions if question.text and question.at_s <= self.seconds]


def load_clip(seconds: float | None) -> Clip:
    """The first `seconds` of the story; None plays all of it. Raises OSError or ValueError for an unreadable bag."""
    truth = read_ground_truth(STORY)
    stamps_ns = list(truth.labels)
    total_s = (stamps_ns[-1] - stamps_ns[0]) / 1e9
    questions = [Question(expression.text, expression.asked_s or 0.0) for expression in truth.expressions]
    questions.append(Question("", total_s))
    return Clip(total_s if seconds is None else min(seconds, total_s), tuple(questions), truth)
