"""Points, suppression and scoring against the published implementation's results (golden/README.md)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2_scenes import grid_masks, packed

from decaf_ros.config import SegmentationConfig
from decaf_ros.segmentation.points import attention_points
from decaf_ros.segmentation.scoring import score_tracklets, select_tracklets
from decaf_ros.segmentation.tracklets import Proposal, suppress


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    with np.load(golden_dir / "postprocessing.npz") as stored:
        return {name: stored[name] for name in stored.files}


def cases(golden: dict[str, np.ndarray], kind: str, result: str) -> list[dict[str, np.ndarray]]:
    """The cases of a kind, each with its arrays by name without the case's prefix."""
    names = [name.split("_")[0] for name in golden if re.fullmatch(rf"{kind}\d+_{result}", name)]
    assert names, f"no {kind} case"
    return [{key[len(name) + 1 :]: golden[key] for key in golden if key.startswith(f"{name}_")} for name in names]


def unpacked(case: dict[str, np.ndarray], name: str, shape: str) -> torch.Tensor:
    size = tuple(case[shape].tolist())
    return torch.from_numpy(np.unpackbits(case[name], count=int(np.prod(size))).reshape(size).astype(bool))


def test_golden_points(golden):
    for case in cases(golden, "fusion", "fused"):
        points = attention_points(case["fused"], SegmentationConfig())
        expected = case["points_t_x_y_value"]
        np.testing.assert_array_equal(points.frame, expected[:, 0])
        np.testing.assert_allclose(points.xy, expected[:, 1:3], atol=1e-6)
        np.testing.assert_allclose(points.value, expected[:, 3], atol=1e-6)


def test_golden_suppression(golden):
    for case in cases(golden, "nms", "keep"):
        masks = unpacked(case, "masks", "shape")
        scores = torch.from_numpy(case["scores"])
        previous, previous_scores = masks[:0], scores[:0]
        if "prev_masks" in case:
            previous = unpacked(case, "prev_masks", "prev_shape")
            previous_scores = torch.from_numpy(case["prev_scores"])
        keep, delete_previous = suppress(
            packed(masks), scores, packed(previous), previous_scores,
            SegmentationConfig().suppression_iou,
        )  # fmt: skip
        assert keep == case["keep"].tolist()
        assert delete_previous == case["delete_previous"].tolist()


def test_golden_scores(golden):
    config = SegmentationConfig(fallback="best")
    for case in cases(golden, "score", "consistency"):
        tracks = unpacked(case, "tracklets", "shape")
        proposals = [  # the object score, unused here, identifies each proposal
            Proposal(grid_masks(track), int(source), (0.5, 0.5), float(score) / 2, float(score) / 2, float(index))
            for index, (track, source, score) in enumerate(zip(tracks, case["frame_index"], case["object_scores"]))
        ]
        ranked = score_tracklets(proposals, case["attention"], config)
        in_order = sorted(ranked, key=lambda tracklet: tracklet.object_score)
        consistency = [tracklet.scores.consistency for tracklet in in_order]
        np.testing.assert_allclose(consistency, case["consistency"], atol=1e-5)
        combined = [tracklet.scores.combined for tracklet in in_order]
        np.testing.assert_allclose(combined, (case["object_scores"] + case["consistency"]) / 3, atol=1e-5)
        selected = [tracklet.object_score for tracklet in select_tracklets(ranked, config)]
        assert sorted(selected) == sorted(case["selected"].tolist())
