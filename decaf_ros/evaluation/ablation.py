"""The paper's ablations (Tab. 4, 5 and 7) on one case: each is the real method under another configuration.

What variants have in common is done once: the model's passes over a prompt serve every rollout and start layer, the
image embeddings every segmentation, and variants of the scoring start from the candidates that were found already.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral
from decaf_ros.evaluation.metrics import MaskScore, Pointing, mask_score, pointing
from decaf_ros.grounding.fusion import coarse_masks
from decaf_ros.grounding.grounder import Grounder, resolve_start_layer
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.pipeline import Decaf, select_targets
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.types import Segmentation

FULL = "full"
# Of one window, which all its variants go on from: with the default parameters and a 7B model 7 GiB. What of a larger
# one finds no room runs again for each variant.
PREFIXES_MIB = 8192


class Variant(NamedTuple):
    """table: of the paper, empty for what it has not. text: in words. changes: of the configuration, by dotted name.
    start: the rollout's first layer, in layers of the model."""

    table: str
    text: str
    changes: Mapping[str, Any] = {}
    start: float | None = None


VARIANTS: Mapping[str, Variant] = {
    "object_only": Variant("4a", "object map alone, nothing subtracted", {"grounding.contrast": False}),
    "video_only": Variant("4b", "video branch alone", {"grounding.branches": "video"}),
    "frames_only": Variant("4b", "frame branch alone", {"grounding.branches": "frames"}),
    "rollout_mean": Variant("5a", "rollout of all heads alike", {"grounding.rollout": "mean"}),
    "rollout_max": Variant("5a", "heads weighed by all columns", {"grounding.rollout": "max"}),
    "start_layer_0": Variant("", "rollout from the first layer", start=0.0),
    "start_layer_quarter": Variant("5b", "rollout from a quarter of the layers", start=0.25),
    "start_layer_half": Variant("5b", "rollout from half of the layers", start=0.5),
    "start_layer_three_quarters": Variant("5b", "rollout from three quarters of the layers", start=0.75),
    "start_layer_last": Variant("", "rollout of the last layer alone", start=1.0),
    "no_consistency": Variant("7", "no consistency score", {"segmentation.consistency": False}),
    "consistency_otsu": Variant("7", "Otsu's threshold in it", {"segmentation.consistency_mask": "otsu"}),
    "consistency_otsu_no_penalty": Variant(
        "7",
        "Otsu's threshold and no penalty in it",
        {"segmentation.consistency_mask": "otsu", "segmentation.consistency_penalty": False},
    ),
    "no_penalty": Variant("7", "no penalty in it", {"segmentation.consistency_penalty": False}),
}
# What can be changed after the candidates are there.
_OF_SCORING = ("segmentation.consistency", "segmentation.consistency_mask", "segmentation.consistency_penalty")


class VariantScore(NamedTuple):
    """masks: of every frame, something always being answered. attention: of the key frames, the masks being Otsu's of
    the fused map (the paper's "Attn Mask"). pointing: None where the targets are on no key frame. said: the category,
    None where none is decoded.
    """

    masks: MaskScore
    attention: MaskScore
    pointing: Pointing | None
    said: str | None


def changed(config: DecafConfig, variant: Variant, layers: int) -> DecafConfig:
    """The variant's configuration for a model of so many layers. The start layer becomes a number in any case."""
    start = resolve_start_layer(config.grounding.start_layer, layers)
    if variant.start is not None:
        start = min(int(variant.start * layers), layers - 1)
    return replace(config, {"grounding.start_layer": start, **variant.changes})


def ablate(
    decaf: Decaf, clip: EvaluationClip, expression: Referral, found: Segmentation, score: MaskScore
) -> dict[str, VariantScore]:
    """Every variant's score, the full method's under `full`.

    decaf: always answering. found: its answer, score: of its masks of all frames. A variant whose configuration is
    decaf's own has the same score.
    """
    truth = clip.mask(expression.targets)
    at_key_frames = truth[[frame.index for frame in found.window.frames]]
    layers = decaf.grounder.mllm.layers
    full = changed(decaf.config, Variant("", ""), layers)
    by_targets = {_targets(found): score}

    def scored(variant: Segmentation) -> VariantScore:
        if _targets(variant) not in by_targets:
            labels = dense_labels(decaf.sam2, found.window, variant.selected, clip.frames)
            by_targets[_targets(variant)] = mask_score(labels > 0, truth)
        fused = variant.grounding.maps.fused
        return VariantScore(
            by_targets[_targets(variant)],
            mask_score(coarse_masks(fused, found.window.size_hw), at_key_frames),
            pointing(fused, at_key_frames),
            variant.grounding.category if variant.grounding.answers else None,
        )

    scores = {FULL: scored(found)}
    for name, variant in VARIANTS.items():
        config = changed(decaf.config, variant, layers)
        if config == full:
            scores[name] = scores[FULL]
        elif variant.start is None and all(change in _OF_SCORING for change in variant.changes):
            scores[name] = scored(_rescored(found, config))
        else:
            other = copy.copy(decaf)
            other.config = config
            scores[name] = scored(other.segment(found.window, found.query))
    return scores


def _targets(found: Segmentation) -> frozenset[tuple[int, tuple[float, float]]]:
    """What the masks of all frames depend on, in one clip: the same click on the same frame starts the same mask."""
    return frozenset((one.source, one.point_xy) for one in found.selected)


def _rescored(found: Segmentation, config: DecafConfig) -> Segmentation:
    """The same candidates, scored and selected under another configuration."""
    proposals = [
        Proposal(torch.from_numpy(one.masks), one.source, one.point_xy, *one.scores[:2], one.object_score)
        for one in found.tracklets
    ]
    # As they were found: key frame by key frame, the best first.
    proposals.sort(key=lambda one: (one.source, -one.score))
    tracklets = score_tracklets(proposals, found.grounding.maps.fused, config.segmentation)
    selected = select_targets(tracklets, found.presence, found.grounding.category, config)
    return dataclasses.replace(found, tracklets=tuple(tracklets), selected=tuple(selected), dense_labels=None)


def sharing_grounder(mllm: Mllm) -> Grounder:
    """A Grounder that puts no images twice to the model, for groundings of one window that differ in branches,
    contrast, rollout and start layer. Keeps every pass's keys, values and queries until it is dropped, up to
    PREFIXES_MIB."""
    return Grounder(mllm, EngineConfig(prefix_cache_mib=PREFIXES_MIB), record_from=0)
