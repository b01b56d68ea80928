"""`decaf compare`: two results or two reports of one input, with known differences."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from result_folders import FRAMES, SIZE_HW, START_NS, STEP_NS, camera_frame, moving_ball, write_result

from decaf_ros.cli.main import main
from decaf_ros.comparison import page
from decaf_ros.comparison.differences import DifferentInputError, Pair, compare
from decaf_ros.comparison.results import ResultError, StoredFrame, read_result
from decaf_ros.io.bag_writer import BagWriter, bag_origin
from decaf_ros.io.bags import BagReader
from decaf_ros.io.messages import stamp_ns
from decaf_ros.io.output_bag import OutputBag
from decaf_ros.types import FrameResult, Query, QueryState

EMPTY = np.zeros(SIZE_HW, bool)
NOTHING = FrameResult(camera_frame(0), np.zeros(SIZE_HW, np.uint8))


def other(index: int) -> np.ndarray:
    mask = EMPTY.copy()
    mask[90:110, 20:40] = True
    return mask


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    write_result(root / "a")
    write_result(root / "same", output_format="both")
    write_result(root / "bag", output_format="bag")
    # From frame 12 on: the ball has a new id, and another target appears.
    write_result(
        root / "b",
        lambda index: {1 if index < 12 else 7: moving_ball(index)[1], 3: other(index) if index >= 12 else EMPTY},
    )
    write_result(root / "absent", lambda index: {}, state=QueryState.NOT_FOUND, score=0.1)
    return root


def run(root, a, b, *arguments, capsys=None):
    shutil.rmtree(root / "page", ignore_errors=True)
    status = main(["compare", str(root / a), str(root / b), "--out", str(root / "page"), *map(str, arguments)])
    return status, json.loads((root / "page" / "comparison.json").read_text())


@pytest.mark.parametrize("b", ["same", "bag", "same/outputs_bag"])
def test_equal_results_in_every_format(root, b):
    limits = ("--min-iou", 1, "--min-frame-iou", 1, "--max-id-changes", 0, "--max-answer-changes", 0)
    status, found = run(root, "a", b, *limits, "--max-presence-change", 0)
    assert (status, found["frames"], found["mean_iou"], found["lowest_iou"]) == (0, FRAMES, 1.0, 1.0)
    assert found["targets"] == [{"a": 1, "b": 1}] and found["worst"] == []
    assert len(found["thresholds"]) == 5 and all(one["holds"] for one in found["thresholds"])


def test_ids_and_targets_that_differ(root):
    found = compare(read_result(root / "a"), read_result(root / "b"))
    assert set(found.pairs) == {Pair(1, 1), Pair(None, 3), Pair(None, 7)}
    assert found.id_changes == 1 and found.answer_changes == 0
    for frame in found.frames[:12]:
        assert frame.iou == {Pair(1, 1): 1.0}
    for frame in found.frames[12:]:
        assert frame.iou == {Pair(1, 1): 0.0, Pair(None, 3): 0.0, Pair(None, 7): 0.0}
    assert found.mean_iou == pytest.approx(12 / 48)
    assert [frame.seconds for frame in found.worst_frames(8)] == pytest.approx([1.2, 1.7, 2.2])
    assert compare(read_result(root / "b"), read_result(root / "a")).id_changes == 1


def test_masks_that_differ(root):
    """Squares of 10 x 10 px, shifted by 2: IoU 80 / 120."""

    def square(shift):
        return lambda index: {4: np.pad(np.ones((10, 10), bool), ((20, 90), (30 + shift, 120 - shift)))}

    status, found = run(
        root, write_result(root / "s0", square(0)), write_result(root / "s2", square(2)), "--min-iou", 0.66
    )
    assert status == 0 and found["mean_iou"] == found["lowest_iou"] == pytest.approx(2 / 3)
    assert run(root, "s0", "s2", "--min-frame-iou", 0.67)[0] == 3


def test_answers_that_differ(root, capsys):
    status, found = run(root, "a", "absent", "--max-answer-changes", 0, "--max-presence-change", 0.5)
    assert (status, found["answer_changes"], found["mean_iou"]) == (3, 1, 0.0)
    assert found["presence_change"] == pytest.approx(0.7)
    printed = capsys.readouterr().out
    assert "EXCEEDED: --max-answer-changes 0: 1" in printed and "EXCEEDED: --max-presence-change 0.5: 0.7" in printed
    assert "id changes: 0; targets (A - B): 1 - none" in printed


def test_without_thresholds_the_status_is_0(root):
    assert run(root, "a", "b")[0] == 0


def test_the_page_shows_versions_models_and_settings(root):
    changed = {"presence.threshold": 0.4, "mllm.checkpoint": "some/model"}
    write_result(root / "newer", version="0.2.0", parameters=changed)
    run(root, "a", "newer")
    text = (root / "page" / "index.html").read_text()
    assert "<td>0.1.0</td><td>0.2.0</td>" in text and "<td>some/model</td><td>some/model</td>" in text
    assert "1 of 2 parameters differ" in text and "<td>0.3</td><td>0.4</td>" in text


def test_the_worst_frames_are_drawn_on_the_images(root, monkeypatch):
    """The recorded input is found by its name; each frame by its stamp."""
    with BagWriter(root / "camera") as bag:
        for index in range(FRAMES):
            bag.write_image("/camera/image", camera_frame(index).image, START_NS + index * STEP_NS, "camera")
    shown = []
    draw = page.side_by_side
    monkeypatch.setattr(page, "side_by_side", lambda image, a, b: shown.append(image) or draw(image, a, b))
    run(root, "a", write_result(root / "c", lambda index: moving_ball(index, 6), input=str(root / "camera")))
    assert len(shown) == 5 and all(np.array_equal(image, camera_frame(5 * n).image) for n, image in enumerate(shown))


def test_side_by_side():
    labels = np.zeros((30, 40), np.uint8)
    labels[10:20, 10:20] = 2
    image = np.full((30, 40, 3), 80, np.uint8)
    drawn = page.side_by_side(image, StoredFrame(0, labels, {2: 1}), StoredFrame(0, 0 * labels, {}))
    assert drawn.shape == (360, 2 * 480 + 8, 3)
    assert not np.array_equal(drawn[180, 180], [80, 80, 80]) and (drawn[180, 488 + 180] == 80).all()
    assert page.side_by_side(None, StoredFrame(0, labels, {2: 1}), StoredFrame(0, labels, {2: 1}))[5, 5].sum() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": FRAMES - 2}, "the images of .* differ"),
        ({"noise": 1}, "the images of .* differ"),
        ({"query": Query("cli", "the mug")}, "the questions are 'the ball .*' and 'the mug'"),
    ],
)
def test_different_inputs(root, tmp_path, capsys, changes, words):
    b = write_result(tmp_path / "b", **changes)
    with pytest.raises(DifferentInputError, match=f"different inputs: {words}"):
        compare(read_result(root / "a"), read_result(b))
    assert main(["compare", str(root / "a"), str(b), "--out", str(tmp_path / "page")]) == 1
    assert "decaf: different inputs: " in capsys.readouterr().err and not (tmp_path / "page").exists()


def test_bags_with_other_frames(root, tmp_path):
    """As recorded from a live node that dropped a frame; bags do not know the pixels of the images."""
    short = read_result(write_result(tmp_path / "b", output_format="bag", frames=FRAMES - 2) / "outputs_bag")
    whole = read_result(root / "bag" / "outputs_bag")
    with pytest.raises(DifferentInputError, match=f"has a frame with stamp {START_NS + 22 * STEP_NS} ns and .* --some"):
        compare(whole, short)
    found = compare(short, whole, some_frames=True)
    assert (len(found.frames), found.only_a, found.only_b, found.mean_iou) == (FRAMES - 2, 0, 2, 1.0)


def test_bags_that_begin_and_end_within_a_frame(root, tmp_path):
    """As recorded from a live node: tracklets alone at first, masks alone at the end and once between."""
    with BagReader(root / "bag" / "outputs_bag") as bag:
        messages = [(one.topic, bag.deserialize(one)) for one in bag.messages()]
    stamps = [START_NS + index * STEP_NS for index in range(FRAMES)]
    left_out = {("/decaf/masks", stamps[0]), ("/decaf/tracklets", stamps[9]), ("/decaf/tracklets", stamps[-1])}
    with BagWriter(tmp_path / "live") as bag:
        for topic, message in messages:
            if (topic, stamp_ns(message.header.stamp)) not in left_out:
                lost = {"presence": -1.0} if topic == "/decaf/status" else {}
                bag.write_message(topic, replace(message, **lost), stamp_ns(message.header.stamp))
    a, live = read_result(root / "bag"), read_result(tmp_path / "live")
    with pytest.raises(ResultError, match=f"got one of them for stamp {stamps[0]}; --some-frames leaves such frames"):
        list(live.frames())
    found = compare(a, live, some_frames=True)
    assert (len(found.frames), found.only_a, found.only_b) == (FRAMES - 3, 3, 0)
    assert (found.unpaired_a, found.unpaired_b, found.mean_iou) == (0, 3, 1.0)
    assert found.lost_scores == 1 and found.presence_change == 0, "the score of one result alone"
    status, numbers = run(root, "bag", tmp_path / "live", "--some-frames", "--max-presence-change", 0)
    assert (status, numbers["unpaired_b"]) == (3, 3)
    assert numbers["thresholds"][0]["text"] == "--max-presence-change 0: 0, and 1 with a score in one result alone"
    assert "masks or tracklets alone)</th><td>0, 3</td>" in (root / "page" / "index.html").read_text()


def test_lost_frames_have_a_threshold(root, tmp_path):
    few = write_result(tmp_path / "few", frames=6)
    given = ("a", few, "--some-frames", "--min-iou", 1, "--max-missing-frames")
    status, found = run(root, *given, 0.7)
    assert (status, found["missing"], found["thresholds"][0]["holds"]) == (3, 0.75, False)
    assert run(root, *given, 0.75)[0] == 0


def test_a_recorded_input_that_cannot_be_read_is_a_note(root, tmp_path, capsys):
    """Two cameras without --topic. The same as --input is an error."""
    with BagWriter(tmp_path / "two") as bag:
        for topic in ("/left/image", "/right/image"):
            bag.write_image(topic, camera_frame(0).image, START_NS, "camera")
    b = write_result(tmp_path / "b", lambda index: moving_ball(index, 6), input=str(tmp_path / "two"))
    assert run(root, "a", b)[0] == 0
    text = (root / "page" / "index.html").read_text()
    assert f"The images are not shown: {tmp_path / 'two'}: several image topics, name one: /left/image" in text
    given = ["compare", str(root / "a"), str(b), "--out", str(tmp_path / "page"), "--input", str(tmp_path / "two")]
    assert main(given) == 1
    assert "several image topics, name one" in capsys.readouterr().err


def test_masks_of_another_size(root, tmp_path):
    shutil.copytree(root / "a", tmp_path / "b")
    entries = json.loads((tmp_path / "b" / "frames.json").read_text())
    entries[3]["size_hw"] = [60, 80]
    (tmp_path / "b" / "frames.json").write_text(json.dumps(entries))
    with pytest.raises(ResultError, match=r"000003.png: expected a mask of \[60, 80\] px, got \(120, 160\)"):
        compare(read_result(root / "a"), read_result(tmp_path / "b"))


def test_several_namespaces(root, tmp_path):
    with BagWriter(tmp_path / "two") as bag:
        for name in ("/decaf/wrist", "/decaf/head"):
            OutputBag(bag, name).write(NOTHING)
    with pytest.raises(ResultError, match="expected outputs in one namespace .*, got /decaf/head, /decaf/wrist"):
        read_result(tmp_path / "two")
    assert read_result(tmp_path / "two", "/decaf/head").namespace == "/decaf/head"
    assert [frame.stamp_ns for frame in read_result(tmp_path / "two", "/decaf/head/").frames()] == [START_NS]


def test_a_bag_tells_how_it_was_made(tmp_path):
    origin = {"version": "0.1.0", "input": "rec", "parameters": {"window.size": 6}}
    with BagWriter(tmp_path / "bag", "sqlite3", origin) as bag:
        OutputBag(bag).write(NOTHING)
    assert bag_origin(tmp_path / "bag") == origin
    found = read_result(tmp_path / "bag")
    assert (found.version, found.input, found.parameters, found.answers) == ("0.1.0", "rec", {"window.size": 6}, ())
    with BagWriter(tmp_path / "plain") as bag:
        OutputBag(bag).write(NOTHING)
    assert bag_origin(tmp_path / "plain") == {} and read_result(tmp_path / "plain").version == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "nowhere"], "nowhere: no such file or folder"),
        (["a", "page"], "page: expected a folder of decaf segment, a bag of decaf replay or a report of decaf eval"),
        (["a", "unfinished"], "expected a finished result, got one that was broken off"),
        (["a", "old"], "expected frames.json, got none"),
        (["a", "report"], "expected two results of one kind, got a report of decaf eval"),
        (["a", "b", "--min-iou", "90"], "--min-iou: expected a number from 0 to 1, got 90"),
        (["a", "b", "--max-drop", "1"], "--max-drop: only for reports of decaf eval"),
        (["a", "b", "--input", "nowhere.mp4"], "--input: nowhere.mp4: no such file or folder"),
        (["a", "b", "--out", "{root}/a"], "a: holds something besides a comparison"),
    ],
)
def test_errors(root, tmp_path, capsys, arguments, words):
    for name in ("unfinished", "old", "report", "page"):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / "page").mkdir()
    for name in ("unfinished", "old"):
        shutil.copytree(root / "a", root / name)
    (root / "unfinished" / "UNFINISHED").touch()
    (root / "old" / "frames.json").unlink()
    (root / "report").mkdir()
    (root / "report" / "report.json").touch()
    given = [str(root / name) for name in arguments[:2]] + [one.format(root=root) for one in arguments[2:]]
    assert main(["compare", "--out", str(tmp_path / "out"), *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith("decaf: ") and error.count("\n") == 1 and words in error


def case(text="the ball", j=0.9, found=True, category="ball", **changes):
    score = None if j is None else {"j": j, "f": j}
    known = {"clip": "one", "name": "", "kind": "explicit", "answer": "tracking" if found else "not found"}
    return known | {
        "text": text, "found": found, "decoded_category": category, "published": score, "presence": {"score": 0.5}
    } | changes  # fmt: skip


def write_report(folder, *cases, **settings):
    folder.mkdir()
    known = {"dataset": "drawn", "seed": 0, "clips": 1, "kinds": ["explicit"], "parameters": {"a.checkpoint": "m"}}
    scores = [one["published"]["j"] for one in cases if one["published"]]
    numbers = {"settings": known | settings, "version": "0.1.0", "overall": {"j_and_f": sum(scores) / len(scores)}}
    (folder / "report.json").write_text(json.dumps(numbers))
    (folder / "cases.json").write_text(json.dumps(cases))
    return folder


def test_reports(tmp_path, capsys):
    a = write_report(tmp_path / "a", case(), case("the cup"), case("no cone", None, False))
    worse = [case(), case("the cup", 0.0, False), case("no cone", None, True)]
    b = write_report(tmp_path / "b", *worse) / "report.json"
    status, found = run(tmp_path, a, b, "--max-drop", 44, "--max-answer-changes", 2)
    assert (status, found["questions"], found["answer_changes"]) == (3, 3, 2)
    assert found["j_and_f"] == pytest.approx([0.9, 0.45])
    assert [one["drop"] for one in found["changed"]] == [0.9, 0]
    assert "EXCEEDED: --max-drop 44: 45" in capsys.readouterr().out
    assert run(tmp_path, a, b, "--max-drop", 45)[0] == 0
    text = (tmp_path / "page" / "index.html").read_text()
    assert "the cup" in text and '<td class="number">-45.0</td>' in text


def test_reports_of_different_inputs(tmp_path, capsys):
    a = write_report(tmp_path / "a", case())
    for name, b, words in (
        ("b", [case("the mug")], "different inputs: only one report asks 'the ball' about clip one"),
        ("c", [case()], "different inputs: seed is 0 in "),
    ):
        other_report = write_report(tmp_path / name, *b, **({"seed": 1} if name == "c" else {}))
        assert main(["compare", str(a), str(other_report), "--out", str(tmp_path / "page")]) == 1
        assert words in capsys.readouterr().err
    assert main(["compare", str(a), str(a), "--min-iou", "1", "--out", str(tmp_path / "page")]) == 1
    assert "--min-iou: not for reports of decaf eval" in capsys.readouterr().err
