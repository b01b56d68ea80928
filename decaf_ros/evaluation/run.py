"""Runs the whole method on one clip with ground truth: asks every expression and scores every answer."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, ParamSpec, TypeVar, cast

import numpy as np

from decaf_ros.answers import absence, first_line, tracking_text
from decaf_ros.config import DecafConfig, replace
from decaf_ros.evaluation.ablation import VariantScore, ablate, sharing_grounder
from decaf_ros.evaluation.baselines.method import Judged, Method
from decaf_ros.evaluation.datasets.clips import EvaluationClip, Referral, is_absent_kind
from decaf_ros.evaluation.long import Watched, watch
from decaf_ros.evaluation.metrics import MaskScore, Pointing, names_category
from decaf_ros.evaluation.online import OnlineScore, play
from decaf_ros.evaluation.pictures import case_strip
from decaf_ros.evaluation.sam2 import SegmenterScore, score_segmenter
from decaf_ros.evaluation.submission import frame_files
from decaf_ros.evaluation.truth import Truth
from decaf_ros.offline import key_frames
from decaf_ros.pipeline import Decaf, select_targets
from decaf_ros.types import AnswerCount, Presence, Segmentation

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Job:
    """The work on one clip.

    Attributes:
        clip: the clip.
        expressions: expressions to ask.
        masks: score masks, not only the grounding.
        ablate: score every variant of the method too; needs masks and, as `online` and `watched`, the paper's method.
        online: expression to ask while the clip is played as a live stream.
        segmenter: score SAM 2 by itself.
        watched: expressions with `asked_s`, each to ask early in the clip, which is then only watched.
        submit: also return the masks, for a submission to a server.
    """

    clip: EvaluationClip
    expressions: Sequence[Referral] = ()
    masks: bool = True
    ablate: bool = False
    online: Referral | None = None
    segmenter: bool = False
    watched: Sequence[Referral] = ()
    submit: bool = False


@dataclass(frozen=True)
class Case:
    """One expression about one clip, its answer and its scores.

    Attributes:
        clip: name of the clip.
        text: the expression.
        kind: its type.
        category: the true category; empty if there is none or it is unknown.
        decoded_category: the decoded category; None if the method decodes none.
        video_category: answer of the video branch, before the choice; None without it.
        frame_categories: answers of the frame branch, before the choice.
        found: whether a node would track something.
        answer: the node's answer text.
        presence: evidence that the target is there.
        always: score of the masks if "not found" is never an answer, as in the paper; None without targets or masks.
        pointing: None if there are no targets, or none is visible on a key frame.
        seconds: time of the method and its mask score.
        ablation: scores by variant.
        name: name of the expression in the clip.
        subset: part of the dataset, see `Referral.subset`.
        attention: score of the masks of the map alone on the key frames; None without targets or masks.
        points: PP@K by K; empty without targets.
        robustness: of the masks behind `always`; None without one.
        malformed: see `Grounding.malformed`.
    """

    clip: str
    text: str
    kind: str
    category: str
    decoded_category: str | None
    video_category: str | None
    frame_categories: tuple[str, ...]
    found: bool
    answer: str
    presence: Presence
    always: MaskScore | None
    pointing: Pointing | None
    seconds: float
    ablation: Mapping[str, VariantScore] = field(default_factory=dict)
    name: str = ""
    subset: str = ""
    attention: MaskScore | None = None
    points: Mapping[int, float] = field(default_factory=dict)
    robustness: float | None = None
    malformed: AnswerCount | None = None

    @property
    def published(self) -> MaskScore | None:
        """Score of the masks that a node would publish. A wrong "not found" scores 0."""
        return self.always if self.found or self.always is None else MaskScore(0.0, 0.0)

    @property
    def category_right(self) -> bool | None:
        return names_category(self.decoded_category, self.category)


class CasePicture(NamedTuple):
    """A case and its picture, (H, W, 3) uint8 RGB.

    masks: PNG files by name of the frame, for a submission; else empty.
    """

    case: Case
    picture: np.ndarray
    masks: Mapping[str, bytes] = {}


@dataclass(frozen=True)
class ClipScores:
    """Results of a job. seconds: time of the whole job."""

    clip: str
    cases: tuple[CasePicture, ...]
    online: OnlineScore | None
    segmenter: SegmenterScore | None
    seconds: float
    watched: tuple[Watched, ...] = ()


class CaseError(RuntimeError):
    """An error whose text names the clip and the expression."""


class Evaluator:
    """Runs jobs with a method. `method.config` is the configuration of the node."""

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, job: Job) -> ClipScores:
        """Runs a job. Raises CaseError for any failure: leaving the case out would bias the scores."""
        began = time.perf_counter()
        cases = tuple(_named(job.clip, expression, self._ask, job, expression) for expression in job.expressions)
        online = segmenter = None
        if job.online is not None:
            online = _named(job.clip, job.online, play, cast(Decaf, self.method), job.clip, job.online)
        if job.segmenter:
            segmenter = _named(job.clip, None, score_segmenter, self.method.sam2, job.clip)
        watched = tuple(_named(job.clip, one, watch, cast(Decaf, self.method), job.clip, one) for one in job.watched)
        return ClipScores(job.clip.name, cases, online, segmenter, time.perf_counter() - began, watched)

    def _ask(self, job: Job, expression: Referral) -> CasePicture:
        began = time.perf_counter()
        clip, config = job.clip, self.method.config
        method = copy.copy(self.method)
        method.config = always_answering(config)
        decaf = cast(Decaf, method)
        if job.ablate:
            # The variants share forward passes.
            decaf.grounder = sharing_grounder(decaf.grounder.mllm)
        window = key_frames(clip.frames, config.window.size, config.window.clip_rounding)
        has_masks = job.masks and bool(expression.targets)
        truth = Truth.of(clip, expression, window)
        if isinstance(method, Judged):
            method.judge(truth.map_j)
        found = method.segment(window, expression.text, clip.frames if has_masks or job.submit else None)
        fused = found.grounding.maps.fused
        labels = found.dense_labels
        always = truth.score(labels) if has_masks and labels is not None else None
        seconds = time.perf_counter() - began

        published = node_segmentation(found, config)
        absence_text = absence(published, config)
        grounding = found.grounding
        has_video = bool(grounding.answers) and config.grounding.branches != "frames"
        case = Case(
            clip=clip.name,
            text=expression.text,
            kind=expression.kind,
            category=expression.category,
            decoded_category=grounding.category if grounding.answers else None,
            video_category=grounding.answers[0] if has_video else None,
            frame_categories=grounding.answers[has_video:],
            found=not absence_text,
            answer=absence_text or tracking_text(len(published.selected), grounding.category),
            presence=found.presence,
            always=always,
            pointing=truth.pointing(fused) if expression.targets else None,
            seconds=seconds,
            ablation=ablate(decaf, clip, truth, found, always) if job.ablate and always is not None else {},
            name=expression.name,
            subset=expression.subset,
            attention=None if found.coarse_masks is None or always is None else truth.score_coarse(found.coarse_masks),
            points=truth.points(fused) if expression.targets else {},
            robustness=None if always is None or labels is None else truth.robustness(labels),
            malformed=grounding.malformed,
        )
        masks = frame_files(clip, labels) if job.submit and labels is not None else {}
        return CasePicture(case, case_strip(published, truth.on_key_frames(len(window))), masks)


def _named(
    clip: EvaluationClip,
    expression: Referral | None,
    function: Callable[_P, _T],
    *args: _P.args,
    **kwargs: _P.kwargs,
) -> _T:
    """Calls `function`; turns any error into a CaseError."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        asked = f", expression {expression.text!r}" if expression else ""
        raise CaseError(f"clip {clip.name}{asked}: {first_line(error)}") from error


def always_answering(config: DecafConfig) -> DecafConfig:
    """The configuration of the paper's protocol, in which "not found" is never an answer."""
    return replace(config, {"segmentation.fallback": "best", "presence.threshold": 0.0})


def node_segmentation(found: Segmentation, config: DecafConfig) -> Segmentation:
    """The answer of a node with this configuration, derived from an answer found with `always_answering`.

    The configurations differ only in the selection, so the masks are the same unless the node finds nothing.
    """
    selected = tuple(select_targets(found.tracklets, found.presence, found.grounding, config))
    labels = found.dense_labels if selected or found.dense_labels is None else np.zeros_like(found.dense_labels)
    return dataclasses.replace(found, selected=selected, dense_labels=labels)


def is_absent(case: Case) -> bool:
    return is_absent_kind(case.kind)
