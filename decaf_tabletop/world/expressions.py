"""Referring expressions of graded difficulty about a tabletop clip, with their targets.

The ground truth decides, with margins: an expression is generated only if exactly one reading is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from decaf_tabletop.world.clip import ABSENT_EVENT, CATEGORIES, COLORS, SIZES, Expression, TabletopClip
from decaf_tabletop.world.events import Events, read_events

# A relation holds beyond RELATION_M metres and fails up to RELATION_CLEAR_M; between them it is ambiguous.
RELATION_M, RELATION_CLEAR_M = 0.06, 0.0
# Share of the frames in which a target must be visible.
MIN_VISIBLE_SHARE = 0.5

NAMED = ("the {}", "where is the {}?", "find the {}", "the {} on the table")
ONE = ("the {} object", "the {} one", "the {} thing on the table", "which object is {}?")
LARGE = ("the large object", "the largest object", "the biggest thing on the table")
SMALL = ("the small object", "the smallest object", "the smallest thing on the table")
MOVING = ("the one that is moving", "the moving object", "which object moves?", "the object that moved")
MOVERS = "the moving objects"
STILL = ("the object that did not move", "the one that stays still")
TOWARDS = {
    "left": ("the object that moved left", "the one moving to the left"),
    "right": ("the object that moved right", "the one moving to the right"),
    "closer": ("the object that moved closer", "the one that is coming closer"),
    "away": ("the object that moved away", "the one that is going away"),
}
FELL = ("the one that was dropped", "the object that fell", "what was dropped on the table?")
STOPPED = ("the one that stopped", "the object that moved and then stopped")
RELATIONS = {
    "left": ("the object left of the {}", "the thing to the left of the {}"),
    "right": ("the object right of the {}", "the thing to the right of the {}"),
    "behind": ("the object behind the {}", "what is behind the {}?"),
    "front": ("the object in front of the {}", "what is in front of the {}?"),
}
# The parts are those in `decaf_tabletop.world.parts`.
PART_WORDINGS = ("the handle of the {}", "the neck of the {}")
PLURALS = {category: f"{category}s" for category in CATEGORIES}


def expressions(clip: TabletopClip, rng: np.random.Generator, events: Events | None = None) -> list[Expression]:
    """At most one expression per fact about this clip, in random wording.

    events: `read_events(clip)`, if already computed. The order is that of KINDS; the kinds present depend on the clip.
    The same clip and generator state give the same list.
    """
    builder = _ExpressionBuilder(clip, events or read_events(clip), rng)
    candidates = [
        *builder.explicit(),
        *builder.attribute(),
        *builder.motion(),
        *builder.size(),
        *builder.relation(),
        *builder.several(),
        *builder.temporal(),
    ]
    visible_share = builder.events.visible_share
    kept = [
        expression
        for expression in candidates
        if all(visible_share[target] >= MIN_VISIBLE_SHARE for target in expression.targets)
    ]
    return [*kept, *builder.absent(), *builder.absent_events()]


def expressions_of(clip: TabletopClip) -> list[Expression]:
    """The expressions of a clip that was made from a seed; the wording depends only on the clip."""
    # Must differ from the scene's key [seed, attempt, crossing]. Trailing zeros give the same stream, hence the 1.
    return expressions(clip, np.random.default_rng([clip.seed, 0, 0, 0, 1]))


class _ExpressionBuilder:
    """Generates the expressions of one clip; one method per kind."""

    def __init__(self, clip: TabletopClip, events: Events, rng: np.random.Generator) -> None:
        self.objects = clip.objects
        self.events = events
        self.rng = rng
        self.indices = range(len(clip.objects))
        self.key = (abs(clip.seed), 0, 0, int(clip.stamps_ns[0]) // 1_000_000)
        self.names = [(f"{thing.color} {thing.category}") for thing in clip.objects]

    def explicit(self) -> Iterator[Expression]:
        categories, names = Counter(thing.category for thing in self.objects), Counter(self.names)
        for k, thing in enumerate(self.objects):
            wordings = [
                name
                for name, unique in (
                    (thing.category, categories[thing.category] == 1),
                    (self.names[k], names[self.names[k]] == 1),
                    (f"{thing.size} {self.names[k]}", True),
                )
                if unique
            ]
            yield self._expression("explicit", self._pick(NAMED).format(self._pick(wordings)), k)

    def attribute(self) -> Iterator[Expression]:
        for k in self._unique([thing.color for thing in self.objects]):
            yield self._expression("attribute", self._pick(ONE).format(self.objects[k].color), k)

    def size(self) -> Iterator[Expression]:
        for k in self._unique([thing.size for thing in self.objects]):
            yield self._expression("size", self._pick(LARGE if self.objects[k].size == "large" else SMALL), k)

    def motion(self) -> Iterator[Expression]:
        events = self.events
        movers = np.flatnonzero(events.moved)
        unambiguous = (events.moved | events.stayed).all()
        if len(movers) == 1 and unambiguous:
            yield self._expression("motion", self._pick(MOVING), movers[0])
        if events.stayed.sum() == 1 and len(movers) == len(self.objects) - 1:
            yield self._expression("motion", self._pick(STILL), np.flatnonzero(events.stayed)[0])
        all_named = all(events.direction[k] or events.fell[k] for k in movers)
        for k in self._unique(list(events.direction)) if all_named and unambiguous else ():
            if events.direction[k]:
                yield self._expression("motion", self._pick(TOWARDS[events.direction[k]]), k)

    def temporal(self) -> Iterator[Expression]:
        events = self.events
        if events.fell.sum() == 1:
            yield self._expression("temporal", self._pick(FELL), np.flatnonzero(events.fell)[0])
        movers = events.moved & ~events.fell
        if events.fell.any() or not (events.moved | events.stayed).all():
            return
        # Every other mover must still move at the end, or it could count as stopped too.
        if events.stopped.sum() == 1 and events.moves_at_end[movers & ~events.stopped].all():
            yield self._expression("temporal", self._pick(STOPPED), np.flatnonzero(events.stopped)[0])

    def relation(self) -> Iterator[Expression]:
        if self.events.fell.any():
            return
        categories = Counter(thing.category for thing in self.objects)
        for anchor in self.indices:
            if categories[self.objects[anchor].category] > 1:
                continue
            name = self._pick((self.objects[anchor].category, self.names[anchor]))
            offset = self.events.table_xy - self.events.table_xy[:, anchor, None]  # (F, n, 2), right and away
            for relation, axis, sign in (("left", 0, -1), ("right", 0, 1), ("behind", 1, 1), ("front", 1, -1)):
                along = sign * offset[..., axis]
                holds = (along > RELATION_M).all(axis=0)
                fails = (along <= RELATION_CLEAR_M).all(axis=0)
                if holds.sum() == 1 and (holds | fails).all():
                    text = self._pick(RELATIONS[relation]).format(name)
                    yield self._expression("relation", text, np.flatnonzero(holds)[0])

    def several(self) -> Iterator[Expression]:
        properties: tuple[tuple[list[str], Callable[[str], str]], ...] = (
            ([thing.color for thing in self.objects], lambda color: f"the {color} objects"),
            ([thing.category for thing in self.objects], lambda category: f"the {PLURALS[category]}"),
            ([thing.size for thing in self.objects], lambda size: f"the {size} objects"),
        )
        for values, plural in properties:
            for value, count in Counter(values).items():
                if 2 <= count < len(self.objects):
                    yield self._expression("several", plural(value), *(k for k in self.indices if values[k] == value))
        movers = np.flatnonzero(self.events.moved)
        if 2 <= len(movers) < len(self.objects) and (self.events.moved | self.events.stayed).all():
            yield self._expression("several", MOVERS, *movers)

    def absent(self) -> list[Expression]:
        """Without a target: a colour, a category, and a colour-category pair with at least one half present."""
        colors, categories = {thing.color for thing in self.objects}, {thing.category for thing in self.objects}
        color = self._pick([name for name in COLORS if name not in colors])
        category = self._pick([name for name in CATEGORIES if name not in categories])
        pairs = [f"{a} {b}" for a in COLORS for b in CATEGORIES if (a in colors or b in categories)]
        pair = self._pick([name for name in pairs if name not in self.names])
        texts = (self._pick(ONE).format(color), *(self._pick(NAMED).format(name) for name in (category, pair)))
        return [Expression(text, "absent", (), "") for text in texts]

    def absent_events(self) -> list[Expression]:
        """Events that did not happen to any object, at most one wording of each."""
        events = self.events
        if events.fell.any() or not (events.moved | events.stayed).all():
            return []
        wordings = [FELL]
        if events.moves_at_end[events.moved].all():
            wordings.append(STOPPED)
        if events.stayed.all():
            wordings.append(MOVING)
        if all(events.direction[k] for k in np.flatnonzero(events.moved)):
            wordings += [texts for name, texts in TOWARDS.items() if name not in events.direction]
        # Its own stream: the wording of all other expressions of a seed stays as it was.
        rng = np.random.default_rng([*self.key, 4])
        return [Expression(texts[int(rng.integers(len(texts)))], ABSENT_EVENT, (), "") for texts in wordings]

    def _expression(self, kind: str, text: str, *targets: int) -> Expression:
        categories = {self.objects[k].category for k in targets}
        return Expression(text, kind, tuple(int(k) for k in targets), categories.pop() if len(categories) == 1 else "")

    def _pick(self, options: list[str] | tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _unique(self, values: list[str]) -> list[int]:
        counts = Counter(values)
        return [k for k, value in enumerate(values) if counts[value] == 1]


# Every word that an expression can contain, for building a vocabulary.
WORDINGS = (
    *NAMED,
    *ONE,
    *LARGE,
    *SMALL,
    *MOVING,
    *STILL,
    *FELL,
    *STOPPED,
    *(text for texts in (*TOWARDS.values(), *RELATIONS.values()) for text in texts),
    *PLURALS.values(),
    *CATEGORIES,
    *COLORS,
    *SIZES,
    *PART_WORDINGS,
    "objects",
)
