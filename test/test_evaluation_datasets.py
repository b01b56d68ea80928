"""Clips, the choice of expressions, and the datasets of the simulated tabletop."""

from __future__ import annotations

import pickle
from collections import Counter
from dataclasses import replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from evaluation_scenes import drawn_clip, evaluation_clip

from decaf_ros.evaluation.datasets import registry
from decaf_ros.evaluation.datasets.clips import EvaluationClip, ExpressionChoice, Referral, is_absent_kind
from decaf_ros.evaluation.datasets.registry import Selection, dataset_names, find_source
from decaf_tabletop.dataset import calibration_clips, has_similar, report_clips, stored_clips
from decaf_tabletop.world.clip import KINDS, TabletopObject
from decaf_tabletop.world.expressions import expressions_of
from decaf_tabletop.world.store import clip_path, write_clip


def test_mask_is_the_union_of_the_targets():
    clip, labels = evaluation_clip(), drawn_clip(0).labels
    assert (clip.mask((0,)) == (labels == 1)).all()
    assert (clip.mask((0, 2)) == np.isin(labels, (1, 3))).all()
    assert not clip.mask(()).any()


def test_objects_may_overlap():
    clip = evaluation_clip()
    objects = np.stack([clip.objects[0], clip.objects[0] | clip.objects[1]])
    clip = EvaluationClip("overlapping", clip.frames, objects, ())
    assert (clip.mask((0,)) & clip.mask((1,))).any() and (clip.masks_at(2)[1] == objects[1, 2]).all()


def test_an_inconsistent_clip_is_refused():
    clip = evaluation_clip()
    with pytest.raises(ValueError, match="clip x: expected frames and bool masks"):
        EvaluationClip("x", clip.frames, clip.objects[:, :-1], ())
    with pytest.raises(ValueError, match="clip x: expected frames with the indices 0 to 6"):
        EvaluationClip("x", clip.frames[1:], clip.objects[:, 1:], ())


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (Referral("the ball", "explicit", ()), "expected targets, or a type absent without any, got type explicit"),
        (Referral("the ball", "absent", (0,)), r"expected targets, .* got type absent and targets \(0,\)"),
        (Referral("the ball", "explicit", (3,)), r"expected targets below 3, got \(3,\)"),
    ],
)
def test_an_expression_that_does_not_fit_its_clip_is_refused(expression, words):
    with pytest.raises(ValueError, match=f"clip one, 'the ball': {words}"):
        evaluation_clip(expressions=[expression])


def test_pickled_masks_take_an_eighth():
    clip = evaluation_clip()
    noisy = replace(clip, objects=np.random.default_rng(0).random(clip.objects.shape) > 0.5)
    sent = pickle.dumps(noisy)
    found = pickle.loads(sent)
    np.testing.assert_array_equal(found.objects, noisy.objects)
    assert found.objects.dtype == bool and found.expressions == clip.expressions
    assert len(sent) < len(pickle.dumps(clip.frames)) + noisy.objects.nbytes / 7


def clip_with_kinds(kinds):
    def targets(kind):
        return () if is_absent_kind(kind) else (0,)

    return evaluation_clip(
        expressions=[Referral(f"{kind} {number}", kind, targets(kind)) for kind in kinds for number in range(3)]
    )


def test_choice_is_balanced_over_types():
    """Every third clip has temporal expressions; all clips have the other types."""
    choice = ExpressionChoice(0, present=3, absent=1)
    asked = Counter()
    for number in range(40):
        kinds = [kind for kind in KINDS if kind != "temporal" or number % 3 == 0]
        chosen = choice(clip_with_kinds(kinds))
        assert len(chosen) == 4 and sum(is_absent_kind(one.kind) for one in chosen) == 1
        assert len({one.kind for one in chosen}) == 4
        asked.update(one.kind for one in chosen)
    counts = [asked[kind] for kind in KINDS if not is_absent_kind(kind) and kind != "temporal"]
    assert asked["absent"] == asked["absent event"] == 20
    assert asked["temporal"] == 14 and max(counts) - min(counts) <= 1


def test_choice_takes_a_type_twice_only_if_there_is_no_other():
    chosen = ExpressionChoice(0, present=3, absent=2)(clip_with_kinds(["explicit", "size", "absent"]))
    counts = Counter(one.kind for one in chosen)
    assert counts["absent"] == 2 and sorted((counts["explicit"], counts["size"])) == [1, 2]
    assert len({one.text for one in chosen}) == 5


def test_choice_depends_on_the_seed_only():
    def texts(seed):
        choice = ExpressionChoice(seed, 3, 1)
        return [one.text for _ in range(3) for one in choice(clip_with_kinds(KINDS))]

    assert texts(1) == texts(1) != texts(2)


def test_only_the_selected_types_are_asked():
    chosen = ExpressionChoice(0, 3, 1, ["attribute", "absent"])(evaluation_clip())
    assert [one.kind for one in chosen] == ["attribute", "absent"]


def test_reports_share_no_clip_with_training_calibration_or_each_other():
    def seeds(seed, count, crossings):
        made = report_clips(seed, count, crossings)
        first = made.first_seed
        return {first + k for k in range(count)} | {first + 5000 + k for k in range(crossings)}

    reports = [seeds(seed, 5000, 5000) for seed in (0, 1, 99, 100, 20_261_124)]
    assert min(reports[0]) == 1_000_000 and max(reports[2]) < calibration_clips(1).first_seed == 2_000_000
    assert min(reports[3]) == 3_000_000 and len(set.union(*reports)) == 5 * 10_000
    with pytest.raises(ValueError, match="--seed: expected 0 or more, got -1"):
        report_clips(-1, 5, 0)
    with pytest.raises(ValueError, match="--clips: expected 1 to 1000000, got 1000001"):
        calibration_clips(1_000_001)
    for bad in (0, 5001):
        with pytest.raises(ValueError, match="--clips: expected 1 to 5000"):
            report_clips(0, bad, 0)


@pytest.fixture
def folder(tmp_path):
    for seed in (1_000_001, 1_000_002, 1_000_003):
        write_clip(clip_path(tmp_path, seed), drawn_clip(seed))
    return tmp_path


def test_stored_clips_are_read_in_order_with_their_expressions(folder):
    dataset = pickle.loads(pickle.dumps(stored_clips(folder, 2, calibration=False)))
    assert (dataset.scored, dataset.tracking_only) == (2, 0)
    names = [dataset.clip(index).name for index in range(2)]
    assert names == ["01000001", "01000002"]
    clip = dataset.clip(0)
    drawn = drawn_clip(1_000_001)
    assert (clip.objects == [drawn.labels == label for label in (1, 2, 3)]).all()
    red = [one for one in clip.expressions if one.kind == "attribute" and "red" in one.text]
    assert [one.targets for one in red] == [(0,)]
    known = expressions_of(drawn)
    assert [(one.text, one.kind, one.targets, one.category) for one in clip.expressions] == [
        (one.text, one.kind, one.targets, one.category) for one in known
    ]
    assert {one.kind for one in clip.expressions if one.timeless} == {"explicit", "attribute"}


def test_crossings_have_a_name_of_their_own(folder, monkeypatch):
    write_clip(clip_path(folder, 1_000_002, crossing=True), drawn_clip(1_000_002))
    stored = stored_clips(folder, None, calibration=False)
    names = [stored.clip(index).name for index in range(stored.scored)]
    assert names == ["01000001", "01000002", "01000002_crossing", "01000003"]
    monkeypatch.setattr("decaf_tabletop.world.simulator.make_clip", lambda seed, crossing: drawn_clip(seed))
    made = report_clips(0, count=2, crossings=1)
    assert [made.clip(index).name for index in range(3)] == ["01000000", "01000001", "01005000_crossing"]


def test_training_seeds_are_refused(tmp_path, folder):
    write_clip(clip_path(tmp_path, 17), drawn_clip(17))
    with pytest.raises(ValueError, match="a seed from 1000000 to 1999999 or from 3000000 on, got 17"):
        stored_clips(tmp_path, 1, calibration=False).clip(0)
    with pytest.raises(ValueError, match="expected a clip with a seed from 2000000 to .*, got 1000001"):
        stored_clips(folder, None, calibration=True).clip(1)


def test_a_folder_with_too_few_clips_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="--clips: expected 1 to 3"):
        stored_clips(folder, 4, False)
    with pytest.raises(FileNotFoundError, match="no clip there"):
        stored_clips(tmp_path / "nowhere", None, False)


def test_datasets_are_found_by_name(folder):
    assert "tabletop" in dataset_names()
    source = find_source("tabletop")
    assert source.kinds == KINDS and source.select(Selection(folder=folder)).scored == 3
    assert source.select(Selection(seed=2, count=8)).tracking_only == 2
    with pytest.raises(ValueError, match="--dataset: expected one of .*tabletop.*, got 'moon'"):
        find_source("moon")


def test_a_broken_dataset_is_a_clear_error(monkeypatch):
    broken = EntryPoint("broken", "no_such_module:SOURCE", registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert dataset_names() == sorted(["broken", *registry.BENCHMARKS])
    with pytest.raises(ValueError, match="--dataset broken: cannot be loaded from no_such_module:SOURCE: No module"):
        find_source("broken")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((0,), True),  # the red cube has its colour
        ((1,), True),  # as the mug
        ((2,), False),  # nothing else is blue or a can
        ((0, 1), False),  # their likes are targets too
        ((0, 2), True),
        ((), False),
    ],
)
def test_similar_objects_on_the_table(targets, expected):
    things = [TabletopObject(*look, "small", 0.1, 0.1) for look in (("mug", "red"), ("cube", "red"), ("can", "blue"))]
    assert has_similar(things, targets) is expected
    (same,) = {has_similar([things[2], replace(things[2], color="white")], (place,)) for place in (0, 1)}
    assert same, "the same category"
