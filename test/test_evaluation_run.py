"""Evaluation of clips with a Decaf whose answers are known: scores, summary, report and processes."""

from __future__ import annotations

import functools
from dataclasses import asdict

import numpy as np
import pytest
from evaluation_scenes import DrawnClips, KnownDecaf, evaluation_clip

from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.datasets.clips import ExpressionChoice, Referral
from decaf_ros.evaluation.jobs import Plan, clip_scores
from decaf_ros.evaluation.online import OnlineScore
from decaf_ros.evaluation.report import caption, report_text, write_report
from decaf_ros.evaluation.run import CaseError, Evaluator, Job
from decaf_ros.evaluation.summary import MEASURES, Collected, summary
from decaf_tabletop.world.clip import KINDS

CONFIG = replace(DecafConfig(), {"window.size": 4, "presence.threshold": 0.5})
ANSWERS = {
    "the red ball": ((0,), 0.9, "Ball"),  # correct
    "the green object": ((2,), 0.8, "cube"),  # wrong object
    "the object that moves": ((0,), 0.2, "ball"),  # correct, but "not found"
    "the balls in front": ((1,), 0.7, "ball"),  # one of two targets
    "the black cone": ((1,), 0.1, "cone"),  # correctly not found
    "the mug": ((0,), 0.6, "mug"),  # found, but absent
}


def evaluator(**answers) -> Evaluator:
    return Evaluator(KnownDecaf(CONFIG, {**ANSWERS, **answers}))


@pytest.fixture(scope="module")
def collected() -> Collected:
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    collected = Collected()
    for scores in clip_scores(DrawnClips(2), plan, evaluator, workers=0):
        collected.add(scores)
    return collected


@pytest.fixture(scope="module")
def numbers(collected):
    return summary(collected, KINDS, 0.5)


def by_text(collected, text):
    return next(case for case in collected.cases if case.text == text)


def test_a_correct_answer(collected):
    case = by_text(collected, "the red ball")
    assert case.found and case.published == case.always == (1, 1)
    assert (case.pointing.hit, case.pointing.window) == (1, 1)
    assert case.category_right and case.answer == "tracking 1 target: Ball"
    assert (case.video_category, case.frame_categories) == ("Ball", ("ball", "cube"))


def test_a_wrong_object(collected):
    case = by_text(collected, "the green object")
    assert case.published == (0, 0) and case.pointing.hit == 0 and case.category_right is False


def test_a_wrong_not_found_scores_zero(collected):
    case = by_text(collected, "the object that moves")
    assert not case.found and case.always == (1, 1) and case.published == (0, 0)
    assert case.answer == "not found: presence score 0.20 is below presence.threshold 0.50"


def test_the_category_none_means_not_found():
    """It leaves the presence score unchanged, whose own precision and recall are reported separately."""
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    load, collected = functools.partial(evaluator, **{"the mug": ((0,), 0.6, "none")}), Collected()
    for scores in clip_scores(DrawnClips(1), plan, load, workers=0):
        collected.add(scores)
    case = by_text(collected, "the mug")
    assert not case.found and case.answer.startswith("not found: the model answered 'none' for the category")
    numbers = summary(collected, KINDS, 0.5)
    assert numbers["absent"] == {"precision": pytest.approx(2 / 3), "recall": 1}
    assert numbers["absent_by_score"] == {"precision": 0.5, "recall": 0.5}


def test_half_of_the_targets(collected):
    clip = evaluation_clip()
    expected = np.mean([found.sum() / truth.sum() for found, truth in zip(clip.mask((1,)), clip.mask((1, 2)))])
    assert by_text(collected, "the balls in front").published.j == pytest.approx(expected)


def test_absent_targets_have_no_mask_to_score(collected):
    for text, is_found in (("the black cone", False), ("the mug", True)):
        case = by_text(collected, text)
        assert case.found == is_found
        assert (case.published, case.pointing, case.category_right) == (None, None, None)


def test_summary(collected, numbers):
    assert set(numbers["overall"]) == set(MEASURES)
    half = by_text(collected, "the balls in front").published
    assert numbers["overall"]["j"] == pytest.approx((1 + 0 + 0 + half.j) / 4)
    assert numbers["overall"]["j_and_f"] == pytest.approx((1 + half.j_and_f) / 4)
    assert numbers["always_answered"]["j"] == pytest.approx((2 + half.j) / 4)
    assert numbers["overall"]["pointing"] == 0.75 and numbers["overall"]["category"] == 0.75
    assert numbers["by_type"]["explicit"] == dict.fromkeys(MEASURES, 1.0)
    assert numbers["by_type"]["motion"] == {"j_and_f": 0, "j": 0, "f": 0, "pointing": 1, "category": 1}
    assert numbers["absent"] == {"precision": 0.5, "recall": 0.5}
    assert numbers["absent_by_score"] == {"precision": 0.5, "recall": 0.5}
    assert numbers["absent_by_type"] == {"absent": numbers["absent"], "absent event": {"precision": 0, "recall": None}}
    assert 0 < numbers["baseline"]["chance_pointing"] < 0.3
    assert numbers["category_by_branch"]["overall"] == {"video": 0.75, "frames": 0.5}
    assert numbers["counts"]["by_type"]["attribute"] == 2 and numbers["counts"]["clips"] == 2
    assert numbers["counts"]["not_found"] == {"motion": 2, "absent": 2}
    # Present: 0.9, 0.8, 0.7 and 0.2; absent: 0.6 and 0.1.
    assert numbers["roc"]["area"] == pytest.approx(7 / 8)
    curve = numbers["presence_curve"]
    assert curve["thresholds"] == [0, 0.1, 0.2, 0.6, 0.7, 0.8, 0.9]
    assert curve["precision"] == pytest.approx([4 / 6, 4 / 6, 4 / 5, 3 / 4, 1, 1, 1])
    assert curve["recall"] == pytest.approx([1, 1, 1, 3 / 4, 3 / 4, 1 / 2, 1 / 4])
    assert list(numbers["case_seconds"]) == ["p50", "p90", "p95", "p99"]


def test_a_type_without_cases_has_no_numbers(numbers):
    for kind in ("size", "relation", "temporal"):
        assert numbers["by_type"][kind] == dict.fromkeys(MEASURES)
    assert "absent" not in numbers["by_type"] and numbers["ablation"] == {}
    assert numbers["online"]["j"] is None and numbers["segmenter"]["one_click_iou"] is None


def test_the_report_shows_the_numbers(collected, numbers, tmp_path):
    text = report_text(numbers)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    table = {row[0]: row[1:] for row in rows}
    assert table["explicit"][:6] == ["2", "100.0", "100.0", "100.0", "100.0", "100.0"]
    assert table["size"][:6] == ["0", *["-"] * 5]
    assert table['"not found": recall'] == ["50.0"]
    write_report(tmp_path / "out", numbers, collected, text)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.md", "report.json", "cases.json", "contact_sheet.png", "roc.png"}


def test_best_and_worst_are_kept(collected):
    best, worst = collected.extremes["absent"]
    assert (best.case.text, worst.case.text) == ("the black cone", "the mug")
    assert best.picture.shape[2] == 3 and best.picture.dtype == np.uint8
    line = caption(best.case)
    assert line == 'absent: "the black cone", clip clip0, presence 0.10, not found, category "cone"'
    assert caption(collected.extremes["attribute"].worst.case).endswith(
        'J&F 0.0, pointing 0.0, presence 0.80, found, category "cube" (expected ball)'
    )


def test_without_masks_only_the_grounding_is_scored():
    clip = evaluation_clip()
    (entry,) = evaluator()(Job(clip, clip.expressions[:1], masks=False)).cases
    assert entry.case.always is None and entry.case.pointing.hit == 1


def test_a_failing_case_is_named_and_ends_the_run():
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    broken = functools.partial(evaluator, **{"the mug": RuntimeError("out of memory")})
    with pytest.raises(CaseError, match="^clip clip0, expression 'the mug': RuntimeError: out of memory$"):
        list(clip_scores(DrawnClips(1), plan, broken, workers=0))


def test_clips_made_in_another_process_give_the_same_scores(collected):
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    assert_as_collected(list(clip_scores(DrawnClips(2), plan, evaluator, workers=1)), collected)


def test_several_processes_give_the_same_scores_and_report_failures(collected):
    """Results come in the order of the clips; the case of the last clip fails."""
    plan = Plan(ExpressionChoice(0, present=4, absent=2), segmenter=False)
    odd = Referral("the odd one", "explicit", (0,), "ball")
    broken = functools.partial(evaluator, **{odd.text: RuntimeError("out of memory")})
    results = []
    with pytest.raises(CaseError, match="^clip clip2, expression 'the odd one': RuntimeError: out of memory$"):
        results.extend(clip_scores(DrawnClips(3, odd), plan, broken, workers=2))
    assert_as_collected(results, collected)


def assert_as_collected(results, collected):
    cases = [entry.case for scores in results for entry in scores.cases]
    assert [(case.clip, case.text) for case in cases] == [(case.clip, case.text) for case in collected.cases]
    assert [case.published for case in cases] == [case.published for case in collected.cases]


def test_jobs():
    plan = Plan(ExpressionChoice(0, 4, 2), ablation_clips=1, online_clips=2)
    clip = evaluation_clip()
    clip.objects[1, 3:5] = False  # the green ball is occluded
    jobs = [plan.job(clip, index, scored=3) for index in range(5)]
    assert [job.ablate for job in jobs] == [True, False, False, False, False]
    assert [job.online and job.online.text for job in jobs[2:]] == [None, "the green object", "the green object"]
    assert all(job.online in job.expressions and job.online.timeless for job in jobs[:2])
    assert all(job.segmenter for job in jobs) and not jobs[3].expressions
    two_kinds = Plan(ExpressionChoice(0, 4, 2, ["explicit", "motion"]))
    assert two_kinds.job(clip, 3, scored=3).online.text == "the red ball"


def test_the_report_shows_the_online_scores(numbers):
    online = {"clips": 9, "hidden": 5, "frames": 152, "id_switches": 2, "id_drifts": 1, "tracked": 1.0, "j": 0.5}
    score = OnlineScore("01000007", "the red ball", "explicit", True, 16, True, 0.5, 2, 1)
    online["played"] = [asdict(score)]
    text = report_text(numbers | {"online": online})
    assert "| online: J of the published masks (clips: 9)" in text
    assert "152 frames of 9 clips. In 5 clips a target is occluded while it is tracked.\n\n| clip" in text
    assert text.splitlines()[-1].split() == "| 01000007 | the red ball | yes | 16 | 50.0 | 2 | 1 |".split()
    assert "2 id switches of targets and 1 moves of an id to another object" in text
