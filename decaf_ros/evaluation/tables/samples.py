"""The unit of a run, one expression about one clip, and its evaluation in a worker."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decaf_ros.answers import first_line
from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.ablation import Variant, variant_config
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.registry import DECAF_SPEC, MethodSpec, make_method
from decaf_ros.evaluation.datasets.clips import Dataset, EvaluationClip, ExpressionChoice, is_absent_kind
from decaf_ros.evaluation.jobs import load_quietly
from decaf_ros.evaluation.metrics import MaskScore, Pointing
from decaf_ros.evaluation.report import case_entry
from decaf_ros.evaluation.run import Case, Evaluator, Job
from decaf_ros.types import AnswerCount, Presence


@dataclass(frozen=True)
class Work:
    """One configuration on one data set. Picklable: workers get all of a run when they start.

    Attributes:
        dataset: the clips.
        config: the configuration, with checkpoints that are on this machine.
        start: first layer of the rollout as a share of the layers; None: as configured.
        method: the method.
    """

    dataset: Dataset
    config: DecafConfig
    start: float | None = None
    method: MethodSpec = DECAF_SPEC


@dataclass(frozen=True)
class Sample:
    """One expression about one clip.

    Attributes:
        work: index of its Work in the run.
        clip: index of the clip in the data set.
        expression: index in `EvaluationClip.expressions`.
        key: CLIP/INDEX, unique in its Work.
        text: the expression.
        frames: number of frames of the clip.
        name: name of the expression in a submission.
        similar: see `Referral.similar`.
    """

    work: int
    clip: int
    expression: int
    key: str
    text: str
    frames: int
    name: str = ""
    similar: bool | None = None

    @property
    def listed_as(self) -> str:
        """CLIP/EXPRESSION in lists of samples, with the data set's own name of the expression if it has one."""
        return f"{self.key.rpartition('/')[0]}/{self.name}" if self.name else self.key


@dataclass(frozen=True)
class SampleResult:
    """Result of a sample.

    Attributes:
        sample: the sample.
        case: scores as JSON values, see `case_entry`; None if it failed.
        masks: PNG files by name of the frame, for a submission; else empty.
        error: why it failed; empty if it did not.
        seconds: time it took.
    """

    sample: Sample
    case: Mapping[str, Any] | None
    masks: Mapping[str, bytes] = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0


def samples_of(dataset: Dataset, work: int, choice: ExpressionChoice) -> Iterator[Sample]:
    """The samples of a data set in its order. Expressions without targets are no part of the paper's tables; a split
    without public masks has all, because its server scores all.

    Raises what `Dataset.clip` raises.
    """
    for index in range(dataset.scored):
        clip = dataset.clip(index)
        for expression in choice(clip):
            if dataset.has_truth and is_absent_kind(expression.kind):
                continue
            place = clip.expressions.index(expression)
            name = f"{clip.name}/{place}"
            told = expression.name, expression.similar
            yield Sample(work, index, place, name, expression.text, len(clip.frames), *told)


def read_list(file: Path) -> frozenset[str]:
    """The samples that a text file names as `Sample.listed_as`, one a line; # begins a comment.

    Raises OSError, or ValueError for a line without a slash or a file without samples.
    """
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and "/" not in line:
            raise ValueError(f"{file}, line {number}: expected CLIP/EXPRESSION, got {line!r}")
    if not any(lines):
        raise ValueError(f"{file}: expected samples, CLIP/EXPRESSION, one a line, got none")
    return frozenset(filter(None, lines))


class SampleWorker:
    """Evaluates samples. Keeps the models and the clip of the last one.

    works: the Works of the run. threads: of torch.
    """

    def __init__(self, works: Sequence[Work], threads: int) -> None:
        self._works, self._threads = works, threads
        self._models: tuple[DecafConfig, Models] | None = None
        self._evaluator: Evaluator | None = None
        self._configured = -1
        self._clip: tuple[Dataset, int, EvaluationClip] | None = None

    def __call__(self, sample: Sample) -> SampleResult:
        """A failure is part of the result, so that the others go on."""
        began = time.perf_counter()
        try:
            work = self._works[sample.work]
            evaluator, clip = self._configure(sample.work), self._read(work.dataset, sample.clip)
            asked = clip.expressions[sample.expression]
            if asked.text != sample.text:
                raise ValueError(f"expected {sample.text!r} in the data of this machine, got {asked.text!r}")
            job = Job(clip, [asked], masks=work.dataset.has_truth, submit=not work.dataset.has_truth)
            (scored,) = evaluator(job).cases
            case = case_entry(scored.case)
            _check_finite(case)
            if job.submit and len(scored.masks) != len(clip.frames):
                raise ValueError(f"expected masks of {len(clip.frames)} frames, got {len(scored.masks)}")
        except Exception as error:
            return SampleResult(sample, None, error=first_line(error), seconds=time.perf_counter() - began)
        seconds = time.perf_counter() - began
        return SampleResult(sample, case, scored.masks, seconds=seconds)

    def _configure(self, index: int) -> Evaluator:
        """The method configured for a Work. Models are loaded again only if their own options differ."""
        if self._evaluator is not None and self._configured == index:
            return self._evaluator
        work, self._evaluator = self._works[index], None
        if self._models is None or not _same_models(self._models[0], work.config):
            self._models = None  # frees the memory of the old models first
            self._models = work.config, load_quietly(work.config, self._threads)
        models, config = self._models[1], work.config
        if work.start is not None:
            config = variant_config(config, Variant("", "", start=work.start), models.mllm.layers)
        self._evaluator, self._configured = Evaluator(make_method(models, config, work.method)), index
        return self._evaluator

    def _read(self, dataset: Dataset, index: int) -> EvaluationClip:
        if self._clip is None or self._clip[:2] != (dataset, index):
            self._clip = dataset, index, dataset.clip(index)
        return self._clip[2]


def _check_finite(values: Mapping[str, Any], where: str = "") -> None:
    """Raises ValueError, naming the score, for one that is not a finite number."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_finite(value, f"{where}{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected a finite score, got {where}{name} = {value}")


def _same_models(one: DecafConfig, other: DecafConfig) -> bool:
    return (one.mllm, one.sam2, one.segmentation.fill_holes_px) == (
        other.mllm,
        other.sam2,
        other.segmentation.fill_holes_px,
    )


def read_case(entry: Mapping[str, Any]) -> Case:
    """The Case of an entry that `case_entry` made and JSON has stored; without its ablation.

    Raises KeyError or TypeError for another entry.
    """
    values = {field.name: entry[field.name] for field in dataclasses.fields(Case)}
    kinds = {"always": MaskScore, "attention": MaskScore, "pointing": Pointing, "malformed": AnswerCount}
    for name, kind in kinds.items():
        values[name] = None if values[name] is None else kind(**values[name])
    values["presence"] = Presence(**values["presence"])
    values["frame_categories"] = tuple(values["frame_categories"])
    values["points"] = {int(count): share for count, share in values["points"].items()}
    values["ablation"] = {}
    return Case(**values)
