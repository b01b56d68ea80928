"""Scores of long clips: every number on a hand-made case, and the command with tiny checkpoints."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
from evaluation_scenes import drawn_clip
from scripted import ABSENT, ScriptedDecaf, World, WorldTracker, frame, settings

from decaf_ros.cli.main import main
from decaf_ros.evaluation import long
from decaf_ros.evaluation.datasets.clips import EvaluationClip, ExpressionChoice, Referral, masks_from_labels
from decaf_ros.evaluation.jobs import Plan
from decaf_ros.evaluation.long import Return, Watched, find_returns, score_frame, watch, watchable
from decaf_ros.evaluation.long_pictures import over_time_picture
from decaf_ros.evaluation.long_report import long_report_text, write_long_report
from decaf_ros.evaluation.long_summary import curves, long_summary
from decaf_ros.evaluation.report import check_folder
from decaf_ros.evaluation.run import Evaluator
from decaf_ros.types import Frame, FrameResult, Target, TargetState, TrackletScores
from decaf_tabletop.world.store import clip_path, write_clip

SIZE_HW = (40, 60)
SCORES = TrackletScores(0.9, 0.9, 0.9, 0.9)
IMAGE = Frame(np.zeros((*SIZE_HW, 3), np.uint8), 0, "camera", 0)


def square(x: int, y: int, side: int = 12) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[y : y + side, x : x + side] = True
    return mask


NOTHING = np.zeros(SIZE_HW, bool)
MINE, OTHER, THIRD = square(4, 4), square(30, 20), square(44, 4)


def result(*published: tuple[np.ndarray, str]) -> FrameResult:
    targets = tuple(
        Target(number, number, ("q",), "", TargetState[state], mask, SCORES, 0)
        for number, (mask, state) in enumerate(published, 1)
    )
    labels = np.zeros(SIZE_HW, np.uint8)
    for target in targets:
        labels[target.mask] = target.label
    return FrameResult(IMAGE, labels, (), targets)


def score(objects, targets, *published):
    found = score_frame(result(*published), dict(enumerate(objects)), targets)
    return found.j, found.wrong, found.false_tracked, found.found


@pytest.mark.parametrize(
    ("truth", "published", "expected"),
    [
        (MINE, [(MINE, "TRACKED")], (1.0, False, False, (True,))),
        (MINE, [], (0.0, False, False, (False,))),
        (MINE, [(NOTHING, "OCCLUDED")], (0.0, False, False, (False,))),
        (MINE, [(NOTHING, "TRACKED")], (0.0, False, True, (False,))),
        (MINE, [(OTHER, "TRACKED")], (0.0, True, True, (False,))),
        (MINE, [(OTHER, "OCCLUDED")], (0.0, True, False, (False,))),
        # 6 of 12 columns: IoU 1/3.
        (MINE, [(square(10, 4), "TRACKED")], (pytest.approx(1 / 3), False, True, (False,))),
        # 3 of 12 columns are missing: IoU 0.6.
        (MINE, [(square(7, 4), "TRACKED")], (pytest.approx(0.6), False, False, (True,))),
        # A second id on the same object is wrong, but on no other object.
        (MINE, [(MINE, "TRACKED"), (MINE, "TRACKED")], (1.0, False, True, (True,))),
        # Invisible for real.
        (NOTHING, [(square(4, 4), "TRACKED")], (None, False, True, (False,))),
        (NOTHING, [(OTHER, "TRACKED")], (None, True, True, (False,))),
        (NOTHING, [(NOTHING, "TRACKED")], (None, False, False, (False,))),
        # 64 visible pixels: not scored, and touching them is excused.
        (square(4, 4, 8), [(square(4, 4, 4), "TRACKED")], (None, False, False, (False,))),
        (square(4, 4, 8), [(square(20, 4), "TRACKED")], (None, False, True, (False,))),
    ],
)
def test_scores_of_a_frame(truth, published, expected):
    assert score((truth, OTHER, THIRD), (0,), *published) == expected


def test_scores_of_a_frame_with_two_targets():
    objects = (MINE, OTHER, THIRD)
    both = [(MINE, "TRACKED"), (OTHER, "TRACKED")]
    assert score(objects, (0, 1), *both) == (1.0, False, False, (True, True))
    assert score(objects, (0, 1), both[0]) == (0.5, False, False, (True, False))
    assert score(objects, (0, 1), both[0], (THIRD, "TRACKED")) == (pytest.approx(1 / 3), True, True, (True, False))
    assert score(objects, (0, 1), both[0], (NOTHING, "TRACKED"))[2]
    assert not score((MINE, NOTHING, THIRD), (0, 1), both[0], (NOTHING, "TRACKED"))[2]
    # A target hides the other one: its mask is no longer right for two.
    assert score((MINE, NOTHING, THIRD), (0, 1), both[0], (MINE, "TRACKED"))[2]


def returns(area: str, found: str) -> list[Return]:
    """area: a digit a frame, in units of 50 pixels; found: 1 a frame. 10 frames a second, from 0.1 s on."""
    seconds = np.arange(1, len(area) + 1) / 10
    return find_returns(seconds, np.array([50 * int(digit) for digit in area]), np.array([one == "1" for one in found]))


def test_returns():
    assert returns("4" * 40, "1" * 40) == []
    # Unseen for 0.9 s only; then for 1 s.
    assert returns("444" + "0" * 9 + "4" * 30, "0" * 42) == []
    assert returns("444" + "0" * 10 + "4" * 30, "0" * 13 + "1" * 30) == [(pytest.approx(1.4), 0.0)]
    # It enters slowly: 50 pixels are not yet back.
    late = returns("444" + "0" * 12 + "11" + "4" * 30, "0" * 17 + "00001" + "0" * 25)
    assert late == [(pytest.approx(1.8), pytest.approx(0.4))]
    # Barely visible in between: still one stretch.
    assert len(returns("444" + "0" * 12 + "1" + "000" + "4" * 30, "0" * 49)) == 1
    # Not found: counts if it stays for 2 s.
    assert returns("4" + "0" * 10 + "4" * 21, "0" * 32) == [(pytest.approx(1.2), None)]
    assert returns("4" + "0" * 10 + "4" * 20, "0" * 31) == []
    assert returns("4" + "0" * 10 + "4" * 20 + "0" * 10, "0" * 41) == []
    # A match before it is back does not count.
    assert returns("4" + "0" * 10 + "4" * 21, "1" * 11 + "0" * 21) == [(pytest.approx(1.2), None)]


FRAMES = 120
# The mug is away for two seconds; the ball stays.
WORLD = World(mug=lambda s: None if 106.0 <= s < 108.0 else (2, 2), ball=lambda s: (20, 14))
MUG = Referral("the mug", "explicit", (0,), "mug", asked_s=2.0)


@pytest.fixture
def small(monkeypatch):
    """Objects of the scripted world have 64 pixels."""
    monkeypatch.setattr(long, "VISIBLE_PX", 40)
    monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", WorldTracker)


def clip_of(world=WORLD, expressions=(MUG,), count=FRAMES) -> EvaluationClip:
    frames = tuple(frame(number) for number in range(count))
    labels = np.zeros((count, *frames[0].size_hw), np.uint8)
    for one in frames:
        for label, name in ((1, "mug"), (2, "ball")):
            labels[one.index][world.mask(name, one)] = label
    return EvaluationClip("scripted", frames, masks_from_labels(labels, 2), tuple(expressions))


def watched(*script, tracker=None, monkeypatch=None, presence=None, **changes) -> Watched:
    if tracker:
        monkeypatch.setattr("decaf_ros.online.follower.StreamingTracker", tracker)
    decaf = ScriptedDecaf(
        WORLD, settings(**{"regrounding__stride": 4, "regrounding__policy": "refresh"} | changes), script
    )
    decaf.presence = presence or decaf.presence
    return watch(decaf, clip_of(), MUG)


def test_a_target_that_is_held(small):
    """Grounded at 2.0 s on the key frames 0, 5, 10, 15 and 20, and again every 4 key frames, 2 s."""
    found = watched(["mug"])
    assert (found.clip, found.text, found.asked_s, found.answered) == ("scripted", "the mug", 2.0, True)
    np.testing.assert_allclose(found.seconds, np.arange(1, 100) / 10)
    away = (found.seconds >= 4.0 - 1e-6) & (found.seconds < 6.0 - 1e-6)
    assert np.isnan(found.j[away]).all() and (found.j[~away] == 1).all() and found.mean_j == 1
    assert not (found.wrong.any() or found.false_tracked.any() or found.switches.any())
    assert found.seconds[found.groundings > 0] == pytest.approx([2, 4, 6, 8])
    assert len(found.cpu_s) == 99 and (found.cpu_s >= 0).all() and found.cpu_s.sum() > 0
    assert found.returns == ((pytest.approx(6.0), 0.0),)
    assert 0.1 < found.first_mask_s < 5  # answered between two frames, shown on the next one
    assert found.picture.ndim == 3 and found.picture.dtype == np.uint8


class DriftingTracker(WorldTracker):
    """Moves to the ball if its object is hidden, for good."""

    def step(self, where):
        names = self._names.items()
        self._names = {key: name if self._world.mask(name, where).any() else "ball" for key, name in names}
        return super().step(where)


def test_a_tracker_that_moves_to_another_object(small, monkeypatch):
    found = watched(["mug"], tracker=DriftingTracker, monkeypatch=monkeypatch, regrounding__policy="off")
    # For half a second such a jump is not believed; the scripted tracker has no descriptors to tell the two apart.
    wrong = found.seconds >= 4.5 - 1e-6
    assert (found.wrong == wrong).all() and (found.false_tracked == wrong).all()
    assert (found.j[found.seconds >= 6.0] == 0).all()
    assert found.returns == ((pytest.approx(6.0), None),) and not found.groundings.any()


def test_a_target_that_is_lost_and_found_again_later(small):
    """Lost a second after it is hidden. The scripted tracker has no descriptors, so that only a grounding finds it."""
    found = watched(["mug"], [], ["mug"], tracking__lost_after_s=1.0, regrounding__policy="hold")
    (back,) = found.returns
    assert back.seconds == pytest.approx(6.0) and back.delay_s > 0
    late = (found.seconds >= 6.0 - 1e-6) & (found.seconds < 6.0 + back.delay_s - 1e-6)
    assert (found.j[late] == 0).all() and (found.j[found.seconds > 6.0 + back.delay_s + 0.2] == 1).all()
    assert not found.switches.any()  # the same id


def test_a_query_that_finds_nothing(small):
    found = watched([], presence=ABSENT)
    assert not found.answered and found.mean_j == 0 and not found.wrong.any()
    assert found.returns == ((pytest.approx(6.0), None),)


def test_failures_raise(small):
    with pytest.raises(RuntimeError, match="broken"):
        watched(ValueError("broken"))
    decaf = ScriptedDecaf(WORLD, settings(), [["mug"]])
    with pytest.raises(ValueError, match="expected a clip longer than 1.9 s"):
        watch(decaf, clip_of(count=20), MUG)
    with pytest.raises(RuntimeError, match="not answered before the clip ended"):
        watch(decaf, clip_of(count=12), Referral("the mug", "explicit", (0,), asked_s=0.2))


def test_which_expressions_are_asked(small):
    late = World(mug=lambda s: None if s < 105.0 else (2, 2), ball=lambda s: (20, 14))
    timeless = Referral("the red mug", "explicit", (0,), timeless=True)
    whole = Referral("the one that moves", "motion", (1,))
    absent = Referral("the cone", "absent", (), asked_s=3.0)
    found = watchable(clip_of(late, (MUG, timeless, whole, absent)))
    assert [(one.text, one.asked_s) for one in found] == [("the mug", 2.0), ("the red mug", 5.0)]
    plan = Plan(ExpressionChoice(0, 1, 0), watch=True)
    job = plan.job(clip_of(late, (MUG, timeless, whole, absent)), 0, 1)
    assert len(job.watched) == 1 and not job.expressions and job.online is None and not job.segmenter
    scores = Evaluator(ScriptedDecaf(late, settings(), [["mug"]]))(job)
    assert len(scores.watched) == 1 and scores.cases == ()


def hand_made(**changes) -> Watched:
    """70 frames, one a second."""
    seconds = np.arange(1.0, 71.0)
    values = {
        "clip": "a",
        "text": "the mug",
        "kind": "explicit",
        "asked_s": 4.0,
        "answered": True,
        "seconds": seconds,
        "j": np.where(seconds <= 5, 1.0, np.where(seconds <= 20, 0.5, np.nan)),
        "wrong": seconds <= 1,
        "false_tracked": (seconds > 5) & (seconds <= 8),
        "switches": (seconds == 30).astype(np.int64) * 2,
        "groundings": (seconds % 10 == 0).astype(np.int64),
        "cpu_s": np.full(70, 0.25),
        "first_mask_s": 1.5,
        "returns": (Return(10.0, 1.0), Return(12.0, 2.5), Return(15.0, None), Return(30.0, 0.0)),
        "picture": np.full((60, 100, 3), 128, np.uint8),
    }
    return Watched(**(values | changes))


def test_the_summary_by_time():
    summary = long_summary([hand_made()])
    assert (summary["questions"], summary["answered"]) == (1, 1)
    by_time = summary["by_time"]
    assert list(by_time) == ["0-5 s", "5-20 s", "20-60 s", "over 60 s"]
    assert [one["frames"] for one in by_time.values()] == [5, 15, 40, 10]
    assert [one["minutes"] for one in by_time.values()] == pytest.approx([5 / 60, 0.25, 40 / 60, 10 / 60])
    assert [one["j"] for one in by_time.values()] == [1.0, 0.5, None, None]
    assert [one["wrong_object"] for one in by_time.values()] == [0.2, 0, 0, 0]
    assert [one["false_tracked"] for one in by_time.values()] == [0, 0.2, 0, 0]
    assert [one["id_switches_a_minute"] for one in by_time.values()] == pytest.approx([0, 0, 3, 0])
    assert [one["groundings_a_minute"] for one in by_time.values()] == pytest.approx([0, 8, 6, 6])
    assert [one["cpu_seconds_a_minute"] for one in by_time.values()] == pytest.approx([15] * 4)
    assert by_time["5-20 s"]["returns"] == {
        "count": 3,
        "found_again": pytest.approx(2 / 3),
        "found_in_time": pytest.approx(1 / 3),
        "median_delay_s": 1.75,
    }
    assert by_time["0-5 s"]["returns"] == {
        "count": 0, "found_again": None, "found_in_time": None, "median_delay_s": None
    }  # fmt: skip
    assert summary["overall"]["j"] == 0.625 and summary["overall"]["returns"]["count"] == 4
    assert summary["overall"]["wrong_object"] == pytest.approx(1 / 70)
    # Frames of several questions count equally.
    short = {
        name: getattr(hand_made(), name)[:5] for name in ("seconds", "wrong", "false_tracked", "switches", "cpu_s")
    }
    other = hand_made(
        **short, first_mask_s=math.nan, groundings=np.zeros(5, int), j=np.zeros(5), returns=(), answered=False
    )
    summary = long_summary([hand_made(), other])
    assert summary["first_mask_s"]["p50"] == 1.5
    assert (summary["answered"], summary["by_time"]["0-5 s"]["j"], summary["overall"]["j"]) == (1, 0.5, 0.5)
    assert [one["j"] for one in summary["watched"]] == [0.625, 0.0]


def test_the_curves():
    found = curves([hand_made()])
    assert found["J while visible"] == [(1, 1.0), (3, 1.0), (5, 0.75), *((2 * n + 1, 0.5) for n in range(3, 10))]
    assert found["wrong object"][:2] == [(1, 0.5), (3, 0.0)] and len(found["wrong object"]) == 35
    picture = over_time_picture(found, "title")
    assert picture.ndim == 3 and picture.min() < 100
    with pytest.raises(ValueError, match="expected points"):
        over_time_picture({"J": []}, "title")


def test_the_report(tmp_path):
    good, bad = hand_made(), hand_made(clip="b", j=np.where(np.arange(70) < 20, 0.1, np.nan), asked_s=5.5)
    summary = long_summary([good, bad])
    text = long_report_text(summary)
    assert "Questions: 2, answered with targets: 2" in text
    assert "first mask, on this machine: p50 1.50, p90 1.50" in text
    rows = {
        row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]]
        for row in text.splitlines()
        if "|" in row
    }
    assert rows["measure"] == ["0-5 s", "5-20 s", "20-60 s", "over 60 s", "all"]
    assert rows["J (%)"] == ["55.0", "30.0", "-", "-", "36.3"]
    assert rows["found again within 2 s (%)"] == ["-", "33.3", "100.0", "-", "50.0"]
    assert rows["b"][1:5] == ["5.5", "yes", "10.0", "1.4"]
    write_long_report(tmp_path, summary, [good, bad], text)
    assert json.loads((tmp_path / "report.json").read_text())["overall"]["frames"] == 140
    frames = json.loads((tmp_path / "watched.json").read_text())
    assert frames[0]["j"][0] == 1.0 and frames[0]["j"][-1] is None and frames[1]["returns"][2]["delay_s"] is None
    for name in ("over_time.png", "worst.png"):
        assert cv2.imread(str(tmp_path / name)) is not None
    check_folder(tmp_path)  # may be replaced


PARAMETERS = """
/**:
  ros__parameters:
    mllm: {video_tokens: 24, local_files_only: true}
    sam2: {local_files_only: true}
    window: {size: 3, min_frames: 2, keyframe_period_s: 0.2}
    segmentation: {max_points: 3}
    presence: {threshold: 0.2}
    regrounding: {stride: 30}
"""


@pytest.fixture
def command(tiny_mllm_dir, tiny_sam2_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(PARAMETERS)
    (tmp_path / "clips").mkdir()
    write_clip(clip_path(tmp_path / "clips", 1_000_000, seconds=4.5), drawn_clip(1_000_000, frames=45))
    models = ["--mllm", str(tiny_mllm_dir), "--sam2", str(tiny_sam2_dir), "--workers", "0", "--threads", "1"]
    return ["eval", "--long", "--clips-from", "clips", "--config", "tiny.yaml", *models]


def test_the_command(command, tmp_path, capsys):
    assert main([*command, "--json", "numbers.json", "--kinds", "explicit,attribute"]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    (one,) = numbers["watched"]
    assert one["clip"] == "01000000_4.5s" and 3.2 <= one["asked_s"] <= 4.3
    assert numbers["settings"]["expressions_a_clip"] == {"present": 1, "absent": 0}
    assert not math.isnan(numbers["overall"]["cpu_seconds_a_minute"])
    assert "| measure" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "decaf_eval").iterdir()} == {
        "report.html", "report.md", "report.json", "watched.json", "over_time.png", "worst.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--seconds", "60"], "--seconds: only with --long, and without --clips-from"),
        (["--calibrate"], "--calibrate: no effect with --long"),
        (["--ablation-clips", "2"], "--ablation-clips: no effect with --long"),
    ],
)
def test_bad_combinations(command, capsys, more, error):
    assert main([*command, *more]) != 0
    assert error in capsys.readouterr().err
