"""The demo compares answers with the ground truth and draws them."""

import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from decaf_ros.io.viz import heat_overlay
from decaf_ros.types import QueryState
from decaf_tabletop.demo import clip, pictures
from decaf_tabletop.demo.recording import Recording, State
from decaf_tabletop.demo.report import PER_FRAME, answers_check, summary
from decaf_tabletop.demo.verdicts import judge
from decaf_tabletop.world.bag import GroundTruth
from decaf_tabletop.world.clip import Expression, TabletopObject

START_NS, STEP_NS = 10**9, 10**8
FRAMES = 12
BALL, CUBE = 1, 2


def truth() -> GroundTruth:
    """A ball in the upper left, and a cube in the lower right that is hidden from frame 8 on."""
    labels = np.zeros((FRAMES, 20, 30), np.uint8)
    labels[:, :10, :10] = BALL
    labels[:8, 10:, 20:] = CUBE
    return GroundTruth(
        seed=0,
        surface="wood",
        objects=(TabletopObject("ball", "red", "small", 0.04, 0.08), TabletopObject("cube", "blue", "large", 0.1, 0.1)),
        expressions=(
            Expression("the red ball", "explicit", (0,), "ball", 0.2),
            Expression("the blue cube", "explicit", (1,), "cube", 0.5),
            Expression("the mug", "absent", (), "", 0.9),
        ),
        labels={START_NS + frame * STEP_NS: labels[frame] for frame in range(FRAMES)},
        poses={},
    )


def state(query_id: str, query: str, answer: QueryState, frame: int, **more) -> State:
    return State(query_id, query, answer, "", frame / 10, 0.0, more.get("presence", -1.0), (), more.get("category", ""))


def recording(ball: int = BALL, cube: int = CUBE) -> Recording:
    """q1 is tracked on frames 4 and 5, q2 on frames 6 to 9, and q3 is not found at frame 10.

    ball, cube: the label masked for q1 and q2.
    """
    known = truth()
    stamps = list(known.labels)
    tracked = dict.fromkeys(stamps, "")
    tracked.update({stamps[frame]: "q1" for frame in (4, 5)} | {stamps[frame]: "q2" for frame in range(6, 10)})
    masked = {"": 255, "q1": ball, "q2": cube}
    received, tracking, not_found = QueryState.RECEIVED, QueryState.TRACKING, QueryState.NOT_FOUND
    return Recording(
        published=[(stamp_ns, "cam") for stamp_ns in stamps],
        counts={"received": FRAMES, "used": FRAMES, "dropped": 0, "rejected": 0, "waiting": 0},
        states=[
            state("q1", "the red ball", received, 2),
            state("q1", "the red ball", tracking, 3, category="ball", presence=0.9),
            state("q2", "the blue cube", received, 5),
            state("q2", "the blue cube", tracking, 5, category="cube", presence=0.8),
            state("q3", "the mug", received, 9),
            state("q3", "the mug", not_found, 10, presence=0.1),
            state("q4", "", QueryState.CANCELLED, 11),
        ],
        labels={
            stamp_ns: np.where(labels == masked[tracked[stamp_ns]], 7, 0).astype(np.uint8)
            for stamp_ns, labels in known.labels.items()
        },
        tracked=tracked,
        # Images are as bright as their number times 10, overlays 1 more.
        images={stamp_ns: np.full((20, 30, 3), 10 * frame, np.uint8) for frame, stamp_ns in enumerate(stamps)},
        overlays={stamp_ns: np.full((20, 30, 3), 10 * frame + 1, np.uint8) for frame, stamp_ns in enumerate(stamps)},
        heatmaps={
            (query, stamps[frame]): np.full((20, 30), frame / 10, np.float32)
            for query, frame in (("q1", 0), ("q1", 2), ("q1", 4), ("q2", 4), ("q3", 8))
        },
    )


def test_right_answers_are_right():
    ball, cube, mug = judge(recording(), truth())
    assert (ball.meant, ball.masked, ball.j, ball.frames, ball.right) == ("red ball", "red ball", 1.0, 2, True)
    assert (ball.category, ball.presence, ball.kind) == ("ball", 0.9, "explicit")
    # The cube is hidden on two of four frames, and nothing is masked there.
    assert (cube.masked, cube.j, cube.frames, cube.right) == ("blue cube", 1.0, 4, True)
    assert (mug.state, mug.meant, mug.masked, mug.j, mug.right) == (QueryState.NOT_FOUND, "", "", None, True)


def test_wrong_answers_are_wrong():
    wrong = recording(ball=CUBE, cube=0)
    wrong.states[5] = wrong.states[5]._replace(state=QueryState.TRACKING)
    ball, cube, mug = judge(wrong, truth())
    assert (ball.masked, ball.j, ball.right) == ("blue cube", 0.0, False)
    assert (cube.masked, cube.right) == ("the surroundings", False)
    assert not mug.right
    missed = recording(ball=99)
    missed.states[3] = missed.states[3]._replace(state=QueryState.NOT_FOUND)
    ball, cube, _ = judge(missed, truth())
    assert (ball.masked, ball.j, ball.right) == ("", 0.0, False)
    assert not cube.right


@pytest.mark.parametrize(("category", "right"), [("Ball.", True), ("", True), ("cube", False)])
def test_the_right_mask_with_a_wrong_category_is_wrong(category, right):
    """Mode fast has no category."""
    named = recording()
    named.states = [one._replace(category=category) if one.query_id == "q1" else one for one in named.states]
    assert judge(named, truth())[0].right is right


def test_every_due_question_needs_a_right_answer():
    due = [expression.text for expression in truth().expressions]
    assert answers_check(judge(recording(), truth()), due) == ("every answer is right", True, "3 of 3")
    wrong = answers_check(judge(recording(cube=0), truth()), due)
    assert (wrong.holds, wrong.detail) == (False, "2 of 3, q2 the blue cube")
    missing = answers_check(judge(recording(), truth())[:2], due)
    assert (missing.holds, missing.detail) == (False, "2 of 3, the mug (not answered)")


def test_a_mask_of_a_small_part_is_wrong():
    touched = recording()
    for stamp_ns, query_id in touched.tracked.items():
        if query_id == "q1":
            touched.labels[stamp_ns][2:] = 0
    ball = judge(touched, truth())[0]
    assert ball.masked == "red ball" and ball.j == pytest.approx(0.2) and not ball.right


def test_another_masked_object_is_named_and_makes_the_answer_wrong():
    """Even a small one that hardly lowers J."""
    both = recording()
    small = truth()
    for stamp_ns, labels in small.labels.items():
        labels[labels == CUBE] = 0
        labels[18:, 28:] = CUBE
        if both.tracked[stamp_ns] == "q1":
            both.labels[stamp_ns] = np.where(labels > 0, 7, 0)
    ball = judge(both, small)[0]
    assert (ball.masked, ball.right) == ("red ball, blue cube", False) and ball.j > 0.95
    for stamp_ns, query_id in both.tracked.items():
        if query_id == "q1":
            both.labels[stamp_ns][19:] = 0
    assert judge(both, small)[0].right, "half of it is not enough"


def test_the_summary_lists_verdicts():
    given = recording(cube=0)
    text = summary(given, [], {}, "", judge(given, truth()))
    assert "| q1: the red ball (explicit) | red ball | TRACKING | ball | 0.90 | red ball | 1.00 | 2 | right |" in text
    assert "| cube | 0.80 | the surroundings | 0.00 | 4 | **WRONG** |" in text
    assert "| q3: the mug (absent) | nothing | NOT_FOUND |  | 0.10 | nothing |  | 0 | right |" in text


def test_the_sheet_shows_attention_and_masks(tmp_path, monkeypatch):
    given, shown = recording(), {}
    monkeypatch.setattr(pictures, "write_png", lambda path, image: None)
    monkeypatch.setattr(pictures, "heat_overlay", lambda image, values, _: image + np.rint(10 * values)[..., None])
    monkeypatch.setattr(
        pictures, "contact_sheet", lambda images, columns, captions: shown.update(zip(range(9), zip(images, captions)))
    )
    pictures.write_answers_sheet(given, judge(given, truth()), tmp_path / "sheet.png")
    # The last key frame before the query, then the middle and the end of the time until the next query.
    assert [int(image[0, 0, 0]) for image, _ in shown.values()] == [22, 41, 51, 44, 71, 91, 88, 111, 111]
    captions = [caption for _, caption in shown.values()]
    assert captions[:2] == ["q1: attention", "0.4 s: red ball, J 1.00, right"]
    assert captions[-1] == "1.1 s: NOT_FOUND, right"


def test_the_question_picture(tmp_path):
    """The target lies still from frame 2 on; the key frames of q1 are 0, 1 and 2."""
    given, known, path = recording(), truth(), tmp_path / "question.png"
    stamps = list(known.labels)
    given.heatmaps["q1", stamps[1]] = np.full((20, 30), 0.1, np.float32)
    for frame in (0, 1):
        known.labels[stamps[frame]] = np.roll(known.labels[stamps[frame]], 12, axis=1)
    verdict = judge(given, known)[0]
    assert verdict.query_id == "q1"
    pictures.write_question_picture(given, known, verdict, path)
    image = cv2.imread(str(path))
    width, height = pictures._TILE_WH
    assert image.shape == (height + pictures._BAND, 3 * width + 2 * pictures._GAP, 3)
    camera, attention, mask = (image[:height, k * (width + pictures._GAP) :][:, :width] for k in range(3))
    # Frame 2 was the newest at the question. The images are as bright as their number times 10.
    assert np.all(camera[-1, -1] == 20)
    # Frame 1, where the attention is uniform, is the last one with the target elsewhere.
    expected = heat_overlay(np.full((1, 1, 3), 10, np.uint8), np.full((1, 1), 0.1, np.float32))[0, 0]
    assert np.all(attention[-1, -1] == expected[::-1])
    # The last frame before the next query is the nearest to 1 s after the answer: the ball is masked there.
    assert np.all(mask[-1, -1] == 50) and mask[100, 60, 0] > 100 > mask[100, 60, 2]
    assert all(image[height:, k * (width + pictures._GAP) :][:, :width].max() > 200 for k in range(3)), "captions"


def test_no_question_picture_without_heatmaps(tmp_path):
    given = recording()
    given.heatmaps = {}
    pictures.write_question_picture(given, truth(), judge(given, truth())[0], tmp_path / "question.png")
    assert not list(tmp_path.iterdir())


def test_the_clip_has_questions_and_their_times():
    whole = clip.load_clip(None)
    assert whole.seconds == 27.5
    assert [question.text for question in whole.questions] == [*(one.text for one in whole.truth.expressions), ""]
    assert whole.questions[0].at_s == 3.2 and whole.questions[-1].at_s == whole.seconds
    assert whole.due == [expression.text for expression in whole.truth.expressions]
    assert pictures.QUESTION in whole.due
    short = clip.load_clip(4.0)
    assert short.seconds == 4.0 and short.due == ["the purple cone"]


@pytest.mark.ros
@pytest.mark.parametrize(("seconds", "code", "line"), [(2.0, 0, "no answer to check"), (4.0, 1, "right: 0 of 1")])
def test_a_run_without_an_answer_has_a_summary(seconds, code, line, tmp_path, monkeypatch, capsys):
    from decaf_tabletop.demo import run
    from decaf_tabletop.demo.conversation import Conversation

    given = recording()
    given.states = given.states[-1:]  # the empty query
    given.headers = {name: Counter(given.published) for name in PER_FRAME}
    monkeypatch.setattr(run, "hold_conversation", lambda *_: Conversation([""], 0))
    monkeypatch.setattr(run.recording, "read", lambda *_: given)
    assert run.run(seconds, tmp_path / "out") == code
    assert line in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.md").exists() and not (tmp_path / "out" / "contact_sheet.png").exists()


@pytest.mark.ros
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "long"])
def test_invalid_seconds_are_refused(seconds, monkeypatch, capsys):
    from decaf_tabletop.demo import run

    monkeypatch.setattr(sys, "argv", ["demo", "--seconds", seconds])
    with pytest.raises(SystemExit):
        run.main()
    assert f"argument --seconds: expected a number over 0, got {seconds!r}" in capsys.readouterr().err
