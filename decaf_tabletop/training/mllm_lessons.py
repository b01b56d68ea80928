"""What the demo language model is asked: the paper's prompts about clips, with answers and where to look."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np

from decaf_ros.grounding.fusion import FRAME_KERNEL, SMOOTHING_SIGMA, VIDEO_KERNEL
from decaf_ros.grounding.prompts import BACKGROUND, background_prompt, choice_prompt, object_prompt
from decaf_tabletop.training.mllm_model import MIXED, NOTHING, UNCLEAR
from decaf_tabletop.training.mllm_words import OFFSETS, object_facts, surface_facts, token_owners
from decaf_tabletop.world.clip import CATEGORIES, Expression, TabletopClip
from decaf_tabletop.world.events import MOVING_WORDS, read_events
from decaf_tabletop.world.expressions import MOVERS, STILL, expressions

KEY_FRAMES = 16
FRAME_GRID, VIDEO_GRID = (12, 16), (6, 8)
# How much oftener a question is asked that names one of several objects of a category, or the only one that rests: for
# that, every other object has to be seen moving somewhere.
HARD = 3.0
MOVING, FALLING = 3.0, 10.0


@dataclass(frozen=True, eq=False)
class Visual:
    """T rows of visual tokens with what is true about them. rows: (T, 2) first and second frame of each row.
    owners: (T, h, w), see `token_owners`. facts: (T, n + 1, FACTS): of the surroundings, then of each object."""

    rows: np.ndarray
    owners: np.ndarray
    facts: np.ndarray


@dataclass(frozen=True, eq=False)
class Lesson:
    """One question. visual: "video", "image" or "" for text alone. row: first visual row, rows: how many.
    owners: (rows, h, w), of these rows. look: (rows * h * w,), see `_look`. contrasted: there are targets, and they are
    what the contrast with the background's question is to show; of that question itself: there are objects for it to
    look at."""

    visual: str
    row: int
    rows: int
    text: str
    short: str
    answer: str
    kind: str
    owners: np.ndarray | None = None
    look: np.ndarray | None = None
    contrasted: bool = False

    @property
    def name(self) -> str:
        """For reports: what it is about, with " frame" where it asks about a single one."""
        return f"{self.kind} frame" if self.visual == "image" else self.kind


def video_visual(clip: TabletopClip) -> Visual:
    """The temporal pairs of a clip's key frames, as the video branch sees them."""
    frames = np.linspace(0, len(clip) - 1, KEY_FRAMES).round().astype(int)
    return _visual(clip, frames.reshape(-1, 2), VIDEO_GRID)


def image_visual(clip: TabletopClip, frames: np.ndarray) -> Visual:
    """Single frames, as the frame branch sees them."""
    return _visual(clip, np.stack([frames, frames], axis=1), FRAME_GRID)


def _visual(clip: TabletopClip, rows: np.ndarray, grid: tuple[int, int]) -> Visual:
    owners = np.stack([token_owners(clip.labels[row], len(clip.objects), grid) for row in rows])
    around = surface_facts(clip)[None]
    facts = np.stack([np.concatenate([around, object_facts(clip, *row)]) for row in rows])
    return Visual(rows, owners, facts)


def liveliness(visual: Visual) -> np.ndarray:
    """(T,) float64, of each row of tokens: how much oftener it is to be shown than one in which all rests."""
    words = visual.facts[:, 1:, OFFSETS["motion"] :][..., : len(MOVING_WORDS)]
    objects = np.arange(1, words.shape[1] + 1)
    seen = (visual.owners[:, None] == objects[:, None, None]).any((2, 3))
    moving = (seen & (words[..., MOVING_WORDS.index("still")] == 0)).any(1)
    falling = (seen & (words[..., MOVING_WORDS.index("fell")] == 1)).any(1)
    return np.where(falling, FALLING, np.where(moving, MOVING, 1.0))


def needs_video(asked: Expression) -> bool:
    """One frame shows no motion."""
    return asked.kind in ("motion", "temporal") or asked.text == MOVERS


class Teacher:
    """Draws questions about one clip."""

    def __init__(self, clip: TabletopClip, video: Visual, images: Visual) -> None:
        self.clip = clip
        self.events = read_events(clip)
        self.visuals = {"video": video, "image": images}

    def lessons(self, rng: np.random.Generator, visual: str, count: int) -> list[Lesson]:
        """Questions about one and the same: `visual` "video" (all of it or some rows), "image" (one of them), or "",
        the choice of a category from text alone. Of what is seen the last question is the background's, and all others
        have the answer that it excludes: the method's map is the difference, and what has another category may be
        looked at in both."""
        by_kind: dict[str, list[Expression]] = {}
        for one in expressions(self.clip, rng, self.events):
            by_kind.setdefault(one.kind, []).append(one)
        if not visual:
            return [self._choice(self._ask(by_kind, rng), rng) for _ in range(count)]
        owners = self.visuals[visual].owners
        if visual == "image":
            rows, row = 1, int(rng.integers(len(owners)))
        else:
            rows, row = len(owners), 0
            if rng.random() < 0.2:
                rows = int(rng.integers(2, len(owners)))
                row = int(rng.integers(len(owners) - rows + 1))
                # A part of the clip need not show what is asked for.
                kept = {kind: [one for one in said if not needs_video(one)] for kind, said in by_kind.items()}
                by_kind = {kind: said for kind, said in kept.items() if said}
        owners = owners[row : row + rows]
        about = self._ask(by_kind, rng)
        told = _category(about)
        fitting = {kind: [one for one in said if _category(one) == told] for kind, said in by_kind.items()}
        fitting = {kind: said for kind, said in fitting.items() if said}
        asked = [about, *(self._ask(fitting, rng) for _ in range(count - 2))]
        if visual == "image" and rng.random() < 0.1:
            told = UNCLEAR
        text = background_prompt(about.text, told, variant := _variant(rng))
        known = told if "{category}" in BACKGROUND[variant] else ""
        found = [self._object(one, visual, row, owners, known, rng) for one in asked]
        return [*found, self._background(text, visual, row, owners, known)]

    def _ask(self, by_kind: dict[str, list[Expression]], rng: np.random.Generator) -> Expression:
        weights = np.array([_WEIGHTS[kind] for kind in by_kind])
        said = list(by_kind.values())[int(rng.choice(len(by_kind), p=weights / weights.sum()))]
        # Where another object has the answer's category, the answer does not tell where to look.
        categories = [one.category for one in self.clip.objects]
        alike = [categories.count(one.category) > len(one.targets) for one in said]
        weights = np.array([HARD if like or one.text in STILL else 1.0 for like, one in zip(alike, said)])
        return said[int(rng.choice(len(said), p=weights / weights.sum()))]

    def _object(
        self, asked: Expression, visual: str, row: int, owners: np.ndarray, told: str, rng: np.random.Generator
    ) -> Lesson:
        """told: the category that the background's question names, if it does. Of what a frame cannot show that is all
        that is known: the contrast is to show what has it, and all objects alike where it names none of them."""
        text = object_prompt(asked.text, _variant(rng))
        short = text.split("\n")[0]
        if visual == "image" and needs_video(asked):
            named = [k for k, one in enumerate(self.clip.objects) if told in (one.category, "", UNCLEAR, MIXED)]
            answer, targets = UNCLEAR, tuple(k for k in named if (owners == k + 1).any())
        elif not np.isin(owners, [k + 1 for k in asked.targets]).any():
            answer, targets = NOTHING, ()
        else:
            answer, targets = asked.category or MIXED, asked.targets
            if visual == "image" and not asked.category:
                seen = {self.clip.objects[k].category for k in targets if (owners == k + 1).any()}
                answer = seen.pop() if len(seen) == 1 else MIXED
        look = _look(owners, targets, visual)
        return Lesson(visual, row, len(owners), text, short, answer, asked.kind, owners, look, bool(targets))

    def _background(self, text: str, visual: str, row: int, owners: np.ndarray, told: str) -> Lesson:
        """Looks at what it does not exclude: where it names a category, at the objects of others."""
        short = "Describe the background."
        categories = [one.category for one in self.clip.objects]
        others = [k for k, category in enumerate(categories) if told in CATEGORIES and category != told]
        others = tuple(k for k in others if (owners == k + 1).any())
        look = _look(owners, others, visual)
        answer = self.clip.surface
        return Lesson(visual, row, len(owners), text, short, answer, "background", owners, look, bool(others))

    def _choice(self, asked: Expression, rng: np.random.Generator) -> Lesson:
        """Candidates as the two branches would give them, with mistakes; the answer is the likeliest of them. Frames in
        which the target cannot be seen say so, and count for nothing where another agrees with the video."""
        truth = _category(asked)
        present = [one.category for one in self.clip.objects]
        video = truth if rng.random() < 0.95 else present[int(rng.integers(len(present)))]
        usual = UNCLEAR if needs_video(asked) else truth
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
        # Variant v3 names no candidates.
        text = choice_prompt(asked.text, (video, *frames), ("original", "original", "v1", "v2")[int(rng.integers(4))])
        short = ", ".join((video, *frames))
        return Lesson("", 0, 0, text, short, answer, "choice")


_WEIGHTS = {
    "explicit": 1.0,
    "attribute": 1.0,
    "motion": 6.0,
    "size": 1.2,
    "relation": 3.0,
    "several": 2.0,
    "temporal": 4.0,
    "absent": 1.2,
}


def _category(asked: Expression) -> str:
    """What is to be answered where the whole clip is seen."""
    return asked.category or (MIXED if asked.targets else NOTHING)


def _variant(rng: np.random.Generator) -> str:
    return "original" if rng.random() < 0.7 else ("v1", "v2", "v3")[int(rng.integers(3))]


def _look(owners: np.ndarray, targets: tuple[int, ...], visual: str) -> np.ndarray:
    """(rows * h * w,) float32: where to look, and how much in relation; at the surroundings without a target.

    Every target in every row of tokens shall come out as high as any other after the method's smoothing, which leaves
    less of what is small: otherwise the map would be that of the smallest target, in the row where it is smallest.
    """
    look = np.zeros(owners.shape, np.float32)
    kernel = (VIDEO_KERNEL if visual == "video" else FRAME_KERNEL,) * 2
    for row, whose in zip(look, owners):
        for k in [k + 1 for k in targets] or [0]:
            mine = (whose == k).astype(np.float32)
            if mine.any():
                row += mine / cv2.GaussianBlur(mine, kernel, SMOOTHING_SIGMA, borderType=cv2.BORDER_CONSTANT).max()
    return look.reshape(-1)
