"""The demo's answers held against the truth, and what it shows of them; a short run of the tabletop."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from decaf_ros.io.bags import BagReader
from decaf_ros.types import QueryState
from decaf_tabletop.demo import clips, pictures
from decaf_tabletop.demo.recording import Recording, State
from decaf_tabletop.demo.report import PER_FRAME, answers_check, summary
from decaf_tabletop.demo.verdicts import judge
from decaf_tabletop.world.bag import GroundTruth
from decaf_tabletop.world.clip import Expression, TabletopObject

ROOT = Path(__file__).parents[1]
START_NS, STEP_NS = 10**9, 10**8
FRAMES = 12
BALL, CUBE = 1, 2


def truth() -> GroundTruth:
    """A ball in the upper left, a cube in the lower right, which hides from frame 8 on."""
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
    """q1 is tracked on frames 4 and 5, q2 on frames 6 to 9, q3 not found after frame 10. ball, cube: the label that is
    masked for them."""
    known = truth()
    stamps = list(known.labels)
    tracked = dict.fromkeys(stamps, "")
    tracked.update({stamps[frame]: "q1" for frame in (4, 5)} | {stamps[frame]: "q2" for frame in range(6, 10)})
    wanted = {"": 255, "q1": ball, "q2": cube}
    received, found, gone = QueryState.RECEIVED, QueryState.TRACKING, QueryState.NOT_FOUND
    return Recording(
        published=[(stamp_ns, "cam") for stamp_ns in stamps],
        counts={"received": FRAMES, "used": FRAMES, "dropped": 0, "rejected": 0, "waiting": 0},
        states=[
            state("q1", "the red ball", received, 2),
            state("q1", "the red ball", found, 3, category="ball", presence=0.9),
            state("q2", "the blue cube", received, 5),
            state("q2", "the blue cube", found, 5, category="cube", presence=0.8),
            state("q3", "the mug", received, 9),
            state("q3", "the mug", gone, 10, presence=0.1),
            state("q4", "", QueryState.CANCELLED, 11),
        ],
        labels={
            stamp_ns: np.where(labels == wanted[tracked[stamp_ns]], 7, 0).astype(np.uint8)
            for stamp_ns, labels in known.labels.items()
        },
        tracked=tracked,
        # Each frame's picture is as bright as its number, each heatmap's 100 more.
        overlays={stamp_ns: np.full((20, 30, 3), 10 * frame, np.uint8) for frame, stamp_ns in enumerate(stamps)},
        heatmaps={
            (query, stamps[frame]): np.full((20, 30, 3), 100 + 10 * frame, np.uint8)
            for query, frame in (("q1", 0), ("q1", 2), ("q1", 4), ("q2", 4), ("q3", 8))
        },
    )


def test_right_answers_are_right():
    ball, cube, mug = judge(recording(), truth())
    assert (ball.meant, ball.masked, ball.j, ball.frames, ball.right) == ("red ball", "red ball", 1.0, 2, True)
    assert (ball.category, ball.presence, ball.kind) == ("ball", 0.9, "explicit")
    # Two frames of four show nothing, and nothing is masked there.
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
def test_the_right_mask_under_a_wrong_name_is_wrong(category, right):
    """In mode fast there is no name."""
    named = recording()
    named.states = [one._replace(category=category) if one.query_id == "q1" else one for one in named.states]
    assert judge(named, truth())[0].right is right


def test_every_question_that_was_due_wants_a_right_answer():
    due = [said.text for said in truth().expressions]
    assert answers_check(judge(recording(), truth()), due) == ("every answer is right", True, "3 of 3")
    wrong = answers_check(judge(recording(cube=0), truth()), due)
    assert (wrong.holds, wrong.found) == (False, "2 of 3, q2 the blue cube")
    # It was never asked, or not answered.
    missing = answers_check(judge(recording(), truth())[:2], due)
    assert (missing.holds, missing.found) == (False, "2 of 3, the mug (not answered)")


def test_an_object_that_is_only_touched_is_not_masked():
    touched = recording()
    for stamp_ns, query_id in touched.tracked.items():
        if query_id == "q1":
            touched.labels[stamp_ns][2:] = 0
    ball = judge(touched, truth())[0]
    assert ball.masked == "red ball" and ball.j == pytest.approx(0.2) and not ball.right


def test_an_object_that_is_taken_along_is_named_and_is_wrong():
    """However small it is."""
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
    assert judge(both, small)[0].right, "half of it is an edge, not an object"


def test_the_summary_shows_verdicts():
    given = recording(cube=0)
    text = summary(given, [], {}, "", judge(given, truth()))
    assert "| q1: the red ball (explicit) | red ball | TRACKING | ball | 0.90 | red ball | 1.00 | 2 | right |" in text
    assert "| cube | 0.80 | the surroundings | 0.00 | 4 | **WRONG** |" in text
    assert "| q3: the mug (absent) | nothing | NOT_FOUND |  | 0.10 | nothing |  | 0 | right |" in text


def test_the_sheet_shows_where_it_looked_and_what_it_masked(tmp_path, monkeypatch):
    given, shown = recording(), {}
    monkeypatch.setattr(pictures, "write_png", lambda path, image: None)
    monkeypatch.setattr(
        pictures, "contact_sheet", lambda images, columns, captions: shown.update(zip(range(9), zip(images, captions)))
    )
    pictures.write_answers_sheet(given, judge(given, truth()), tmp_path / "sheet.png")
    # The last key frame before it was asked; the middle and the end of the answer's time.
    assert [int(image[0, 0, 0]) for image, _ in shown.values()] == [120, 40, 50, 140, 70, 90, 180, 110, 110]
    captions = [caption for _, caption in shown.values()]
    assert captions[:2] == ["q1: where it looked", "0.4 s: red ball, J 1.00, right"]
    assert captions[-1] == "1.1 s: NOT_FOUND, right"


def test_clips_say_what_to_ask_and_when(tmp_path):
    clip = clips.find_clip("tabletop", None, tmp_path)
    assert clip.compressed and clip.seconds == 27.5
    assert [question.text for question in clip.questions] == [*(said.text for said in clip.truth.expressions), ""]
    assert clip.questions[0].at_s == 3.2 and clip.questions[-1].at_s == clip.seconds
    assert clip.due == [said.text for said in clip.truth.expressions]
    short = clips.find_clip("tabletop", 4.0, tmp_path)
    assert short.seconds == 4.0 and short.due == ["the purple cone"]
    with pytest.raises(ValueError, match="expected one of tabletop, bikes, got 'cars'"):
        clips.find_clip("cars", None, tmp_path)


@pytest.mark.ros
@pytest.mark.parametrize(("seconds", "status", "said"), [(2.0, 0, "no answer to check"), (4.0, 1, "right: 0 of 1")])
def test_a_run_without_an_answer_has_a_summary(seconds, status, said, tmp_path, monkeypatch, capsys):
    from decaf_tabletop.demo import run
    from decaf_tabletop.demo.conversation import Conversation

    given = recording()
    given.states = given.states[-1:]  # the clearing one
    given.headers = {name: Counter(given.published) for name in PER_FRAME}
    monkeypatch.setattr(run, "hold_conversation", lambda *_: Conversation([""], 0))
    monkeypatch.setattr(run.recording, "read", lambda *_: given)
    assert run.run("tabletop", seconds, None, tmp_path / "out", tmp_path) == status
    assert said in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.md").exists() and not (tmp_path / "out" / "contact_sheet.png").exists()


@pytest.mark.ros
@pytest.mark.parametrize("given", [("--rate", "0"), ("--seconds", "-1"), ("--seconds", "nan"), ("--rate", "fast")])
def test_times_and_speeds_that_are_none_are_refused(given, monkeypatch, capsys):
    from decaf_tabletop.demo import run

    monkeypatch.setattr(sys, "argv", ["demo", *given])
    with pytest.raises(SystemExit):
        run.main()
    assert f"argument {given[0]}: expected a number over 0, got {given[1]!r}" in capsys.readouterr().err


@pytest.mark.ros
@pytest.mark.parametrize(
    ("arguments", "questions", "images"),
    [(("--seconds", "5.5"), 1, 56), pytest.param((), 8, None, marks=pytest.mark.slow)],
)
def test_tabletop(tmp_path, arguments, questions, images):
    """With the checkpoints that are in models/: the first question, and all of them."""
    pytest.importorskip("decaf_ros.msg")
    out = tmp_path / "demo_output"
    command = [sys.executable, "-m", "decaf_tabletop.demo.run", "--out", str(out), "--cache", str(tmp_path), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3.20 s  asked: the purple cone" in done.stdout
    assert f"every answer is right: {questions} of {questions}" in done.stdout
    assert "trained on this simulated table" in (out / "summary.md").read_text()
    with BagReader(out / "outputs") as bag:
        # Every image is used, however slow the machine is.
        assert bag.topics["/decaf/masks"].count == images or images is None
    assert (out / "contact_sheet.png").stat().st_size > 10_000 and (out / "overlay.mp4").stat().st_size > 10_000
