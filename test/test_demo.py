"""The demo's parts, and runs of the whole demo with real processes and real DDS."""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from decaf_ros.io.bags import BagReader
from decaf_ros.io.video import read_video
from decaf_ros.types import QueryState
from decaf_tabletop.demo.clip import Question
from decaf_tabletop.demo.conversation import _converse
from decaf_tabletop.demo.processes import Child, ChildError
from decaf_tabletop.demo.recording import Recording, State
from decaf_tabletop.demo.report import PER_FRAME, Check, checks, summary

ROOT = Path(__file__).parents[1]


def recording() -> Recording:
    """Ten frames published, nine received, six used, three dropped; one query, tracked."""
    published = [(10**18 + index * 10**8, "cam") for index in range(10)]
    used = Counter(published[:6])
    states = [
        State("q1", "the mug", QueryState.RECEIVED, "", 0.2, 0.0, -1.0, ()),
        State("q1", "the mug", QueryState.TRACKING, "tracking | 1", 0.5, 1.25, 0.6, (("points", 12.0), ("dense", 3.0))),
    ]
    return Recording(
        published=published,
        headers={name: used.copy() for name in PER_FRAME},
        states=states,
        counts={"received": 9, "used": 6, "dropped": 3, "rejected": 0, "waiting": 0},
        frames_with_target=2,
        frame_ms={"tracking (ms a frame)": "21.00"},
    )


def failed(tested: Recording, asked: tuple[str, ...] = ("the mug",), node_exit: int = 0) -> list[str]:
    return [check.text for check in checks(tested, list(asked), node_exit) if not check.holds]


def test_a_good_recording_passes():
    assert failed(recording()) == []


@pytest.mark.parametrize("name", PER_FRAME)
def test_every_used_frame_has_exactly_one_message(name):
    frame, other = recording().published[2], recording().published[8]
    for spoil in (
        lambda headers: headers.pop(frame),
        lambda headers: headers.update([frame]),
        lambda headers: (headers.pop(frame), headers.update([(frame[0], "another_frame")])),
        lambda headers: (headers.pop(frame), headers.update([(frame[0] + 1, "cam")])),
        lambda headers: (headers.pop(frame), headers.update([other])),
    ):
        spoiled = recording()
        spoil(spoiled.headers[name])
        assert any(f"`{name}`" in text or name == "masks" for text in failed(spoiled))


def test_counts_must_add_up():
    for changes in ({"dropped": 2}, {"waiting": 1}, {"used": 0, "dropped": 9}):
        spoiled = recording()
        spoiled.counts.update(changes)
        assert any(text.startswith("frames:") for text in failed(spoiled))


def test_each_query_has_one_answer_and_the_node_exits_with_0():
    assert failed(recording(), asked=("the mug", "")) == ["every query got exactly one answer"]
    twice = recording()
    twice.states.append(twice.states[-1])
    assert failed(twice) == ["every query got exactly one answer"]
    assert failed(recording(), node_exit=-9) == ["the node ended with exit code 0"]


def test_summary():
    text = summary(recording(), [Check("it works", False, "it does not")], {"Clip": "4 s"}, "Small models.")
    assert "Small models.\n\n- Clip: 4 s" in text
    assert "| q1: the mug | 0.50 s | 1.25 s | TRACKING | tracking 1 (presence 0.60) |" in text
    assert "| used | 6 |" in text and "| dropped for a newer one | 3 |" in text and "| points | 12 |" in text
    assert "1 frames never reached" in text
    assert "**FAILED**: it works (it does not)" in text
    assert "ground truth" not in text


def child(code: str, folder: Path, name: str = "child") -> Child:
    return Child(name, [sys.executable, "-c", code], os.environ, folder / f"{name}.log")


def test_child_emits_events_and_takes_commands(tmp_path):
    code = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
print("noise")
print(input().replace("ask", "heard"), flush=True)
signal.pause()
"""
    process = child(code, tmp_path)
    process.send(ask="it")
    assert process.wait_for({"heard": "it"}, 10)
    assert process.stop() == 0
    assert (tmp_path / "child.log").read_text() == "noise\n"


def test_child_that_ends_is_reported_with_its_last_lines(tmp_path):
    process = child("import sys; sys.exit('no camera')", tmp_path)
    with pytest.raises(ChildError, match="(?s)child ended with exit code 1:.*no camera"):
        process.wait_for({"event": "ready"}, 10)
    process.stop()


def test_silent_child_times_out_and_can_be_stopped(tmp_path):
    process = child("import time; time.sleep(60)", tmp_path)
    with pytest.raises(ChildError, match="did not emit {'event': 'ready'} within 0.3 s"):
        process.wait_for({"event": "ready"}, 0.3)
    assert process.stop() != 0


def test_child_that_ignores_the_signal_is_killed(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('{}', flush=True); time.sleep(60)"
    process = child(code, tmp_path)
    process.wait_for({}, 10)
    assert process.stop(timeout_s=0.3) == -signal.SIGKILL


def converse(code: str, questions: list[Question], folder: Path, log=lambda text: None) -> list[str]:
    """Texts asked when one child plays recorder, node and player. Its log is in `folder`."""
    preamble = "import json, sys\ndef emit(**event):\n    print(json.dumps(event), flush=True)\n"
    quiet, speaker = child("input()", folder, "quiet"), child(preamble + code, folder)
    try:
        return _converse(quiet, quiet, speaker, questions, log)
    finally:
        quiet.stop()
        speaker.stop()


@pytest.mark.parametrize(
    ("questions", "asked"),
    [
        (["the mug", ""], ["the mug", ""]),
        (["the mug", "the car", ""], ["the mug"]),
    ],
)
def test_after_the_clip_only_an_empty_query_is_asked(tmp_path, questions, asked):
    """The first question is answered at the end of the clip."""
    code = """
emit(event="playing", stamp_ns=5 * 10**9)
emit(event="frame", stamp_ns=7 * 10**9)
asked = (line for line in sys.stdin if "ask" in line)
for number, line in enumerate(asked, 1):
    emit(event="status", id=f"q{number}", state="TRACKING", text="")
    emit(event="played")
    for _ in range(3):
        emit(event="diagnostics", counts={"received": 9, "used": 9, "dropped": 0, "waiting": 0})
"""
    assert converse(code, [Question(text, at_s=2.0) for text in questions], tmp_path) == asked


def test_a_question_waits_until_the_node_reaches_its_time(tmp_path):
    """The camera is far ahead: all images are played, and the node has a backlog."""
    code = """
def diagnostics(waiting):
    emit(event="diagnostics", counts={"received": 90, "used": 90 - waiting, "dropped": 0, "waiting": waiting})
questions = (command["ask"] for command in map(json.loads, sys.stdin) if "ask" in command)
emit(event="playing", stamp_ns=10**9)
emit(event="played")
for frame in range(1, 90):
    emit(event="frame", stamp_ns=10**9 + frame * 10**8)
    diagnostics(waiting=90 - frame)
    if frame in (31, 50):
        emit(event="status", id=next(questions), state="TRACKING", text="")
diagnostics(0)
diagnostics(0)
sys.stdin.read()
"""
    lines = []
    questions = [Question("the mug", 3.1), Question("the cube", 3.2), Question("the car", 9.5)]
    assert converse(code, questions, tmp_path, lines.append) == ["the mug", "the cube"]
    asked = [text.split() for text in lines if "asked" in text]
    assert float(asked[0][0]) == 3.1
    assert 4.1 <= float(asked[1][0]) <= 5.0  # the first answer is tracked for 1 s before


def test_the_camera_stays_near_the_node_and_pauses_during_a_query(tmp_path):
    code = """
def command():
    return json.loads(sys.stdin.readline())
commands = [command()]
emit(event="playing", stamp_ns=10**9)
commands.append(command())
for frame in range(1, 4):
    emit(event="frame", stamp_ns=10**9 + frame * 10**8)
    commands.append(command())
commands.append(command())
emit(event="frame", stamp_ns=10**9 + 4 * 10**8)  # does not resume the camera
emit(event="status", id="q1", state="NOT_FOUND", text="")
commands.append(command())
emit(event="played")
for _ in range(2):
    emit(event="diagnostics", counts={"received": 4, "used": 4, "dropped": 0, "waiting": 0})
print(commands, file=sys.stderr, flush=True)
sys.stdin.read()
"""
    assert converse(code, [Question("the mug", 0.3)], tmp_path) == ["the mug"]
    commands = ast.literal_eval((tmp_path / "child.log").read_text().splitlines()[0])
    assert commands[:5] == [{"play_s": pytest.approx(seconds)} for seconds in (0.4, 0.4, 0.5, 0.6, 0.7)]
    assert commands[5:] == [{"ask": "the mug"}, {"play_s": pytest.approx(0.8)}]


def start_demo(out: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "decaf_tabletop.demo.run", "--out", str(out), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_that_mention(text: str) -> list[str]:
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        if text in command and folder.name != str(os.getpid()):
            commands.append(command)
    return commands


@pytest.mark.ros
@pytest.mark.parametrize(
    ("arguments", "questions", "images"),
    [(("--seconds", "5.5"), 1, 56), pytest.param((), 8, 276, marks=pytest.mark.slow)],
)
def test_demo(tmp_path, arguments, questions, images):
    """Real processes, real DDS, the shipped checkpoints: the first question, and all of them."""
    pytest.importorskip("decaf_ros.msg")
    out = tmp_path / "demo_output"
    demo = start_demo(out, *arguments)
    output, _ = demo.communicate(timeout=400)
    assert demo.returncode == 0, output
    assert "3.20 s  asked: the purple cone" in output and "q1 TRACKING" in output and "FAILED" not in output
    assert f"every answer is right: {questions} of {questions}" in output
    assert f"frames: {images} published, " in output and "trained only on this simulated table" in output
    text = (out / "summary.md").read_text()
    assert "trained on this simulated table" in text and f"| published by the camera | {images} |" in text
    with BagReader(out / "outputs") as bag:
        topics = bag.topics
        states = [bag.deserialize(message).state for message in bag.messages(["/decaf/status"])]
    # Every image is used, however slow the machine is.
    counts = [topics[f"/decaf/{name}"].message_count for name in PER_FRAME]
    assert counts == [images] * len(PER_FRAME)
    assert topics["/decaf/heatmaps"].message_count >= 4
    assert states[:3] == [QueryState.RECEIVED, QueryState.GROUNDING, QueryState.TRACKING]
    assert next(read_video(out / "overlay.webm")).size_hw == (240, 320)
    assert (out / "contact_sheet.png").stat().st_size > 10_000
    assert (out / "question.png").exists() == (questions == 8)
    assert processes_that_mention(str(out)) == []


@pytest.mark.ros
def test_interrupted_demo_leaves_no_process(tmp_path):
    pytest.importorskip("decaf_ros.msg")
    out = tmp_path / "demo_output"
    demo = start_demo(out)
    for line in demo.stdout:
        if "the node is active" in line:
            break
    assert len(processes_that_mention(str(out))) >= 3
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGTERM)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130 and "interrupted" in output, output
    assert processes_that_mention(str(out)) == []
