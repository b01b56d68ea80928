"""Referring expressions about a long clip, each with the time at which it may be asked about the frames just before."""

from __future__ import annotations

import dataclasses

import numpy as np

from decaf_tabletop.world.clip import ABSENT_EVENT, FRAME_PERIOD_S, Expression, TabletopClip
from decaf_tabletop.world.events import VISIBLE_PX
from decaf_tabletop.world.expressions import FELL, MIN_VISIBLE_SHARE, MOVERS, expressions
from decaf_tabletop.world.windows import FALLING_M_S, camera_rests, fall_m_s, visible_shares, window_before

# Questions are asked between these times, about the last WINDOW frames.
FIRST_S, LAST_S = 3.2, 10.0
_EVERY = 4
# Kinds that name an object among all of the clip, not among those in view or by what happens.
_LASTING = ("explicit", "attribute", "size", "several", "absent")
_MOST_OF_A_KIND = 2


def long_expressions(clip: TabletopClip) -> list[Expression]:
    """The expressions of a long clip that was made from a seed, in order of `asked_s`; at most two of a kind.

    All targets are visible when they are asked for. The camera rests in the frames before.
    """
    # Must differ from the other keys of a seed (`expressions_of`, `sample_long_scene`).
    rng = np.random.default_rng([clip.seed, 0, 0, 0, 2])
    by_meaning: dict[tuple[str, tuple[int, ...]], list[Expression]] = {}
    end = min(round(LAST_S / FRAME_PERIOD_S) + 1, len(clip) - 1)
    for last in range(round(FIRST_S / FRAME_PERIOD_S), end, _EVERY):
        for expression in _asked_at(clip, last, rng):
            by_meaning.setdefault((expression.kind, expression.targets), []).append(expression)
    by_kind: dict[str, list[Expression]] = {}
    for (kind, _), same in by_meaning.items():
        by_kind.setdefault(kind, []).append(same[int(rng.integers(len(same)))])
    kept = [of_kind[index] for of_kind in by_kind.values() for index in rng.permutation(len(of_kind))[:_MOST_OF_A_KIND]]
    return sorted(kept, key=lambda expression: expression.asked_s or 0.0)


def _asked_at(clip: TabletopClip, last: int, rng: np.random.Generator) -> list[Expression]:
    """The expressions that are true about the window that ends with the frame `last`."""
    everything = window_before(clip, last, range(len(clip.objects)))
    if not camera_rests(everything):
        return []
    shares = visible_shares(everything)
    asked_s = last * FRAME_PERIOD_S
    found = [
        expression
        for expression in expressions(everything, rng)
        if expression.kind in _LASTING and expression.text != MOVERS
    ]
    seen = np.flatnonzero(shares > 0)
    # An object that is seen only now and then may or may not count.
    if len(seen) and (shares[seen] >= MIN_VISIBLE_SHARE).all():
        part = window_before(clip, last, seen.tolist())
        fall = fall_m_s(part)
        for expression in expressions(part, rng):
            if expression.kind in (*_LASTING, ABSENT_EVENT):
                continue
            if expression.text not in FELL or fall[expression.targets[0]] >= FALLING_M_S:
                targets = tuple(int(seen[target]) for target in expression.targets)
                found.append(dataclasses.replace(expression, targets=targets))
    return [
        dataclasses.replace(expression, asked_s=round(asked_s, 3))
        for expression in found
        if all((everything.labels[-1] == target + 1).sum() >= VISIBLE_PX for target in expression.targets)
    ]
