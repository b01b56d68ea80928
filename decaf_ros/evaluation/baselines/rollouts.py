"""DecAF, and DecAF with the two older rollouts in place of its own (Tab. 5a).

Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (2020): the plain mean over the heads. Lin et al.,
"Training-Free Open-Ended Object Detection and Segmentation via Attention as Prompts" (VL-SAM, 2024): a head weighs as
much as its mean maximum over all tokens. As in Tab. 5a all else is DecAF's, the first layer of the rollout too.
"""

from __future__ import annotations

from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.registry import MethodSpec
from decaf_ros.grounding.grounder import check_branches
from decaf_ros.pipeline import Decaf


def make_decaf(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """The paper's method. Raises ValueError for a branch that the model does not have."""
    check_branches(models.mllm, config.grounding)
    return Decaf(models.mllm, models.sam2, config)


def make_mean(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """The rollout of Abnar and Zuidema."""
    return make_decaf(models, replace(config, {"grounding.rollout": "mean"}), spec)


def make_max(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """The rollout of VL-SAM."""
    return make_decaf(models, replace(config, {"grounding.rollout": "max"}), spec)
