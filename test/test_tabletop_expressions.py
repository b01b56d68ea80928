"""Expressions are true, have the right targets, and are not generated where they are ambiguous."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decaf_tabletop.world import expressions as module
from decaf_tabletop.world.clip import ABSENT_EVENT, CATEGORIES, COLORS, FRAMES, TabletopClip, TabletopObject
from decaf_tabletop.world.events import moving_words, read_events
from decaf_tabletop.world.expressions import FELL, MOVING, STOPPED, TOWARDS, WORDINGS, expressions

# The camera looks along +y, level: right is +x.
AHEAD = (math.sqrt(0.5), -math.sqrt(0.5), 0.0, 0.0)
STILL = np.zeros((FRAMES, 3))


def sliding(direction: tuple[float, float], metres: float, first: int = 0, last: int = FRAMES - 1) -> np.ndarray:
    """(F, 3) displacement: moves at constant speed between two frames, rests before and after."""
    part = np.clip((np.arange(FRAMES) - first) / (last - first), 0, 1)
    return part[:, None] * np.array([*direction, 0.0]) * metres


def falling(first: int) -> np.ndarray:
    height = np.clip(0.3 - 0.05 * (np.arange(FRAMES) - first), 0, 0.3)
    return np.stack([0 * height, 0 * height, height], axis=1)


def clip_with(*things: tuple[str, str, str, tuple[float, float], np.ndarray], visible: float = 1.0) -> TabletopClip:
    """things: (size, color, category, place, displacement). visible: share of frames that show the first object."""
    poses = np.zeros((FRAMES, len(things), 7))
    poses[..., 3] = 1
    labels = np.zeros((FRAMES, 60, 80), np.uint8)
    for k, (_, _, _, place, displacement) in enumerate(things):
        poses[:, k, :3] = np.array([*place, 0.05]) + displacement
        labels[:, 10:20, 12 * k : 12 * k + 10] = k + 1
    labels[round(visible * FRAMES) :, :, :10] = 0
    return TabletopClip(
        seed=0,
        images=np.zeros((FRAMES, 60, 80, 3), np.uint8),
        labels=labels,
        stamps_ns=np.arange(FRAMES, dtype=np.int64) * 100_000_000,
        objects=tuple(TabletopObject(category, color, size, 0.05, 0.1) for size, color, category, _, _ in things),
        poses=poses,
        camera_poses=np.tile(np.array([0, -0.5, 0.05, *AHEAD]), (FRAMES, 1)),
        intrinsics=np.eye(3),
        surface="wood",
    )


def expressions_by_kind(clip: TabletopClip) -> dict[str, dict[str, tuple[int, ...]]]:
    """All expressions of 60 draws: kind to text to targets. A text must always have the same targets."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for seed in range(60):
        for expression in expressions(clip, np.random.default_rng(seed)):
            known = found.setdefault(expression.kind, {}).setdefault(expression.text, expression.targets)
            assert known == expression.targets
            categories = {clip.objects[k].category for k in expression.targets}
            assert expression.category == (categories.pop() if len(categories) == 1 else "")
    return found


def test_names_and_properties():
    found = expressions_by_kind(
        clip_with(
            ("small", "red", "ball", (-0.1, 0), STILL),
            ("small", "blue", "ball", (0.1, 0), STILL),
            ("large", "blue", "cube", (0.0, 0.2), STILL),
        )
    )
    assert found["explicit"]["the red ball"] == (0,) and found["explicit"]["the cube"] == (2,)
    assert not any(text.endswith(("the ball", "find the ball")) for text in found["explicit"]), "there are two"
    assert set(found["attribute"].values()) == {(0,)}, "two are blue"
    assert set(found["size"].values()) == {(2,)} and "the largest object" in found["size"]
    assert found["several"] == {"the blue objects": (1, 2), "the balls": (0, 1), "the small objects": (0, 1)}
    assert not {"motion", "temporal"} & set(found)


def test_relations_need_one_reading():
    found = expressions_by_kind(
        clip_with(
            ("small", "red", "ball", (-0.1, 0), STILL),
            ("small", "blue", "can", (0.0, 0.1), STILL),
            ("large", "green", "cube", (0.12, 0.1), STILL),
        )
    )["relation"]
    assert found["the object left of the can"] == (0,) and found["the object right of the can"] == (2,)
    assert found["the object right of the blue can"] == (2,)
    assert "the object left of the cube" not in found, "two are"
    assert found["the object in front of the can"] == (0,)
    assert not any("behind the ball" in text for text in found), "two are"
    # Neither of two balls can be an anchor.
    two_balls = expressions_by_kind(
        clip_with(("small", "red", "ball", (-0.1, 0), STILL), ("small", "blue", "ball", (0.1, 0), STILL))
    )
    assert "relation" not in two_balls


def test_a_relation_holds_in_every_frame():
    near = expressions_by_kind(
        clip_with(("small", "red", "ball", (-0.03, 0), STILL), ("small", "blue", "can", (0.0, 0.0), STILL))
    )
    assert "relation" not in near
    passing = clip_with(
        ("small", "red", "ball", (-0.15, 0), sliding((1, 0), 0.3)), ("small", "blue", "can", (0.0, 0.1), STILL)
    )
    texts = expressions_by_kind(passing)["relation"]
    assert not any("left" in text or "right" in text for text in texts) and texts["what is behind the ball?"] == (1,)


@pytest.mark.parametrize(
    "direction, word", [((-1, 0), "left"), ((1, 0), "right"), ((0, -1), "closer"), ((0, 1), "away")]
)
def test_motion(direction: tuple[float, float], word: str):
    clip = clip_with(
        ("small", "red", "ball", (0.0, 0), sliding(direction, 0.2)), ("small", "blue", "can", (0.25, 0.1), STILL)
    )
    found = expressions_by_kind(clip)["motion"]
    assert found["the one that is moving"] == (0,) and found["the object that did not move"] == (1,)
    assert found[f"the object that moved {word}"] == (0,)
    assert not any(f"moved {other}" in text for text in found for other in {"left", "right", "closer", "away"} - {word})
    assert moving_words(clip, 4, 6) == (word, "still") and moving_words(clip, 4, 4) == ("still", "still")


def test_two_movers_are_distinguished_by_direction_only():
    found = expressions_by_kind(
        clip_with(
            ("small", "red", "ball", (0.0, 0), sliding((-1, 0), 0.2)),
            ("small", "blue", "can", (0.1, 0.1), sliding((0.1, 1), 0.2)),
            ("small", "green", "cube", (0.2, -0.1), STILL),
        )
    )
    assert {text: targets for text, targets in found["motion"].items() if "left" in text or "away" in text} == {
        "the object that moved left": (0,), "the one moving to the left": (0,),
        "the object that moved away": (1,), "the one that is going away": (1,),
    }  # fmt: skip
    assert "the one that is moving" not in found["motion"] and found["several"]["the moving objects"] == (0, 1)


def test_a_barely_moving_object_prevents_motion_expressions():
    clip = clip_with(
        ("small", "red", "ball", (0.0, 0), sliding((-1, 0), 0.2)),
        ("small", "blue", "can", (0.2, 0), sliding((1, 0), 0.04)),
    )
    assert "motion" not in expressions_by_kind(clip)


def test_temporal_expressions():
    dropped = clip_with(
        ("small", "red", "ball", (0.0, 0), falling(8)),
        ("small", "blue", "can", (0.1, 0.1), sliding((1, 0), 0.2)),
        ("small", "green", "cube", (0.2, -0.1), STILL),
    )
    found = expressions_by_kind(dropped)
    assert set(found["temporal"].values()) == {(0,)} and "the one that was dropped" in found["temporal"]
    assert "relation" not in found, "the dropped object changed place"
    assert moving_words(dropped, 9, 11)[0] == "fell"

    stopped = clip_with(
        ("small", "red", "ball", (0.0, 0), sliding((1, 0), 0.2, 0, 16)),
        ("small", "blue", "can", (0.0, 0.1), sliding((1, 0), 0.2)),
        ("small", "green", "cube", (0.2, -0.1), STILL),
    )
    assert expressions_by_kind(stopped)["temporal"]["the one that stopped"] == (0,)
    assert read_events(stopped).stopped.tolist() == [True, False, False]

    started = clip_with(
        ("small", "red", "ball", (0.0, 0), sliding((1, 0), 0.2, 14)), ("small", "green", "cube", (0.2, -0.1), STILL)
    )
    assert "temporal" not in expressions_by_kind(started)


def test_absent_expressions_match_no_object():
    clip = clip_with(("small", "red", "ball", (-0.1, 0), STILL), ("small", "blue", "can", (0.1, 0), STILL))
    texts = set(expressions_by_kind(clip)["absent"])
    assert any("blue ball" in text for text in texts), "each half is present, the pair is not"
    for text in texts:
        words = set(text.strip("?").split())
        color, category = words & set(COLORS), words & set(CATEGORIES)
        assert color | category
        assert not any(
            (not color or thing.color in color) and (not category or thing.category in category)
            for thing in clip.objects
        )


def test_absent_events_did_not_happen():
    right = ("small", "red", "ball", (-0.1, 0), sliding((1, 0), 0.2))
    still, far = ("small", "blue", "can", (0.1, 0), STILL), ("large", "red", "cube", (0.1, 0.2), STILL)

    def said(*things):
        found = expressions(clip_with(*things), np.random.default_rng(0))
        return {expression.text for expression in found if expression.kind == ABSENT_EVENT}

    fell, stopped, moved = set(FELL), set(STOPPED), set(MOVING)
    left, away = set(TOWARDS["left"]), set(TOWARDS["away"])
    found = said(still, far)
    assert found & fell and found & stopped and found & moved and found & left and len(found) == 7
    found = said(right, far)
    assert found & fell and found & stopped and found & left and found & away and len(found) == 5
    assert not found & (moved | set(TOWARDS["right"]))
    assert not said(("small", "red", "ball", (-0.1, 0), falling(8)), far), "after a fall nothing is certain"
    assert not said(("small", "red", "ball", (0.0, 0), sliding((1, 0), 0.2, 0, 16)), still) & stopped


def test_a_mostly_hidden_object_is_no_target():
    things = (("small", "red", "ball", (-0.1, 0), STILL), ("small", "blue", "can", (0.1, 0), STILL))
    assert (0,) in expressions_by_kind(clip_with(*things))["attribute"].values()
    assert (0,) not in expressions_by_kind(clip_with(*things, visible=0.3))["attribute"].values()


def test_the_same_generator_state_gives_the_same_expressions():
    clip = clip_with(("small", "red", "ball", (-0.1, 0), STILL), ("large", "blue", "can", (0.1, 0), STILL))
    assert expressions(clip, np.random.default_rng(3)) == expressions(clip, np.random.default_rng(3))


def test_wording_and_scene_of_a_seed_use_different_random_streams(monkeypatch):
    clip, drawn = clip_with(("small", "red", "ball", (0, 0), STILL)), []
    monkeypatch.setattr(module, "expressions", lambda _, rng: drawn.append(rng.integers(2**62)))
    module.expressions_of(clip)
    module.expressions_of(clip)
    assert drawn[0] == drawn[1]
    scene_rngs = [np.random.default_rng([clip.seed, attempt, crossing]) for attempt in range(60) for crossing in (0, 1)]
    assert drawn[0] not in [rng.integers(2**62) for rng in scene_rngs]


def test_wordings_contain_every_word():
    words = {word.strip(".?{}") for text in WORDINGS for word in text.split()}
    clip = clip_with(
        ("small", "red", "ball", (-0.1, 0), sliding((-1, 0), 0.2)), ("large", "blue", "can", (0.1, 0.2), STILL)
    )
    for texts in expressions_by_kind(clip).values():
        for text in texts:
            assert {word.strip(".?") for word in text.split()} <= words
