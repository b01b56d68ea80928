"""Puts all clips of a dataset to an Evaluator: the next ones are made in the background, several are scored at once."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.datasets.clips import Dataset, EvaluationClip, ExpressionChoice
from decaf_ros.evaluation.online import to_ask
from decaf_ros.evaluation.run import ClipScores, Evaluator, Job


@dataclass(frozen=True)
class Plan:
    """What is done with which clip. choice: which expressions are asked. masks: score masks, not only the grounding.
    segmenter: score SAM 2 by itself.

    ablated, played: of how many scored clips, from the first on, the variants are scored, and one expression is asked
    online. The clips after the scored ones are for what an object that is hidden does to following: online, and SAM 2.
    """

    choice: ExpressionChoice
    masks: bool = True
    segmenter: bool = True
    ablated: int = 0
    played: int = 0

    def job(self, clip: EvaluationClip, index: int, scored: int) -> Job:
        """The index-th clip's, of which the first `scored` ones are scored."""
        if index >= scored:
            return Job(clip, online=to_ask(clip, self.choice.candidates(clip)), segmenter=True)
        chosen = self.choice(clip)
        online = to_ask(clip, chosen) if index < self.played else None
        return Job(clip, chosen, self.masks, index < self.ablated, online, self.segmenter)


def load_evaluator(config: DecafConfig, threads: int) -> Evaluator:
    """Loads both models in this process. Raises as `Decaf.from_config`."""
    import torch
    from transformers.utils import logging

    from decaf_ros.pipeline import Decaf

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    return Evaluator(Decaf.from_config(config))


def clip_scores(dataset: Dataset, plan: Plan, load: Callable[[], Evaluator], workers: int) -> Iterator[ClipScores]:
    """The scores of every clip, in the order of the dataset, whatever the number of workers.

    load: makes an Evaluator. workers: processes that score clips, each with models of its own (`load` then has to be
    picklable); 1 scores in this process. Either way one more process makes or reads the clips that come next; with 0
    that is done in this process too. Raises what fails first.
    """
    total = dataset.scored + dataset.tracking_only
    ahead = max(workers, 1) + 1
    with _Processes(min(workers, 1)) as maker, _Processes(workers if workers > 1 else 0) as pool:
        evaluator = None if pool.count else load()
        made: deque[Future[EvaluationClip] | EvaluationClip] = deque()
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
    """`count` processes, or none, that are gone at the end; work that has not begun then is dropped."""

    def __init__(self, count: int) -> None:
        self.count = count
        # Not forked: neither torch's threads nor a renderer survive that.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=context) if count else None

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, function: Callable, *arguments: object) -> Future:
        return self._pool.submit(function, *arguments)


_evaluator: Evaluator | None = None


def _score(load: Callable[[], Evaluator], job: Job) -> ClipScores:
    """In a worker: the models are loaded with the first job, so that a failure there is reported as one."""
    global _evaluator
    if _evaluator is None:
        _evaluator = load()
    return _evaluator(job)
