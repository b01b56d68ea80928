"""Referring expressions of graded difficulty about a tabletop clip, with the objects that they mean.

Everything is decided by the ground truth, with margins: an expression is made only where exactly one reading is true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from decaf_tabletop.world.clip import CATEGORIES, COLORS, SIZES, Expression, TabletopClip
from decaf_tabletop.world.events import Events, read_events

# Metres on the table by which "left of" and the like must hold, and by which nothing else may come near to it.
RELATION_M, RELATION_CLEAR_M = 0.06, 0.0
SEEN = 0.5

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
PLURALS = {category: f"{category}s" for category in CATEGORIES}


def expressions(clip: TabletopClip, rng: np.random.Generator, events: Events | None = None) -> list[Expression]:
    """At most one expression for each thing that can be said about this clip, in random wording.

    events: of this clip, where they are known already. The order is that of KINDS, but for `absent`, which comes last;
    which kinds there are depends on what the clip shows. The same clip and generator state give the same list.
    """
    about = _About(clip, events or read_events(clip), rng)
    found = [
        *about.explicit(),
        *about.attribute(),
        *about.motion(),
        *about.size(),
        *about.relation(),
        *about.several(),
        *about.temporal(),
    ]
    # Who asks for a thing can be answered only where it is seen for a good part of the time.
    kept = [one for one in found if all(about.events.seen[target] >= SEEN for target in one.targets)]
    return kept + about.absent()


def expressions_of(clip: TabletopClip) -> list[Expression]:
    """Those of a clip that was made from a seed: the same ones, in the same wording, whoever asks."""
    # Apart from the scene's own draws, [seed, attempt, crossing]: zeros at the end make no other stream.
    return expressions(clip, np.random.default_rng([clip.seed, 0, 0, 0, 1]))


class _About:
    """All that can be said about one clip."""

    def __init__(self, clip: TabletopClip, events: Events, rng: np.random.Generator) -> None:
        self.objects = clip.objects
        self.events = events
        self.rng = rng
        self.all = range(len(clip.objects))
        self.names = [(f"{one.color} {one.category}") for one in clip.objects]

    def explicit(self) -> Iterator[Expression]:
        categories, names = Counter(one.category for one in self.objects), Counter(self.names)
        for k, one in enumerate(self.objects):
            wordings = [
                name
                for name, unique in (
                    (one.category, categories[one.category] == 1),
                    (self.names[k], names[self.names[k]] == 1),
                    (f"{one.size} {self.names[k]}", True),
                )
                if unique
            ]
            yield self._say("explicit", self._pick(NAMED).format(self._pick(wordings)), k)

    def attribute(self) -> Iterator[Expression]:
        for k in self._unique([one.color for one in self.objects]):
            yield self._say("attribute", self._pick(ONE).format(self.objects[k].color), k)

    def size(self) -> Iterator[Expression]:
        for k in self._unique([one.size for one in self.objects]):
            yield self._say("size", self._pick(LARGE if self.objects[k].size == "large" else SMALL), k)

    def motion(self) -> Iterator[Expression]:
        events = self.events
        movers = np.flatnonzero(events.moved)
        clear = (events.moved | events.stayed).all()
        if len(movers) == 1 and clear:
            yield self._say("motion", self._pick(MOVING), movers[0])
        if events.stayed.sum() == 1 and len(movers) == len(self.objects) - 1:
            yield self._say("motion", self._pick(STILL), np.flatnonzero(events.stayed)[0])
        named = all(events.towards[k] or events.fell[k] for k in movers)
        for k in self._unique(list(events.towards)) if named and clear else ():
            if events.towards[k]:
                yield self._say("motion", self._pick(TOWARDS[events.towards[k]]), k)

    def temporal(self) -> Iterator[Expression]:
        events = self.events
        if events.fell.sum() == 1:
            yield self._say("temporal", self._pick(FELL), np.flatnonzero(events.fell)[0])
        movers = events.moved & ~events.fell
        if events.fell.any() or not (events.moved | events.stayed).all():
            return
        # The others that moved must be clear of it: not nearly stopped.
        if events.stopped.sum() == 1 and events.moves_at_end[movers & ~events.stopped].all():
            yield self._say("temporal", self._pick(STOPPED), np.flatnonzero(events.stopped)[0])

    def relation(self) -> Iterator[Expression]:
        if self.events.fell.any():
            return
        categories = Counter(one.category for one in self.objects)
        for anchor in self.all:
            if categories[self.objects[anchor].category] > 1:
                continue
            name = self._pick((self.objects[anchor].category, self.names[anchor]))
            offset = self.events.place - self.events.place[:, anchor, None]  # (F, n, 2), right and away
            for word, axis, sign in (("left", 0, -1), ("right", 0, 1), ("behind", 1, 1), ("front", 1, -1)):
                along = sign * offset[..., axis]
                there = (along > RELATION_M).all(axis=0)
                elsewhere = (along <= RELATION_CLEAR_M).all(axis=0)
                if there.sum() == 1 and (there | elsewhere).all():
                    yield self._say("relation", self._pick(RELATIONS[word]).format(name), np.flatnonzero(there)[0])

    def several(self) -> Iterator[Expression]:
        for values, plural in (
            ([one.color for one in self.objects], lambda color: f"the {color} objects"),
            ([one.category for one in self.objects], lambda category: f"the {PLURALS[category]}"),
            ([one.size for one in self.objects], lambda size: f"the {size} objects"),
        ):
            for value, count in Counter(values).items():
                if 2 <= count < len(self.objects):
                    yield self._say("several", plural(value), *(k for k in self.all if values[k] == value))
        movers = np.flatnonzero(self.events.moved)
        if 2 <= len(movers) < len(self.objects) and (self.events.moved | self.events.stayed).all():
            yield self._say("several", MOVERS, *movers)

    def absent(self) -> list[Expression]:
        """Three things that are not there: a colour, a category, and a pair of which most often one half is there."""
        colors, categories = {one.color for one in self.objects}, {one.category for one in self.objects}
        color = self._pick([name for name in COLORS if name not in colors])
        category = self._pick([name for name in CATEGORIES if name not in categories])
        pairs = [f"{a} {b}" for a in COLORS for b in CATEGORIES if (a in colors or b in categories)]
        pair = self._pick([name for name in pairs if name not in self.names])
        texts = (self._pick(ONE).format(color), *(self._pick(NAMED).format(name) for name in (category, pair)))
        return [Expression(text, "absent", (), "") for text in texts]

    def _say(self, kind: str, text: str, *targets: int) -> Expression:
        categories = {self.objects[k].category for k in targets}
        return Expression(text, kind, tuple(int(k) for k in targets), categories.pop() if len(categories) == 1 else "")

    def _pick(self, options: list[str] | tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _unique(self, values: list[str]) -> list[int]:
        counts = Counter(values)
        return [k for k, value in enumerate(values) if counts[value] == 1]


# Every word that an expression can hold, for a vocabulary.
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
    "objects",
)
