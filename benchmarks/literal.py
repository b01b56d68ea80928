"""Literal implementation of the paper: for reading, as the tests' oracle, and as the baseline of every speed claim.

Full attention matrices of every head, N x N products through the layers, one full pass per prompt, SAM 2 prompted point
by point. Nothing is cached, shared or batched. The baseline is still fair: attention that the method does not read uses
SDPA, only the last token enters the language model's head, and only answers that the method uses are decoded.

It shares these parts with the package: a model's chat format, positions, passes and decoding; the prompt texts; and
SAM 2's memory of one object. Tests compare them with transformers and the sam2 package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor
from transformers import DynamicCache

from decaf_ros.config import DecafConfig, SegmentationConfig
from decaf_ros.grounding.attention_tap import LayerAttention
from decaf_ros.grounding.grounder import category_of, resolve_start_layer, video_view
from decaf_ros.grounding.mllm import Answer, Mllm, decode, forward
from decaf_ros.grounding.prompts import background_prompt, choice_prompt, object_prompt
from decaf_ros.grounding.views import View
from decaf_ros.segmentation.memory import ObjectMemory
from decaf_ros.segmentation.sam2 import Sam2
from decaf_ros.segmentation.tracklets import Proposal
from decaf_ros.stages import finish
from decaf_ros.types import AttentionMaps, BranchMaps, Frame, Grounding, PointPrompts, Window


def literal_rollout(layers: Sequence[LayerAttention], visual: torch.Tensor, method: str = "v_max") -> torch.Tensor:
    """Eq. 1-4: (B, N) float32, the last row of R = A^(L) ... A^(start).

    Arguments as in `rollout_last_row`, without padding.
    """
    rollout = None
    for query, key, scaling in layers:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.float() @ key.float().transpose(2, 3) * scaling
        tokens = scores.shape[-1]
        scores.masked_fill_(torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).triu(1), float("-inf"))
        attention = scores.softmax(dim=-1)
        # Eq. 4: head weight = mean over queries of the largest attention to a visual token.
        columns = visual if method == "v_max" else torch.ones_like(visual)
        weight = attention.masked_fill(~columns[:, None, None], 0).amax(dim=-1).mean(dim=-1)
        weight = torch.ones_like(weight) if method == "mean" else weight / weight.amax(dim=1, keepdim=True)
        # Eq. 1-3: average heads, add the residual connection, multiply layers.
        aggregated = (weight[..., None, None] * attention).mean(dim=1)
        step = (aggregated + torch.eye(tokens, device=scores.device)) / 2
        rollout = step if rollout is None else step @ rollout
    return rollout[:, -1]


@torch.inference_mode()
def literal_ask(
    mllm: Mllm, view: View, text: str, start_layer: int, method: str = "v_max", max_new_tokens: int = 0
) -> tuple[np.ndarray, Answer]:
    """One prompt about one view: preprocessing, vision tower, one pass over all tokens, rollout, decoding.

    Returns the map (t, h, w) float32 and the answer (empty for max_new_tokens 0).
    """
    prompt = mllm.prompt(view.layout, text)
    images = np.stack([np.stack([frame.image for frame in unit]) for unit in view.units])
    inputs = mllm.embed(prompt.ids, prompt.slots, [mllm.encode(view.layout, images)])
    cache = DynamicCache() if max_new_tokens else None
    output = forward(mllm.model, inputs, prompt.positions, cache, start_layer, wants_token=True)
    row = literal_rollout(output.layers, prompt.visual[None], method)[0]
    answer = Answer("", True)
    if max_new_tokens:
        (answer,) = finish(decode(mllm, prompt, cache, output.logits, max_new_tokens))
    return row[prompt.cells].reshape(prompt.grid).cpu().numpy(), answer


def literal_grounding(mllm: Mllm, window: Window, query: str, config: DecafConfig) -> Grounding:
    """Sec. 3.2 and 3.3: as `Grounder.ground`, with both branches and contrast."""
    options, decodes = config.grounding, config.grounding.mode == "paper"
    start_layer = resolve_start_layer(options.start_layer, mllm.layers)
    video = video_view(mllm, window)
    layout = mllm.layout("frames", 1, window.size_hw)
    views = [video, *(View(layout, (frame,)) for frame in window.frames)]

    def ask_all(text: str, max_new_tokens: int) -> list[tuple[np.ndarray, Answer]]:
        return [literal_ask(mllm, view, text, start_layer, options.rollout, max_new_tokens) for view in views]

    text = object_prompt(query, options.object_prompt, options.wording)
    object_results = ask_all(text, config.mllm.max_new_tokens if decodes else 0)
    answers, category = (), ""
    if decodes:
        candidates = [Answer(answer.text.lower(), answer.finished) for _, answer in object_results]
        answers = tuple(candidate.text for candidate in candidates)
        text = choice_prompt(query, answers, options.choice_prompt, options.wording)
        category = category_of(_choice(mllm, text, config.mllm.max_new_tokens), candidates, options.wording)
    background = background_prompt(query, category, options.background_prompt if decodes else "v3", options.wording)
    maps = list(zip((map_ for map_, _ in object_results), (map_ for map_, _ in ask_all(background, 0))))
    branches = BranchMaps(*maps[0]), BranchMaps(*(np.concatenate(frame_maps) for frame_maps in zip(*maps[1:])))
    return Grounding(AttentionMaps(literal_fusion(*branches), *branches), category, answers)


def literal_fusion(video: BranchMaps, frames: BranchMaps) -> np.ndarray:
    """Sec. 3.3: contrast within each branch, then their mean on the finer grid: (T, h, w) float32 in [0, 1]."""
    video_contrast = _scaled(np.clip(_smoothed(video.object, 3) - _smoothed(video.background, 3), 0, 1))
    frame_contrast = np.clip(_smoothed(frames.object, 7) - _smoothed(frames.background, 7), 0, 1)
    frame_contrast = np.stack([_scaled(fine) for fine in frame_contrast])
    fused = np.zeros_like(frame_contrast)
    for number, fine in enumerate(frame_contrast):
        # Both frames of a temporal pair use the pair's map.
        coarse = torch.from_numpy(video_contrast[number // (-(-len(frames.object) // len(video_contrast)))])
        resized = torch.nn.functional.interpolate(coarse[None, None], size=fine.shape, mode="bilinear")[0, 0].numpy()
        fused[number] = (resized + fine) / 2
    return _scaled(fused)


def _smoothed(maps: np.ndarray, width: int) -> np.ndarray:
    """Each map convolved with a Gaussian (sigma 1, width x width tokens, zero padding)."""
    reach = width // 2
    bell = np.exp(-(np.arange(-reach, reach + 1) ** 2) / 2)
    kernel = np.outer(bell, bell) / bell.sum() ** 2
    height, length = maps.shape[1:]
    padded = np.pad(maps.astype(np.float64), ((0, 0), (reach, reach), (reach, reach)))
    parts = [
        kernel[row, column] * padded[:, row : row + height, column : column + length]
        for row, column in np.ndindex(width, width)
    ]
    return sum(parts).astype(np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    """Min-max scaling to [0, 1]; constant input becomes 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _choice(mllm: Mllm, text: str, max_new_tokens: int) -> Answer:
    prompt, cache = mllm.prompt(None, text), DynamicCache()
    inputs = mllm.embed(prompt.ids, prompt.slots, [()])
    output = forward(mllm.model, inputs, prompt.positions, cache, mllm.layers, wants_token=True)
    return finish(decode(mllm, prompt, cache, output.logits, max_new_tokens))[0]


def literal_predictor(sam2: Sam2, frame: Frame) -> SAM2ImagePredictor:
    """The published single-image predictor, with an image set."""
    predictor = SAM2ImagePredictor(sam2.model)
    # The predictor hard-codes the sizes for an image_size of 1024.
    predictor._bb_feat_sizes = [(sam2.image_size // stride,) * 2 for stride in (4, 8, 16)]
    with sam2.inference():
        predictor.set_image(np.array(frame.image))
    return predictor


def literal_masks(sam2: Sam2, predictor: SAM2ImagePredictor, xy: np.ndarray) -> list[tuple[torch.Tensor, float]]:
    """Mask (H, W) bool and predicted IoU of each point, one by one. xy: (P, 2) in [0, 1]."""
    height, width = predictor._orig_hw[-1]
    found = []
    for point in xy:
        with sam2.inference():
            masks, iou, _ = predictor.predict(point[None] * (width, height), np.array([1]), multimask_output=True)
        best = int(iou.argmax())
        found.append((torch.from_numpy(masks[best] > 0).to(sam2.device), float(iou[best])))
    return found


def literal_points(fused: np.ndarray, threshold: float) -> PointPrompts:
    """Eq. 5: the centre of every token at or above the threshold."""
    found = [(t, (x + 0.5) / fused.shape[2], (y + 0.5) / fused.shape[1], value)
             for (t, y, x), value in np.ndenumerate(fused) if value >= threshold]  # fmt: skip
    frame, x, y, value = np.array(found, np.float64).reshape(-1, 4).T
    return PointPrompts(frame.astype(np.int64), np.stack([x, y], 1).astype(np.float32), value.astype(np.float32))


class LiteralTracklet(NamedTuple):
    """A candidate. masks: (T, H, W) bool over the key frames. source, point_xy, attention, iou: see `Proposal`."""

    masks: torch.Tensor
    source: int
    point_xy: tuple[float, float]
    attention: float
    iou: float

    @property
    def score(self) -> float:
        return self.attention + self.iou


def literal_tracklets(
    sam2: Sam2, window: Window, points: PointPrompts, config: SegmentationConfig
) -> list[LiteralTracklet]:
    """Sec. 3.4, frame-wise prompting and propagation, with pairwise mask comparison and one object at a time."""
    proposals: list[LiteralTracklet] = []
    for frame in sorted(set(points.frame.tolist())):
        candidates = []
        here = np.flatnonzero(points.frame == frame)
        predictor = literal_predictor(sam2, window.frames[frame])
        for place, (mask, iou) in zip(here, literal_masks(sam2, predictor, points.xy[here])):
            if mask.any():
                candidates.append((float(points.value[place]) + iou, int(place), mask, iou))
        kept = []
        for candidate in sorted(candidates, key=lambda candidate: -candidate[0]):
            if all(_iou(candidate[2], other[2]) <= config.suppression_iou for other in kept):
                kept.append(candidate)
        survivors, deleted = [], set()
        for candidate in kept:
            rivals = [
                number
                for number, proposal in enumerate(proposals)
                if _iou(candidate[2], proposal.masks[frame]) > config.suppression_iou
            ]
            if all(proposals[number].score < candidate[0] for number in rivals):
                survivors.append(candidate)
                deleted |= set(rivals)
        proposals = [proposal for number, proposal in enumerate(proposals) if number not in deleted]
        if not survivors:
            continue
        tracks = literal_propagation(sam2, window, frame, [mask for _, _, mask, _ in survivors])
        for (_, place, _, iou), track in zip(survivors, tracks):
            x, y = points.xy[place].tolist()
            value = float(points.value[place])
            proposals.append(LiteralTracklet(track, frame, (x, y), value, iou))
    return proposals


def literal_propagation(sam2: Sam2, window: Window, source: int, masks: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Masks (T, H, W) bool of each object, propagated from its mask (H, W) on one key frame forwards, then backwards.

    As in the published video predictor, objects are processed one by one on every frame. A frame's embedding is shared
    by all objects of a run, but not between runs.
    """
    sam2.forget()
    frames, embedding = window.frames, sam2.embed(window.frames[source])
    memories = [ObjectMemory.start(sam2, embedding, mask[None].to(sam2.device), source, len(frames)) for mask in masks]
    tracks = [[None] * len(frames) for _ in masks]
    for track, memory in zip(tracks, memories):
        track[source] = memory.latest.masks[0]
    for order in (range(source + 1, len(frames)), range(source - 1, -1, -1)):
        for place in order:
            embedding = sam2.embed(frames[place])
            for track, memory in zip(tracks, memories):
                track[place] = memory.step(embedding).masks[0]
        if order.step > 0:
            for memory in memories:
                memory.rewind()
    return [torch.stack(track) for track in tracks]


def literal_scores(proposals: Sequence[LiteralTracklet | Proposal], fused: np.ndarray) -> list[float]:
    """Score of each tracklet: mean of attention, predicted IoU and attention consistency (Eq. 6-8)."""
    ratios = []
    for proposal in proposals:
        agreeing = whole = 0.0
        for attention, mask in zip(fused.astype(np.float64), proposal.masks):
            inside = attention > attention.mean()
            signed = np.where(inside, attention, -attention.max())
            pixels = torch.as_tensor(mask)[None].float().cpu()
            share = torch.nn.functional.adaptive_avg_pool2d(pixels, attention.shape)[0].numpy()
            agreeing += float((share * signed).sum())
            whole += float(signed[inside].sum())
        ratios.append(agreeing / whole if whole else 0.0)
    best = max(ratios, default=0.0)
    return [
        (proposal.attention + proposal.iou + (ratio / best if ratio > 0 else ratio)) / 3
        for proposal, ratio in zip(proposals, ratios)
    ]


def _iou(first: torch.Tensor, second: torch.Tensor) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0
