"""Training examples of the language model: the paper's prompts about clips, their answers, and where to attend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from decaf_ros.evaluation.datasets.clips import is_absent_kind
from decaf_ros.grounding.fusion import FRAME_KERNEL, SMOOTHING_SIGMA, VIDEO_KERNEL
from decaf_ros.grounding.prompts import (
    BACKGROUND,
    background_prompt,
    choice_prompt,
    number_prompt,
    object_prompt,
    presence_prompt,
)
from decaf_tabletop.training.mllm_model import MIXED, NO, NOTHING, ONE, SEVERAL, UNCLEAR, YES
from decaf_tabletop.training.mllm_words import OFFSETS, object_facts, surface_facts, token_owners
from decaf_tabletop.world.clip import ABSENT_EVENT, CATEGORIES, Expression, TabletopClip
from decaf_tabletop.world.events import MOVING_WORDS, read_events
from decaf_tabletop.world.expressions import MOVERS, STILL, expressions

KEY_FRAMES = 16
FRAME_GRID, VIDEO_GRID = (12, 16), (6, 8)
# Relative frequency of hard expressions: one of several objects of a category, and the only object at rest, which takes
# having seen every other object move.
HARD_WEIGHT = 3.0
# Relative frequency of token rows that show motion or a fall. Drawn unweighted, 4 of 10 falls were misread.
MOVING_WEIGHT, FALLING_WEIGHT = 3.0, 10.0

# Share of the questions about text alone that ask for the number; the others ask for the category.
NUMBER_SHARE = 0.3


@dataclass(frozen=True, eq=False)
class Visual:
    """Ground truth of T temporal rows of visual tokens.

    Attributes:
        frames: (T, 2) first and second frame of each row.
        owners: (T, h, w) int64, see `token_owners`.
        facts: (T, n + 1, FACTS) float32, of the background, then of each object.
    """

    frames: np.ndarray
    owners: np.ndarray
    facts: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """One question with its answer.

    Attributes:
        visual: "video", "image", or "" for text alone.
        row: first row of `Visual` that is shown.
        rows: number of rows.
        text: the prompt.
        short: its short wording.
        answer: one word.
        kind: kind of the expression, "background", "choice", "number" or "presence".
        owners: (rows, h, w), of the rows shown.
        focus: (rows * h * w,) float32, desired attention, see `_focus_weights`; all 0 if any attention will do.
        has_targets: `focus` lies on objects. The contrast of an object question shall show these; for a background
            question they are the objects of the categories it does not exclude.
    """

    visual: str
    row: int
    rows: int
    text: str
    short: str
    answer: str
    kind: str
    owners: np.ndarray | None = None
    focus: np.ndarray | None = None
    has_targets: bool = False

    @property
    def name(self) -> str:
        """Kind for reports, with " frame" appended for a single frame."""
        return f"{self.kind} frame" if self.visual == "image" else self.kind


def video_visual(clip: TabletopClip) -> Visual:
    """Temporal pairs of a clip's key frames, as in the video branch."""
    frames = np.linspace(0, len(clip) - 1, KEY_FRAMES).round().astype(int)
    return _visual(clip, frames.reshape(-1, 2), VIDEO_GRID)


def image_visual(clip: TabletopClip, frames: np.ndarray) -> Visual:
    """Single frames, as in the frame branch."""
    return _visual(clip, np.stack([frames, frames], axis=1), FRAME_GRID)


def _visual(clip: TabletopClip, frames: np.ndarray, grid: tuple[int, int]) -> Visual:
    owners = np.stack([token_owners(clip.labels[pair], len(clip.objects), grid) for pair in frames])
    background = surface_facts(clip)[None]
    facts = np.stack([np.concatenate([background, object_facts(clip, *pair)]) for pair in frames])
    return Visual(frames, owners, facts)


def motion_weights(visual: Visual) -> np.ndarray:
    """(T,) float64: relative sampling weight of each token row; 1 for a row without visible motion."""
    words = visual.facts[:, 1:, OFFSETS["motion"] :][..., : len(MOVING_WORDS)]
    objects = np.arange(1, words.shape[1] + 1)
    seen = (visual.owners[:, None] == objects[:, None, None]).any((2, 3))
    moving = (seen & (words[..., MOVING_WORDS.index("still")] == 0)).any(1)
    falling = (seen & (words[..., MOVING_WORDS.index("fell")] == 1)).any(1)
    return np.where(falling, FALLING_WEIGHT, np.where(moving, MOVING_WEIGHT, 1.0))


def needs_video(expression: Expression) -> bool:
    """Whether the expression is about motion, which a single frame cannot show."""
    return expression.kind in ("motion", "temporal", ABSENT_EVENT) or expression.text == MOVERS


class ExampleSampler:
    """Draws training examples about one clip."""

    def __init__(self, clip: TabletopClip, video: Visual, images: Visual) -> None:
        self.clip = clip
        self.events = read_events(clip)
        self.visuals = {"video": video, "image": images}

    def examples(self, rng: np.random.Generator, visual: str, count: int) -> list[Example]:
        """Draws `count` (>= 3) questions about the same visual tokens.

        visual: "video" (all rows or a stretch of them), "image" (one row), or "" for questions about the words alone:
            category choices, and whether an expression means one object or several.
        With visual tokens, the last question is the background question. The last but one is whether the target of some
        expression is there. All others have the answer that the background question excludes: the method's map is the
        difference, and both may attend to objects of other categories.
        """
        by_kind: dict[str, list[Expression]] = {}
        for expression in expressions(self.clip, rng, self.events):
            by_kind.setdefault(expression.kind, []).append(expression)
        if not visual:
            return [self._text_example(by_kind, rng) for _ in range(count)]
        owners = self.visuals[visual].owners
        if visual == "image":
            rows, row = 1, int(rng.integers(len(owners)))
            # A frame cannot show that nothing happened: these questions are those about events.
            by_kind.pop(ABSENT_EVENT, None)
        else:
            rows, row = len(owners), 0
            if rng.random() < 0.2:
                rows = int(rng.integers(2, len(owners)))
                row = int(rng.integers(len(owners) - rows + 1))
                # A stretch of the clip may not show the motion.
                by_kind = _filtered(by_kind, lambda expression: not needs_video(expression))
        owners = owners[row : row + rows]
        first = self._draw_expression(by_kind, rng)
        excluded = _category(first)
        same_answer = _filtered(by_kind, lambda expression: _category(expression) == excluded)
        drawn = [first, *(self._draw_expression(same_answer, rng) for _ in range(count - 3))]
        if visual == "image" and rng.random() < 0.1:
            excluded = UNCLEAR
        text = background_prompt(first.text, excluded, variant := _variant(rng))
        # Some wordings name no category.
        excluded = excluded if "{category}" in BACKGROUND[variant] else ""
        object_examples = [self._object_example(expression, visual, row, owners, excluded, rng) for expression in drawn]
        presence = self._presence_example(by_kind, visual, row, owners, rng)
        return [*object_examples, presence, self._background_example(text, visual, row, owners, excluded)]

    def _draw_expression(self, by_kind: dict[str, list[Expression]], rng: np.random.Generator) -> Expression:
        weights = np.array([KIND_WEIGHTS[kind] for kind in by_kind])
        drawn = list(by_kind.values())[int(rng.choice(len(by_kind), p=weights / weights.sum()))]
        # If another object shares the answer's category, the answer does not determine where to attend.
        categories = [thing.category for thing in self.clip.objects]
        ambiguous = [categories.count(expression.category) > len(expression.targets) for expression in drawn]
        hard = [unsure or expression.text in STILL for unsure, expression in zip(ambiguous, drawn)]
        weights = np.where(hard, HARD_WEIGHT, 1.0)
        return drawn[int(rng.choice(len(drawn), p=weights / weights.sum()))]

    def _object_example(
        self, expression: Expression, visual: str, row: int, owners: np.ndarray, excluded: str, rng: np.random.Generator
    ) -> Example:
        """excluded: category named by the background question, or "".

        For motion asked of a single frame, only that category is known: the targets are its objects, or all objects if
        no category is named.
        """
        text = object_prompt(expression.text, _variant(rng))
        short = text.split("\n")[0]
        if visual == "image" and needs_video(expression):
            possible = [
                k for k, thing in enumerate(self.clip.objects) if excluded in (thing.category, "", UNCLEAR, MIXED)
            ]
            answer, targets = UNCLEAR, tuple(k for k in possible if (owners == k + 1).any())
        elif not np.isin(owners, [k + 1 for k in expression.targets]).any():
            answer, targets = NOTHING, ()
        else:
            answer, targets = expression.category or MIXED, expression.targets
            if visual == "image" and not expression.category:
                seen = {self.clip.objects[k].category for k in targets if (owners == k + 1).any()}
                answer = seen.pop() if len(seen) == 1 else MIXED
        focus = _focus_weights(owners, targets, visual)
        return Example(visual, row, len(owners), text, short, answer, expression.kind, owners, focus, bool(targets))

    def _presence_example(
        self, by_kind: dict[str, list[Expression]], visual: str, row: int, owners: np.ndarray, rng: np.random.Generator
    ) -> Example:
        """Asked as often about things that are there as about others, of what the visual tokens can show."""
        if visual == "image":
            by_kind = _filtered(by_kind, lambda expression: not needs_video(expression))
        is_absent = rng.random() < 0.5
        by_kind = {kind: group for kind, group in by_kind.items() if is_absent_kind(kind) == is_absent} or by_kind
        expression = self._draw_expression(by_kind, rng)
        is_there = bool(np.isin(owners, [k + 1 for k in expression.targets]).any())
        text = presence_prompt(expression.text, visual)
        short = f"{expression.text} {YES} or {NO}"
        nowhere = np.zeros(owners.size, np.float32)
        return Example(
            visual, row, len(owners), text, short, YES if is_there else NO, "presence", owners, nowhere, False
        )

    def _background_example(self, text: str, visual: str, row: int, owners: np.ndarray, excluded: str) -> Example:
        """Its targets are the visible objects of the categories it does not exclude; none if it names no category."""
        short = "Describe the background."
        categories = [thing.category for thing in self.clip.objects]
        others = [k for k, category in enumerate(categories) if excluded in CATEGORIES and category != excluded]
        others = tuple(k for k in others if (owners == k + 1).any())
        focus = _focus_weights(owners, others, visual)
        answer = self.clip.surface
        return Example(visual, row, len(owners), text, short, answer, "background", owners, focus, bool(others))

    def _text_example(self, by_kind: dict[str, list[Expression]], rng: np.random.Generator) -> Example:
        if rng.random() > NUMBER_SHARE:
            return self._choice_example(self._draw_expression(by_kind, rng), rng)
        means_several = rng.random() < 0.5
        expression = self._draw_expression(
            _filtered(by_kind, lambda expression: (len(expression.targets) > 1) == means_several) or by_kind, rng
        )
        short = f"{expression.text} {ONE} or {SEVERAL}"
        answer = SEVERAL if len(expression.targets) > 1 else ONE
        return Example("", 0, 0, number_prompt(expression.text), short, answer, "number")

    def _choice_example(self, expression: Expression, rng: np.random.Generator) -> Example:
        """Candidates as the two branches would give them, with errors. The answer is the majority, the video counting
        three times; frames that say "none" are ignored if another frame agrees with the video or says "object"."""
        truth = _category(expression)
        present = [thing.category for thing in self.clip.objects]
        video = truth if rng.random() < 0.95 else present[int(rng.integers(len(present)))]
        usual = UNCLEAR if needs_video(expression) else truth
        count = int(rng.integers(4, KEY_FRAMES + 1))
        hidden = rng.uniform(0, 0.7) if rng.random() < 0.3 else 0.05
        draws = rng.random(count)
        frames = [
            NOTHING if draw < hidden else (present[int(rng.integers(len(present)))] if draw > 0.9 else usual)
            for draw in draws
        ]
        agreed = video != NOTHING and (video in frames or UNCLEAR in frames)
        votes = Counter(name for name in frames if name != UNCLEAR and not (agreed and name == NOTHING))
        votes[video] += 3
        answer = votes.most_common(1)[0][0]
        # Variant v3 lists no candidates.
        variant = ("original", "original", "v1", "v2")[int(rng.integers(4))]
        text = choice_prompt(expression.text, (video, *frames), variant)
        short = ", ".join((video, *frames))
        return Example("", 0, 0, text, short, answer, "choice")


KIND_WEIGHTS = {
    "explicit": 1.0,
    "attribute": 1.0,
    "motion": 6.0,
    "size": 1.2,
    "relation": 3.0,
    "several": 2.0,
    "temporal": 4.0,
    "absent": 1.2,
    ABSENT_EVENT: 1.2,
}


def _category(expression: Expression) -> str:
    """Answer given the whole clip."""
    return expression.category or (MIXED if expression.targets else NOTHING)


def _filtered(by_kind: dict[str, list[Expression]], keep: Callable[[Expression], bool]) -> dict[str, list[Expression]]:
    kept = {kind: [expression for expression in group if keep(expression)] for kind, group in by_kind.items()}
    return {kind: group for kind, group in kept.items() if group}


def _variant(rng: np.random.Generator) -> str:
    return "original" if rng.random() < 0.7 else ("v1", "v2", "v3")[int(rng.integers(3))]


def _focus_weights(owners: np.ndarray, targets: tuple[int, ...], visual: str) -> np.ndarray:
    """(rows * h * w,) float32: relative desired attention; on the background if there are no targets.

    After the method's smoothing, every target peaks at 1 in every row. Smoothing lowers small targets, so their tokens
    get more weight.
    """
    focus = np.zeros(owners.shape, np.float32)
    kernel = (VIDEO_KERNEL if visual == "video" else FRAME_KERNEL,) * 2
    for row, row_owners in zip(focus, owners):
        for k in [k + 1 for k in targets] or [0]:
            owned = (row_owners == k).astype(np.float32)
            if owned.any():
                row += owned / cv2.GaussianBlur(owned, kernel, SMOOTHING_SIGMA, borderType=cv2.BORDER_CONSTANT).max()
    return focus.reshape(-1)
