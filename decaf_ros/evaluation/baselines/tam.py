"""TAM as a method: the map of an answer token about the video, answered to the paper's object prompt (Tab. 1).

The paper names no token. `tam` takes the first one of the answer, which the last token of the prompt predicts and
DecAF's maps are of. `tam-best` takes the one whose mask has the best IoU with the truth, as the protocol of TAM's
authors does: an upper bound, not a method (App. C).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from decaf_ros.config import DecafConfig
from decaf_ros.evaluation.baselines.method import Models, Score
from decaf_ros.evaluation.baselines.registry import MethodSpec
from decaf_ros.evaluation.baselines.tam_maps import activations, explained, rank_gaussian_filter
from decaf_ros.grounding.caches import ByteCache
from decaf_ros.grounding.features import view_features
from decaf_ros.grounding.fusion import fuse, min_max
from decaf_ros.grounding.grounder import Grounder, OtherQueries, video_view
from decaf_ros.grounding.mllm import Mllm, Prompt, decode_ids
from decaf_ros.grounding.prompts import object_prompt
from decaf_ros.pipeline import Decaf
from decaf_ros.stages import StageClock, Steps
from decaf_ros.types import AttentionMaps, Grounding, Window


class Tam(Grounder):
    """Grounds queries with the map of an answer token.

    choose: index of the map to use, from the fused maps of all answer tokens, each (T, h, w) float32 in [0, 1].
    """

    choose: Callable[[list[np.ndarray]], int] = staticmethod(lambda maps: 0)

    def ground(
        self, window: Window, query: str, config: DecafConfig, clock: StageClock, others: OtherQueries = tuple
    ) -> Steps[Grounding]:
        """As `Grounder.ground`, from the video branch alone. An empty answer has an empty map.

        Raises ValueError as it does, or for a model whose output layer is no matrix.
        """
        view = video_view(self.mllm, window)
        text = object_prompt(query, config.grounding.object_prompt, config.grounding.wording)
        prompt = self.mllm.prompt(view.layout, text)
        limit = config.engine.batch_tokens
        clock.start("video_object")
        (features,) = yield from view_features(self.mllm, [view], ByteCache(0), False, limit, self.engine.pace)
        answer, maps = yield from answer_maps(self.mllm, prompt, features, config.mllm.max_new_tokens)
        if config.grounding.number == "ask":
            clock.start("questions")
        means_several = self.means_several(query, config.grounding)
        clock.start("fusion")
        fused = [fuse(min_max(one), None, len(window)) for one in maps]
        chosen = fused[self.choose(fused)] if fused else np.zeros((len(window), *prompt.grid[1:]), np.float32)
        clock.pause()
        return Grounding(AttentionMaps(chosen), answer, (answer,), None, means_several)


@torch.inference_mode()
def answer_maps(mllm: Mllm, prompt: Prompt, features: Any, max_new_tokens: int) -> Steps[tuple[str, list[np.ndarray]]]:
    """The answer, in lower case, and the map (t, h, w) float32 of each of its tokens.

    Earlier tokens are the prompt's after the images, without control tokens, and the answer's.

    features: of every unit of the prompt's images. Raises ValueError if the output layer is no matrix.
    """
    model: Any = mllm.model
    head = model.get_output_embeddings()
    table = getattr(head, "weight", None)
    if table is None or table.ndim != 2 or not table.is_floating_point():
        raise ValueError(f"tam: expected an output layer with a matrix of weights, got {type(head).__name__}")
    cache = DynamicCache()
    states = _states(model, mllm.embed(prompt.ids, prompt.slots, [features]), prompt.positions, cache)
    of_prompt: list[tuple[Any, Any, Any]] = [(layer, layer.keys, layer.values) for layer in _layers(cache)]
    yield
    ((ids, _),) = yield from decode_ids(mllm, prompt, cache, head(states[-1:]), max_new_tokens)
    if not ids:
        return "", []
    for layer, keys, values in of_prompt:
        layer.keys, layer.values = keys, values
    answer = torch.as_tensor(ids, device=prompt.ids.device)
    after = int(prompt.positions.max()) + 1 + torch.arange(len(ids), device=answer.device)
    embedded = {"inputs_embeds": model.get_input_embeddings()(answer)[None]}
    answered = _states(model, embedded, after.expand(*prompt.positions.shape[:-1], -1), cache)

    control = set(mllm.tokenizer.get_added_vocab().values())
    last = int(prompt.cells.max())
    spoken = [place for place in range(last + 1, len(prompt.ids)) if int(prompt.ids[place]) not in control]
    context_ids = torch.cat([prompt.ids[spoken], answer])
    context = torch.cat([states[spoken], answered])
    rows = table[context_ids]
    seen = activations(states[prompt.cells], rows)
    heard = activations(context, rows)
    maps = []
    for place in range(len(spoken), len(context_ids)):
        activation = explained(place, context_ids, seen, heard)
        maps.append(rank_gaussian_filter(activation.reshape(prompt.grid)).cpu().numpy())
    return " ".join(mllm.tokenizer.decode(ids, skip_special_tokens=True).lower().split()), maps


def _layers(cache: DynamicCache) -> list[Any]:
    # All have `keys` and `values`, see `Prefix`.
    return list(cache.layers)


def _states(model: Any, inputs: dict[str, Any], positions: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Last hidden states (n, C) of one sequence that continues the cache, which is extended."""
    count = inputs["inputs_embeds"].shape[1]
    position_ids = positions.unsqueeze(-2).expand(*positions.shape[:-1], 1, count)
    states: torch.Tensor = model.get_decoder()(
        **inputs, position_ids=position_ids, past_key_values=cache, use_cache=True
    ).last_hidden_state[0]
    return states


class BestTokenDecaf(Decaf):
    """TAM with the answer token that the truth favours. Raises ValueError when it is asked without the truth."""

    def judge(self, score: Score) -> None:
        """Sets the score by which the map is chosen, the highest, for the questions that follow."""
        self.grounder = copy.copy(self.grounder)
        self.grounder.choose = lambda maps: int(np.argmax([score(one) for one in maps]))  # type: ignore[attr-defined]


def make(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """TAM with the first token of the answer."""
    return Decaf(models.mllm, models.sam2, config, Tam(models.mllm, config.engine))


def make_best(models: Models, config: DecafConfig, spec: MethodSpec) -> Decaf:
    """TAM with the best token of the answer."""
    grounder = Tam(models.mllm, config.engine)
    grounder.choose = _unjudged
    return BestTokenDecaf(models.mllm, models.sam2, config, grounder)


def _unjudged(maps: list[np.ndarray]) -> int:
    raise ValueError("tam-best: expected the truth, by which it chooses; it runs in an evaluation only")
