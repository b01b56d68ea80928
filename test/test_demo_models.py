"""The shipped checkpoints: their size and quality."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from decaf_ros.cli.main import main
from decaf_ros.evaluation.metrics import pointing
from decaf_ros.evaluation.sam2 import score_segmenter
from decaf_ros.io.bags import BagReader
from decaf_ros.io.parameter_files import load_config
from decaf_ros.pipeline import Decaf
from decaf_ros.segmentation.overlap import mask_iou
from decaf_ros.segmentation.sam2_loading import load_sam2
from decaf_ros.types import Window
from decaf_tabletop.dataset import evaluation_clip
from decaf_tabletop.demo.hold import follow
from decaf_tabletop.training.sam2_check import score_tracks
from decaf_tabletop.world.bag import COMPRESSED_TOPIC, read_ground_truth
from decaf_tabletop.world.store import clip_path

ROOT = Path(__file__).parents[1]
MIB = 2**20
NAMES = ("tabletop_mllm", "tabletop_sam2")


def test_sizes():
    sizes = [
        sum(file.stat().st_size for file in (ROOT / "decaf_tabletop" / "models" / name).iterdir()) for name in NAMES
    ]
    assert sizes[0] <= 15 * MIB and sum(sizes) <= 25 * MIB


def test_a_question_about_the_demo_bag():
    """The largest object is a can: it gets the attention and the mask. Needs neither ROS nor a renderer."""
    bag = ROOT / "decaf_tabletop" / "demo" / "bags" / "story"
    truth = read_ground_truth(bag)
    expression = next(one for one in truth.expressions if one.kind == "size")
    with BagReader(bag) as reader:
        frames = [one for one in reader.frames(COMPRESSED_TOPIC) if one.stamp_ns in truth.labels]
    start_ns = frames[0].stamp_ns
    past = [one for one in frames if one.stamp_ns - start_ns <= expression.asked_s * 1e9][::-2][:16][::-1]
    decaf = Decaf.from_config(load_config(ROOT / "decaf_tabletop" / "config" / "tabletop.yaml"))
    result = decaf.segment(Window(tuple(past)), expression.text)
    target = np.stack([truth.labels[one.stamp_ns] == expression.targets[0] + 1 for one in past])
    assert result.grounding.category == expression.category
    assert pointing(result.grounding.maps.fused, target).hit >= 0.9
    masks = np.any([one.masks for one in result.selected], axis=0)
    assert (masks & target).sum() / (masks | target).sum() > 0.8


def test_predicted_iou_correlates_with_true_iou():
    """A grid of clicks on some frames of the demo bag; most of them miss every object."""
    bag, across = ROOT / "decaf_tabletop" / "demo" / "bags" / "story", 16
    truth = read_ground_truth(bag)
    with BagReader(bag) as reader:
        frames = [one for one in reader.frames(COMPRESSED_TOPIC) if one.stamp_ns in truth.labels][::80]
    sam2 = load_sam2(load_config(ROOT / "decaf_tabletop" / "config" / "tabletop.yaml").sam2)
    xy = np.stack(np.meshgrid(*[(np.arange(across, dtype=np.float32) + 0.5) / across] * 2), axis=-1).reshape(-1, 2)
    predicted, true = [], []
    for frame in frames:
        labels = truth.labels[frame.stamp_ns]
        clicked = sam2.masks_at_points(sam2.embed(frame), xy)
        rows, columns = (xy[:, ::-1] * labels.shape).astype(int).T
        for mask, iou, label in zip(clicked.masks.numpy(), clicked.iou.tolist(), labels[rows, columns]):
            predicted.append(iou)
            true.append(mask_iou(mask, labels == label) if label else 0.0)
    predicted, true = np.array(predicted), np.array(true)
    assert (true > 0).sum() > 50 and predicted[true == 0].mean() < 0.2 and predicted[true > 0].mean() > 0.8
    assert np.corrcoef(predicted, true)[0, 1] > 0.75


@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_quality(tmp_path):
    """Lower bounds on three clips. No reported number uses this seed."""
    scores = tmp_path / "scores.json"
    command = ["eval", "--dataset", "tabletop", "--seed", "77", "--clips", "3", "--no-ablation", "--workers", "0"]
    assert main([*command, "--threads", "1", "--json", str(scores), "--out", str(tmp_path / "report")]) == 0
    report = json.loads(scores.read_text())
    overall, baseline = report["overall"], report["baseline"]
    assert overall["j_and_f"] >= 0.6 and overall["category"] >= 0.8
    assert overall["pointing"] >= 0.75 and overall["pointing"] > max(baseline.values()) + 0.3
    assert report["segmenter"]["one_click_iou"] >= 0.85 and report["segmenter"]["propagated_iou"] >= 0.7
    assert report["counts"]["not_found"]["absent"] >= 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_crossing_objects_keep_their_identity():
    """40 crossings; a report has too few."""
    from decaf_tabletop.world.simulator import make_clip

    sam2 = load_sam2(load_config(ROOT / "decaf_tabletop" / "config" / "tabletop.yaml").sam2)
    clips = [make_clip(seed, crossing=True) for seed in range(900_500, 900_540)]
    means = score_tracks(sam2, clips).means()
    assert means["tracks_hidden"] >= 20 and means["followed_iou_hidden"] >= 0.75
    assert means["took_another"] <= 0.15
    # The same from a click, with the code of `decaf eval`.
    scores = [score_segmenter(sam2, evaluation_clip(clip, clip_path(ROOT, clip.seed, True))) for clip in clips]
    propagated = [one for score in scores for one in score.propagated]
    crossed = [one.iou for one in propagated if one.occluded]
    assert np.mean([one.iou for one in propagated]) >= 0.75
    assert len(crossed) >= 15 and np.mean(crossed) >= 0.75


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mujoco") is None, reason="needs mujoco")
def test_quality_with_ablations(tmp_path):
    """Lower bounds on 16 clips. No reported number uses this seed."""
    scores = tmp_path / "scores.json"
    command = ["eval", "--dataset", "tabletop", "--seed", "1078", "--clips", "16", "--ablation-clips", "8"]
    assert main([*command, "--json", str(scores), "--out", str(tmp_path / "report")]) == 0
    report = json.loads(scores.read_text())
    overall, by_type, ablation = report["overall"], report["by_type"], report["ablation"]
    assert overall["j_and_f"] >= 0.75 and overall["pointing"] >= 0.9
    for kind, category in (("attribute", 0.9), ("motion", 0.9), ("size", 0.9), ("relation", 0.8)):
        assert by_type[kind]["category"] >= category and by_type[kind]["pointing"] >= 0.85, kind
    # "absent" also uses the model's answer "none", which is trained; "absent_by_score" uses the presence score alone.
    for absent in (report["absent"], report["absent_by_score"]):
        assert absent["recall"] >= 0.8 and absent["precision"] >= 0.8
    branches = report["category_by_branch"]["by_type"]
    assert all(branches[kind]["video"] >= 0.9 for kind in ("attribute", "motion", "size"))
    assert branches["relation"]["video"] >= 0.8
    segmenter = report["segmenter"]
    assert segmenter["one_click_iou"] >= 0.85 and segmenter["propagated_iou"] >= 0.75
    assert segmenter["crossed"] >= 3 and segmenter["crossed_iou"] >= 0.65, (
        "there are few crossed objects; one of them may be lost"
    )
    # Eight clips, half of them crossings in which the target is hidden for most of the time: an answer is 12 points.
    online = report["online"]
    assert online["tracked"] >= 0.7 and online["j"] >= 0.45
    assert online["id_switches"] <= 3 and online["id_drifts"] <= 1
    # One variant against another on 24 expressions is noise; `decaf eval` reports them all.
    assert ablation["full"]["j_and_f"] >= 0.75
    assert ablation["full"]["j_and_f"] > ablation["start_layer_last"]["j_and_f"] + 0.1


@pytest.mark.slow
def test_answers_about_the_story_are_held():
    """From a second after the question to the end of the bag, with the default policy."""
    decaf = Decaf.from_config(load_config(ROOT / "decaf_tabletop" / "config" / "tabletop.yaml"))
    bag = ROOT / "decaf_tabletop" / "demo" / "bags" / "story"
    truth = read_ground_truth(bag)
    with BagReader(bag) as reader:
        frames = list(reader.frames(COMPRESSED_TOPIC))
    for question in truth.expressions:
        if question.targets:
            held = follow(decaf, frames, truth, question)
            assert held.is_held and held.wrongly_tracked <= 0.02 * held.total, question.text
            assert held.groundings == 1
