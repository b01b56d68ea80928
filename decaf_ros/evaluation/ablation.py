"""The paper's ablations (Tab. 4, 5 and 7) on one case: each runs the real method under another configuration.

Variants share work: every rollout and start layer uses the same forward passes, every segmentation the same image
embeddings, and variants of the scoring start from the full method's candidates.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from decaf_ros.config import DecafConfig, EngineConfig, replace
from decaf_ros.evaluation.datasets.clips import EvaluationClip
from decaf_ros.evaluation.metrics import MaskScore, Pointing
from decaf_ros.evaluation.truth import Truth
from decaf_ros.grounding.grounder import Grounder, resolve_start_layer
from decaf_ros.grounding.mllm import Mllm
from decaf_ros.pipeline import Decaf, select_targets
from decaf_ros.segmentation.dense import dense_labels
from decaf_ros.segmentation.resizing import GridMasks
from decaf_ros.segmentation.scoring import score_tracklets
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.stages import finish
from decaf_ros.types import Segmentation

FULL = "full"
# Keys, values and queries of one window, shared by its variants: 7 GiB with the default parameters and a 7B model. A
# prefix that does not fit is computed again for each variant.
PREFIXES_MIB = 8192


class Variant(NamedTuple):
    """A variant of the method.

    Attributes:
        table: table of the paper; empty if the paper has no such variant.
        text: description in reports.
        changes: changed parameters, by dotted name.
        start: first layer of the rollout, as a fraction of the model's layers; None means as configured.
    """

    table: str
    text: str
    changes: Mapping[str, Any] = {}
    start: float | None = None


VARIANTS: Mapping[str, Variant] = {
    "object_only": Variant("4a", "object map only, no background subtracted", {"grounding.contrast": False}),
    "video_only": Variant("4b", "video branch only", {"grounding.branches": "video"}),
    "frames_only": Variant("4b", "frame branch only", {"grounding.branches": "frames"}),
    "rollout_mean": Variant("5a", "rollout with equal head weights", {"grounding.rollout": "mean"}),
    "rollout_max": Variant("5a", "head weights from all columns", {"grounding.rollout": "max"}),
    "start_layer_0": Variant("", "rollout starts at the first layer", start=0.0),
    "start_layer_quarter": Variant("5b", "rollout starts at a quarter of the layers", start=0.25),
    "start_layer_half": Variant("5b", "rollout starts at half of the layers", start=0.5),
    "start_layer_three_quarters": Variant("5b", "rollout starts at three quarters of the layers", start=0.75),
    "start_layer_last": Variant("", "rollout of the last layer only", start=1.0),
    "no_consistency": Variant("7", "no consistency score", {"segmentation.consistency": False}),
    "consistency_otsu": Variant(
        "7", "consistency score with Otsu's threshold", {"segmentation.consistency_mask": "otsu"}
    ),
    "consistency_otsu_no_penalty": Variant(
        "7",
        "consistency score with Otsu's threshold, without penalty",
        {"segmentation.consistency_mask": "otsu", "segmentation.consistency_penalty": False},
    ),
    "no_penalty": Variant("7", "consistency score without penalty", {"segmentation.consistency_penalty": False}),
}
# Parameters that act after the candidates are found.
_SCORING_PARAMETERS = ("segmentation.consistency", "segmentation.consistency_mask", "segmentation.consistency_penalty")


class VariantScore(NamedTuple):
    """Scores of one variant on one expression.

    Attributes:
        masks: on all frames, "not found" never being an answer.
        attention: on the key frames, masks by Otsu's threshold of the fused map (the paper's "Attn Mask"); None if no
            key frame has known masks.
        pointing: None if the targets are on no key frame.
        decoded_category: the decoded category; None if the variant decodes none.
    """

    masks: MaskScore
    attention: MaskScore | None
    pointing: Pointing | None
    decoded_category: str | None


def variant_config(config: DecafConfig, variant: Variant, layers: int) -> DecafConfig:
    """The variant's configuration for a model with this number of layers, with a resolved start layer."""
    start = resolve_start_layer(config.grounding.start_layer, layers)
    if variant.start is not None:
        start = min(int(variant.start * layers), layers - 1)
    return replace(config, {"grounding.start_layer": start, **variant.changes})


def ablate(
    decaf: Decaf, clip: EvaluationClip, truth: Truth, found: Segmentation, found_score: MaskScore
) -> dict[str, VariantScore]:
    """Scores of all variants by name; the full method is `full`.

    A variant with the same configuration as `decaf` gets the score of the full method.

    Args:
        decaf: the method, configured by `always_answering`.
        clip: the clip.
        truth: the targets.
        found: the answer of `decaf`.
        found_score: score of the masks of `found` on all frames.
    """
    layers = decaf.grounder.mllm.layers
    full_config = variant_config(decaf.config, Variant("", ""), layers)
    scores_by_clicks = {_clicks(found): found_score}

    def score(answer: Segmentation) -> VariantScore:
        clicks = _clicks(answer)
        if clicks not in scores_by_clicks:
            labels = finish(dense_labels(decaf.sam2, found.window, answer.selected, clip.frames))
            scores_by_clicks[clicks] = truth.score(labels)
        fused = answer.grounding.maps.fused
        return VariantScore(
            scores_by_clicks[clicks],
            truth.score_map(fused),
            truth.pointing(fused),
            answer.grounding.category if answer.grounding.answers else None,
        )

    scores = {FULL: score(found)}
    for name, variant in VARIANTS.items():
        config = variant_config(decaf.config, variant, layers)
        if config == full_config:
            scores[name] = scores[FULL]
        elif variant.start is None and all(change in _SCORING_PARAMETERS for change in variant.changes):
            scores[name] = score(_rescored(found, config))
        else:
            variant_decaf = copy.copy(decaf)
            variant_decaf.config = config
            scores[name] = score(variant_decaf.segment(found.window, found.query))
    return scores


def _clicks(found: Segmentation) -> frozenset[tuple[int, tuple[float, float]]]:
    """The clicks of the selected tracklets, which determine the masks on all frames of a clip."""
    return frozenset((tracklet.source, tracklet.point_xy) for tracklet in found.selected)


def _rescored(found: Segmentation, config: DecafConfig) -> Segmentation:
    """Scores and selects the same candidates under another configuration; the model is not asked about them again."""
    proposals = []
    for tracklet in found.tracklets:
        assert isinstance(tracklet.masks, GridMasks), "from `score_tracklets`"
        scores = *tracklet.scores[:2], tracklet.object_score
        proposals.append(Proposal(tracklet.masks, tracklet.source, tracklet.point_xy, *scores))
    # The order of `propose_tracklets`: by key frame, then by descending score.
    proposals.sort(key=lambda proposal: (proposal.source, -proposal.score))
    tracklets = score_tracklets(proposals, found.grounding.maps.fused, config.segmentation)
    answers = {(one.source, one.point_xy): one.verified for one in found.tracklets}
    tracklets = [dataclasses.replace(one, verified=answers[one.source, one.point_xy]) for one in tracklets]
    selected = select_targets(tracklets, found.presence, found.grounding, config)
    return dataclasses.replace(found, tracklets=tuple(tracklets), selected=tuple(selected), dense_labels=None)


def sharing_grounder(mllm: Mllm) -> Grounder:
    """A Grounder that runs each visual prefix through the model once, for several groundings of one window.

    The groundings may differ in branches, contrast, rollout and start layer. Keeps keys, values and queries of every
    pass, up to PREFIXES_MIB, until the Grounder is dropped.
    """
    return Grounder(mllm, EngineConfig(prefix_cache_mib=PREFIXES_MIB), record_from=0)
