"""Scores all clips of a dataset: makes the next clips in the background and scores several clips at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.baselines.method import Models
from decaf_ros.evaluation.baselines.registry import DECAF_SPEC, MethodSpec, load_models, make_method
from decaf_ros.evaluation.datasets.clips import Dataset, EvaluationClip, ExpressionChoice
from decaf_ros.evaluation.long import watchable
from decaf_ros.evaluation.online import choose_online_expression
from decaf_ros.evaluation.run import ClipScores, Evaluator, Job

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plan:
    """Decides the job of each clip.

    The clips after the scored ones measure tracking through occlusions: online, and with SAM 2 by itself.

    Attributes:
        choice: chooses the expressions.
        masks: score masks, not only the grounding.
        segmenter: score SAM 2 by itself.
        ablation_clips: number of scored clips, from the first on, on which the variants are scored.
        online_clips: number of scored clips, from the first on, on which one expression is asked online.
        watch: only ask the chosen expressions early in each clip and watch their targets to its end.
        submit: only make the masks of all expressions, for a submission to a server.
        tracks: use the clips after the scored ones.
    """

    choice: ExpressionChoice
    masks: bool = True
    segmenter: bool = True
    ablation_clips: int = 0
    online_clips: int = 0
    watch: bool = False
    submit: bool = False
    tracks: bool = True

    def total(self, dataset: Dataset) -> int:
        """Number of clips with a job."""
        return dataset.scored + (dataset.tracking_only if self.tracks else 0)

    def job(self, clip: EvaluationClip, index: int, scored: int) -> Job:
        """The job of the index-th clip of a dataset whose first `scored` clips are scored."""
        if self.watch:
            return Job(clip, watched=self.choice(dataclasses.replace(clip, expressions=tuple(watchable(clip)))))
        if self.submit:
            return Job(clip, self.choice(clip), submit=True)
        if index >= scored:
            online = choose_online_expression(clip, self.choice.candidates(clip))
            return Job(clip, online=online, segmenter=True)
        expressions = self.choice(clip)
        online = choose_online_expression(clip, expressions) if index < self.online_clips else None
        return Job(clip, expressions, self.masks, index < self.ablation_clips, online, self.segmenter)


def load_evaluator(config: DecafConfig, threads: int, method: MethodSpec = DECAF_SPEC) -> Evaluator:
    """Loads both models in this process. Raises the same errors as `Decaf.from_config` and `make_method`."""
    return Evaluator(make_method(load_quietly(config, threads), config, method))


def load_quietly(config: DecafConfig, threads: int) -> Models:
    """As `load_models`, without progress bars, and with this number of threads of torch."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return load_models(config)


def clip_scores(dataset: Dataset, plan: Plan, load: Callable[[], Evaluator], workers: int) -> Iterator[ClipScores]:
    """Scores every clip. Order and scores do not depend on the number of workers. Raises the first error.

    Args:
        dataset: the clips.
        plan: decides the job of each clip.
        load: makes an Evaluator; picklable if there are several workers.
        workers: number of processes that score clips, each with its own models. 1 scores in this process. One more
            process makes or reads the next clips, except with 0, which does everything in this process.
    """
    total = plan.total(dataset)
    ahead = max(workers, 1) + 1
    with _Processes(min(workers, 1)) as maker, _Processes(workers if workers > 1 else 0) as pool:
        evaluator = None if pool.count else load()
        made: deque[Future[EvaluationClip]] = deque()
        scored: deque[Future[ClipScores]] = deque()
        for index in range(total):
            if not maker.count:
                clip = dataset.clip(index)
            else:
                while len(made) < ahead and index + len(made) < total:
                    made.append(maker.submit(dataset.clip, index + len(made)))
                clip = made.popleft().result()
            job = plan.job(clip, index, dataset.scored)
            if evaluator is not None:
                yield evaluator(job)
                continue
            scored.append(pool.submit(_score, load, job))
            if len(scored) >= ahead:
                yield scored.popleft().result()
        while scored:
            yield scored.popleft().result()


class _Processes:
    """A pool of `count` processes, or none. On exit pending work is cancelled and the processes end."""

    def __init__(self, count: int) -> None:
        self.count = count
        # Spawned: the threads of torch and a renderer do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=context) if count else None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        assert self._pool is not None, "only called if count > 0"
        return self._pool.submit(function, *args, **kwargs)


_evaluator: Evaluator | None = None


def _score(load: Callable[[], Evaluator], job: Job) -> ClipScores:
    """Runs in a worker. Loads the models with the first job, so that its Future carries a failure."""
    global _evaluator
    if _evaluator is None:
        _evaluator = load()
    return _evaluator(job)
