"""The demo's own parts, and a short run of the whole: real processes, real DDS."""

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
from decaf_tabletop.demo.clips import Clip, Question
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
        masked=2,
        frame_ms={"tracking (ms a frame)": "21.00"},
    )


def failed(given: Recording, asked: tuple[str, ...] = ("the mug",), node_exit: int = 0) -> list[str]:
    return [check.text for check in checks(given, list(asked), node_exit) if not check.holds]


def test_a_good_recording_passes():
    assert failed(recording()) == []


@pytest.mark.parametrize("name", PER_FRAME)
def test_every_used_frame_has_exactly_one_of_each(name):
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


def test_each_query_has_one_answer_and_the_node_ends_well():
    assert failed(recording(), asked=("the mug", "")) == ["every query got exactly one answer"]
    twice = recording()
    twice.states.append(twice.states[-1])
    assert failed(twice) == ["every query got exactly one answer"]
    assert failed(recording(), node_exit=-9) == ["the node ended with exit code 0"]


def test_summary_says_what_it_must():
    given = recording()
    text = summary(given, [Check("it works", False, "it does not")], {"Clip": "bikes"}, "Means nothing.")
    assert "Means nothing.\n\n- Clip: bikes" in text
    assert "| q1: the mug | 0.50 s | 1.25 s | TRACKING | tracking 1 (presence 0.60) |" in text
    assert "| used | 6 |" in text and "| dropped for a newer one | 3 |" in text and "| points | 12 |" in text
    assert "1 frames never reached" in text
    assert "**FAILED**: it works (it does not)" in text
    assert "the truth" not in text


def child(code: str, folder: Path, name: str = "child") -> Child:
    return Child(name, [sys.executable, "-c", code], os.environ, folder / f"{name}.log")


def test_child_speaks_and_is_spoken_to(tmp_path):
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


def test_child_that_ends_is_reported_with_its_last_words(tmp_path):
    process = child("import sys; sys.exit('no camera')", tmp_path)
    with pytest.raises(ChildError, match="(?s)child ended with exit code 1:.*no camera"):
        process.wait_for({"event": "ready"}, 10)
    process.stop()


def test_child_that_says_nothing_is_reported_and_can_be_stopped(tmp_path):
    process = child("import time; time.sleep(60)", tmp_path)
    with pytest.raises(ChildError, match="did not say {'event': 'ready'} within 0.3 s"):
        process.wait_for({"event": "ready"}, 0.3)
    assert process.stop() != 0


def test_child_that_ignores_the_signal_is_killed(tmp_path):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('{}', flush=True); time.sleep(60)"
    process = child(code, tmp_path)
    process.wait_for({}, 10)
    assert process.stop(timeout_s=0.3) == -signal.SIGKILL


def converse(code: str, clip: Clip, say=lambda text: None) -> list[str]:
    """What is asked where one child plays recorder, node and player. clip.bag: the folder of its log."""
    tell = "import json, sys\ndef tell(**event):\n    print(json.dumps(event), flush=True)\n"
    quiet, all_others = child("input()", clip.bag, "quiet"), child(tell + code, clip.bag)
    try:
        return _converse(quiet, quiet, all_others, clip, say)
    finally:
        quiet.stop()
        all_others.stop()


@pytest.mark.parametrize(
    ("questions", "asked"),
    [
        (["the mug", ""], ["the mug", ""]),
        (["the mug", "the car", ""], ["the mug"]),
    ],
)
def test_clip_that_is_over_leaves_only_an_empty_query_to_be_asked(tmp_path, questions, asked):
    """The first question is answered in the clip's last moment."""
    code = """
tell(event="playing", stamp_ns=5 * 10**9)
tell(event="frame", stamp_ns=7 * 10**9)
asked = (line for line in sys.stdin if "ask" in line)
for number, line in enumerate(asked, 1):
    tell(event="status", id=f"q{number}", state="TRACKING", text="")
    tell(event="played")
    for _ in range(3):
        tell(event="diagnostics", counts={"received": 9, "used": 9, "dropped": 0, "waiting": 0})
"""
    clip = Clip("clip", tmp_path, "/image", 2.0, 1.0, tuple(Question(text, at_s=2.0) for text in questions))
    assert converse(code, clip) == asked


def test_a_question_waits_for_the_node_to_come_to_its_time(tmp_path):
    """The camera is far ahead: it has played all, and images wait in the node."""
    code = """
def diagnostics(waiting):
    tell(event="diagnostics", counts={"received": 90, "used": 90 - waiting, "dropped": 0, "waiting": waiting})
assert json.loads(sys.stdin.readline()) == {"play_s": 9.0}
tell(event="playing", stamp_ns=10**9)
tell(event="played")
for frame in range(1, 90):
    tell(event="frame", stamp_ns=10**9 + frame * 10**8)
    diagnostics(waiting=90 - frame)
    if frame in (31, 50):
        text = json.loads(sys.stdin.readline())["ask"]
        tell(event="status", id=text, state="TRACKING", text="")
diagnostics(0)
diagnostics(0)
sys.stdin.readline()
"""
    said = []
    questions = (Question("the mug", 3.1), Question("the cube", 3.2), Question("the car", 9.5))
    clip = Clip("clip", tmp_path, "/image", 9.0, 1.0, questions)
    assert converse(code, clip, said.append) == ["the mug", "the cube"]
    asked = [text.split() for text in said if "asked" in text]
    assert float(asked[0][0]) == 3.1
    assert 4.1 <= float(asked[1][0]) <= 5.0  # what was answered is watched first


def test_a_camera_that_waits_goes_no_further_than_the_node_and_stops_for_an_answer(tmp_path):
    code = """
def heard():
    return json.loads(sys.stdin.readline())
said = [heard()]
tell(event="playing", stamp_ns=10**9)
said.append(heard())
for frame in range(1, 4):
    tell(event="frame", stamp_ns=10**9 + frame * 10**8)
    said.append(heard())
said.append(heard())
tell(event="frame", stamp_ns=10**9 + 4 * 10**8)  # no leave to go on comes of it
tell(event="status", id="q1", state="NOT_FOUND", text="")
said.append(heard())
tell(event="played")
for _ in range(2):
    tell(event="diagnostics", counts={"received": 4, "used": 4, "dropped": 0, "waiting": 0})
print(said, file=sys.stderr, flush=True)
sys.stdin.read()
"""
    clip = Clip("clip", tmp_path, "/image", 9.0, 1.0, (Question("the mug", 0.3),), waits=True)
    assert converse(code, clip) == ["the mug"]
    told = ast.literal_eval((tmp_path / "child.log").read_text().splitlines()[0])
    assert told[:5] == [{"play_s": pytest.approx(seconds)} for seconds in (0.4, 0.4, 0.5, 0.6, 0.7)]
    assert told[5:] == [{"ask": "the mug"}, {"play_s": pytest.approx(0.8)}]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    pytest.importorskip("decaf_ros.msg")
    from decaf_tabletop.demo.run import tiny_checkpoints

    folder = tmp_path_factory.mktemp("demo_cache")
    tiny_checkpoints(folder)
    return folder


def start_demo(out: Path, cache: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "decaf_tabletop.demo.run", "--out", str(out), "--cache", str(cache), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def processes_that_mention(text: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:  # it has ended meanwhile
            continue
        if text in command and folder.name != str(os.getpid()):
            found.append(command)
    return found


@pytest.mark.ros
def test_short_demo(cache, tmp_path):
    out = tmp_path / "demo_output"
    demo = start_demo(out, cache, "--clip", "bikes", "--seconds", "3", "--rate", "1")
    said, _ = demo.communicate(timeout=180)
    assert demo.returncode == 0, said
    assert "asked: the person who rides a bicycle" in said and "q1 TRACKING" in said and "FAILED" not in said
    text = (out / "summary.md").read_text()
    assert "mean nothing" in text and "| published by the camera | 75 |" in text
    assert "frames: 75 published, " in said and "checkpoints are tiny and random" in said
    with BagReader(out / "outputs") as bag:
        topics = bag.topics
        used = topics["/decaf/masks"].count
        statuses = [bag.deserialize(message) for message in bag.messages(["/decaf/status"])]
    assert topics["/decaf/tracklets"].count == topics["/decaf/target_mask"].count == used > 10
    assert topics["/decaf/heatmaps"].count >= 4
    assert [status.state for status in statuses][:3] == [QueryState.RECEIVED, QueryState.GROUNDING, QueryState.TRACKING]
    assert next(read_video(out / "overlay.mp4")).size_hw == (272, 640)
    assert (out / "contact_sheet.png").stat().st_size > 10_000
    assert processes_that_mention(str(out)) == []


@pytest.mark.ros
def test_interrupted_demo_leaves_no_process(cache, tmp_path):
    out = tmp_path / "demo_output"
    demo = start_demo(out, cache, "--clip", "bikes", "--seconds", "4", "--rate", "0.1")
    for line in demo.stdout:
        if "the node is active" in line:
            break
    assert len(processes_that_mention(str(out))) >= 3
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGTERM)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130 and "interrupted" in said, said
    assert processes_that_mention(str(out)) == []
