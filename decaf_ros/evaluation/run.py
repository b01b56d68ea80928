"""The whole method on one clip with known answers: every expression is asked, every answer scored."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from decaf_ros.answers import absence, first_line, tracking_text
from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.ablation import VariantScore, ablate, sharing_grounder
from decaf_ros.evaluation.datasets.clips import ABSENT, EvaluationClip, Referral
from decaf_ros.evaluation.metrics import MaskScore, Pointing, mask_score, pointing, says
from decaf_ros.evaluation.online import OnlineScore, play
from decaf_ros.evaluation.pictures import case_strip
from decaf_ros.evaluation.sam2 import SegmenterScore, score_segmenter
from decaf_ros.offline import key_frames
from decaf_ros.pipeline import Decaf, select_targets
from decaf_ros.types import Presence, Segmentation


@dataclass(frozen=True)
class Job:
    """What is to be done with one clip.

    masks: score masks too, not only the grounding. ablate: besides, every variant of the method. online: what to ask
    while the clip is played as a robot would see it. segmenter: score SAM 2 by itself.
    """

    clip: EvaluationClip
    expressions: Sequence[Referral] = ()
    masks: bool = True
    ablate: bool = False
    online: Referral | None = None
    segmenter: bool = False


@dataclass(frozen=True)
class Case:
    """One expression about one clip, and what became of it.

    category: the right one, empty where there is not one. said: the method's; None where it decodes none.
    video_said, frames_said: the answers of each branch before the choice. found: whether a node would follow something;
    answer: in its words. always: the masks' score if something is always answered, as the paper does; None for an
    expression without targets, or where no masks were made. pointing: None without targets. ablation: by variant.
    """

    clip: str
    text: str
    kind: str
    category: str
    said: str | None
    video_said: str | None
    frames_said: tuple[str, ...]
    found: bool
    answer: str
    presence: Presence
    always: MaskScore | None
    pointing: Pointing | None
    seconds: float
    ablation: Mapping[str, VariantScore] = field(default_factory=dict)

    @property
    def published(self) -> MaskScore | None:
        """The score of what a node would publish: a wrong "not found" is worth nothing."""
        return self.always if self.found or self.always is None else MaskScore(0.0, 0.0)

    @property
    def category_right(self) -> bool | None:
        return says(self.said, self.category)


class Pictured(NamedTuple):
    """picture: (H, W, 3) uint8, RGB, of the case."""

    case: Case
    picture: np.ndarray


@dataclass(frozen=True)
class ClipScores:
    """What came of a job. seconds: all of it."""

    clip: str
    cases: tuple[Pictured, ...]
    online: OnlineScore | None
    segmenter: SegmenterScore | None
    seconds: float


class CaseError(RuntimeError):
    """Something failed; the text names the clip and the expression."""


class Evaluator:
    """Puts jobs to a Decaf. decaf.config decides what a node would answer."""

    def __init__(self, decaf: Decaf) -> None:
        self.decaf = decaf

    def __call__(self, job: Job) -> ClipScores:
        """Raises CaseError for whatever fails: a case that is left out would flatter the rest."""
        began = time.perf_counter()
        cases = tuple(_named(job.clip, one, self._ask, job, one) for one in job.expressions)
        online = segmenter = None
        if job.online is not None:
            online = _named(job.clip, job.online, play, self.decaf, job.clip, job.online)
        if job.segmenter:
            segmenter = _named(job.clip, None, score_segmenter, self.decaf.sam2, job.clip)
        return ClipScores(job.clip.name, cases, online, segmenter, time.perf_counter() - began)

    def _ask(self, job: Job, expression: Referral) -> Pictured:
        began = time.perf_counter()
        clip, config = job.clip, self.decaf.config
        decaf = copy.copy(self.decaf)
        decaf.config = always_answering(config)
        if job.ablate:
            # Variants that differ in what they make of the model's attention share its passes.
            decaf.grounder = sharing_grounder(self.decaf.grounder.mllm)
        window = key_frames(clip.frames, config.window.size)
        truth = clip.mask(expression.targets)
        wanted = job.masks and bool(expression.targets)
        found = decaf.segment(window, expression.text, clip.frames if wanted else None)
        always = mask_score(found.dense_labels > 0, truth) if wanted else None
        seconds = time.perf_counter() - began

        answered = as_node(found, config)
        missing = absence(answered, config)
        at_key_frames = truth[[frame.index for frame in window.frames]]
        grounding = found.grounding
        has_video = bool(grounding.answers) and config.grounding.branches != "frames"
        case = Case(
            clip=clip.name,
            text=expression.text,
            kind=expression.kind,
            category=expression.category,
            said=grounding.category if grounding.answers else None,
            video_said=grounding.answers[0] if has_video else None,
            frames_said=grounding.answers[has_video:],
            found=not missing,
            answer=missing or tracking_text(len(answered.selected), grounding.category),
            presence=found.presence,
            always=always,
            pointing=pointing(grounding.maps.fused, at_key_frames) if expression.targets else None,
            seconds=seconds,
            ablation=ablate(decaf, clip, expression, found, always) if job.ablate and wanted else {},
        )
        return Pictured(case, case_strip(answered, at_key_frames))


def _named(clip: EvaluationClip, expression: Referral | None, function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        asked = f", expression {expression.text!r}" if expression else ""
        raise CaseError(f"clip {clip.name}{asked}: {first_line(error)}") from error


def always_answering(config: DecafConfig) -> DecafConfig:
    """The paper's protocol: there is no "not found"."""
    return replace(config, {"segmentation.fallback": "best", "presence.threshold": 0.0})


def as_node(found: Segmentation, config: DecafConfig) -> Segmentation:
    """What a node with this configuration makes of what was found `always_answering`.

    Its masks are the same wherever it answers at all: the configurations differ in the selection alone.
    """
    selected = tuple(select_targets(found.tracklets, found.presence, found.grounding.category, config))
    labels = found.dense_labels if selected or found.dense_labels is None else np.zeros_like(found.dense_labels)
    return dataclasses.replace(found, selected=selected, dense_labels=labels)


def is_absent(case: Case) -> bool:
    return case.kind == ABSENT
