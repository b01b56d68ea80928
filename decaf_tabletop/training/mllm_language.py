"""Language half of the table's MLLM training: answer a question, and attend to the target while answering.

Short questions on few visual tokens come first: full prompts then train at once, but stay on a plateau without them.
With the full prompts, an auxiliary loss moves the method's contrast (the difference of the rollouts through the upper
layers) to the target, because a model that answers perfectly need not attend to what it names.

The part common to both rollouts has no loss (but see EXCLUDING_WEIGHTS). A loss on the last token's attention alone
made the rollout cover all objects alike; a loss on the object question's own rollout, next to that on the difference,
left nothing for the subtraction to do.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2TokenizerFast
from transformers.modeling_utils import AttentionInterface

from decaf_ros.grounding.fusion import FRAME_KERNEL, VIDEO_KERNEL, smooth_tensor
from decaf_tabletop.training.mllm_batches import GRIDS, Batch
from decaf_tabletop.training.mllm_model import LAYERS
from decaf_tabletop.training.mllm_words import fact_vectors, word_facts

ATTENTION_NAME = "training_kept_attention"
# As in the method, the rollout starts at the middle layer.
ROLLOUT_LAYERS = range(LAYERS // 2, LAYERS)
# Lower bound on the visual share of the last token's attention. Without it, attention leaves the visual tokens.
VISUAL_MASS_FLOOR = 0.3
# Weight of the attention that an absent target moves, compared with the background question.
ABSENT_SHIFT_WEIGHT = 10.0
# `unevenness`: its weight, and the offset in the logarithm, as a share of the targets' mean height. The divergence
# counts tokens and so neglects a small target, or one in the rows where it rests; unevenness counts all alike.
UNEVENNESS_WEIGHT, HEIGHT_EPSILON = 2.0, 0.05
# `spill`: its weight; the share of the targets' mean height from which a peak counts, well below the method's click
# threshold; and a cap per peak, because the ratio explodes while the targets hardly show. The divergence forgives a
# single high token next to the target, which the method would click.
SPILL_WEIGHT, SPILL_THRESHOLD, SPILL_MAX = 2.0, 0.3, 3.0
# Weights of `background_losses` and of the contrasts, for one phase. To attend to the objects of other categories,
# the background question first attends to all objects, which removes every contrast's target; the contrasts alone did
# not get past that in 13 minutes. Kept on after the phase, this loss costs the contrasts (share on the target 0.72
# instead of 0.83 for attributes); without it they recover.
EXCLUDING_WEIGHTS = 3.0, 0.1
# Width of the softplus that replaces the contrast's clamp at 0, as a share of the mean rollout of a visual token.
SOFTNESS = 0.05


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """attention_mask: (B, 1, N, N), added to the logits. ROLLOUT_LAYERS store their attention (B, heads, N, N) in
    `module.kept`, with gradients."""
    logits = (query * scaling) @ key.transpose(-1, -2) + attention_mask
    # Two products, and not in float32: the fused kernel takes twice as long on a CPU.
    weights = torch.softmax(logits, -1, dtype=logits.dtype)
    if module.layer_idx in ROLLOUT_LAYERS and module.training:
        module.kept = weights
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, _attention)


@dataclass
class Scores:
    """Running accuracy, and share of the contrast on the target, by kind of question (last 300 each)."""

    correct: dict[str, deque[bool]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=300)))
    on_target: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=300)))

    def add(self, kind: str, correct: bool, on_target: float) -> None:
        """on_target: NaN for a question without targets."""
        self.correct[kind].append(correct)
        if not math.isnan(on_target):
            self.on_target[kind].append(on_target)

    def worst_accuracy(self, kinds: tuple[str, ...]) -> float:
        """The lowest accuracy of these kinds; 0 for a kind that was not asked yet."""
        return min((sum(self.correct[kind]) / max(len(self.correct[kind]), 1) for kind in kinds), default=0.0)

    def line(self) -> str:
        """Accuracy of each kind, and share on the target: "motion 0.93/0.84 ..."."""
        shares = {kind: f"/{sum(values) / len(values):.2f}" for kind, values in self.on_target.items() if values}
        return " ".join(
            f"{kind} {sum(values) / len(values):.2f}{shares.get(kind, '')}"
            for kind, values in sorted(self.correct.items())
            if values
        )


class LanguageTrainer:
    """Trains a model except its vision tower."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast) -> None:
        self.model = model
        self.text = model.model.language_model
        self.text.set_attn_implementation(ATTENTION_NAME)
        self.text.train()
        self.parameters = [*self.text.parameters(), *model.lm_head.parameters()]
        self.new_optimizer()
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.scores = Scores()

    def new_optimizer(self) -> None:
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))

    def state_dict(self) -> dict:
        parts = {"text": self.text, "head": self.model.lm_head, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict) -> None:
        self.text.load_state_dict(state["text"])
        self.model.lm_head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def start_from_words(self, tokenizer: Qwen2TokenizerFast) -> None:
        """Initialises word embeddings and output head with the vectors of the facts the words denote."""
        vectors = fact_vectors()
        table = self.text.embed_tokens.weight
        table.normal_(0, vectors.norm(dim=1).mean() / math.sqrt(table.shape[1]))
        for token, fact in word_facts(tokenizer).items():
            table[token] = vectors[fact]
        self.model.lm_head.weight.copy_(table)

    def step(self, batch: Batch, rate: float, attention_weight: float, excluding: bool = False) -> tuple[float, float]:
        """One update; returns the answer loss and the attention loss.

        attention_weight: of the attention loss. excluding: emphasise the background question's attention, see
        EXCLUDING_WEIGHTS.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        answer_loss, attention_loss = self._losses(batch, self.scores, excluding)
        self.optimizer.zero_grad()
        (answer_loss + attention_weight * attention_loss).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return answer_loss.item(), attention_loss.item()

    @torch.no_grad()
    def check(self, batches: Iterable[Batch]) -> str:
        """`Scores.line` on held-out questions."""
        scores = Scores()
        for batch in batches:
            self._losses(batch, scores)
        return scores.line()

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, Q, 2, vocabulary) float32, of the answer and of the token after it."""
        embedded = self.text.embed_tokens(batch.ids)
        embedded = embedded.masked_scatter(batch.visual[..., None], batch.features.to(embedded.dtype))
        mask = batch.attention_mask
        bias = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, -1e4)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.text(
                inputs_embeds=embedded,
                attention_mask=bias[:, None],
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            places = torch.stack([batch.answer_at - 1, batch.answer_at], dim=2)
            hidden = hidden[torch.arange(len(hidden))[:, None, None], places]
            return self.model.lm_head(hidden).float()

    def _losses(self, batch: Batch, scores: Scores, excluding: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(batch)
        answer_loss = F.cross_entropy(logits[:, :, 0].flatten(0, 1), batch.answers.flatten())
        end_tokens = torch.full((batch.answers.numel(),), self.end)
        answer_loss = answer_loss + 0.1 * F.cross_entropy(logits[:, :, 1].flatten(0, 1), end_tokens)
        attention_loss, on_target = self._attention_loss(batch, excluding)
        correct = (logits[:, :, 0].argmax(-1) == batch.answers).flatten().tolist()
        kinds = [kind for sequence in batch.kinds for kind in sequence]
        for kind, is_correct, share in zip(kinds, correct, on_target):
            scores.add(kind, is_correct, share)
        return answer_loss, attention_loss

    def _attention_loss(self, batch: Batch, excluding: bool = False) -> tuple[torch.Tensor, list[float]]:
        """The attention loss, and for each question the share of its map on its targets, NaN without targets.

        The loss is the mean of `contrast_losses`, with `background_losses` if `excluding`, plus a lower bound on the
        visual share of each rollout layer's attention. The map is the contrast, or the background question's rollout.
        """
        has_focus = batch.focus.any(2)
        if not bool(has_focus.any()):
            return torch.zeros(()), [math.nan] * batch.answer_at.numel()
        layers = [self.text.layers[layer].self_attn.kept for layer in ROLLOUT_LAYERS]
        last = (torch.arange(len(batch.answer_at))[:, None], batch.answer_at - 1)
        visual = batch.visual[:, None]
        rows = [attention.transpose(1, 2)[last].float().mean(2) * visual for attention in layers]
        floors = [F.relu(math.log(VISUAL_MASS_FLOOR) - torch.log(row.sum(2) + 1e-5))[has_focus].mean() for row in rows]

        rollouts = last_rows_of_rollout(layers, batch) * visual
        loss = contrast_losses(rollouts, batch)[has_focus[:, :-1]].mean()
        if excluding and bool((excludes := batch.has_targets[:, -1]).any()):
            background_weight, contrast_weight = EXCLUDING_WEIGHTS
            background = background_losses(rollouts, batch)[excludes].mean()
            loss = contrast_weight * loss + background_weight * background
        maps = (rollouts - rollouts[:, -1:]).clamp(min=0).detach()
        maps[:, -1] = rollouts[:, -1].detach()
        on_target = (maps * (batch.focus > 0)).sum(2) / maps.sum(2).clamp(min=1e-9)
        on_target[~batch.has_targets] = math.nan
        return loss + torch.stack(floors).mean(), on_target.flatten().tolist()


def contrast_losses(rollouts: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q - 1): distance of each question's contrast with the background question from its desired attention.

    rollouts: (B, Q, N), 0 for non-visual tokens; the background question is the last.

    With targets: divergence, unevenness and spill of the smoothed difference. Smoothing comes first, as in the method:
    the background question attends next to a target, and smoothing then leaves little of a small one. Without targets:
    the rollout shall be distributed like the background question's, so that no contrast remains.
    """
    background, visual = rollouts[:, -1:], batch.visual[:, None]
    # Softplus instead of the clamp: a target below the background would have no gradient.
    width = (SOFTNESS * rollouts.sum(2, keepdim=True) / visual.sum(2, keepdim=True).clamp(min=1)).detach() + 1e-9
    contrast = F.softplus(smoothed(rollouts - background, batch) / width) * width * visual
    ideal = smoothed(batch.focus, batch)
    target = ideal / ideal.sum(2, keepdim=True).clamp(min=1e-6)
    present = divergence(target, contrast) + UNEVENNESS_WEIGHT * unevenness(contrast, ideal, batch)
    present = present + SPILL_WEIGHT * spill(contrast, ideal, batch)
    unchanged = (background / background.sum(2, keepdim=True).clamp(min=1e-6)).detach()
    # The divergence of a small shift is nearly 0, but the method scales the remaining contrast up to 1.
    moved = (rollouts / rollouts.sum(2, keepdim=True).clamp(min=1e-6) - unchanged).clamp(min=0).sum(2)
    absent = divergence(unchanged, rollouts) + ABSENT_SHIFT_WEIGHT * moved
    return torch.where(batch.has_targets, present, absent)[:, :-1]


def background_losses(rollouts: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,): divergence of the background question's smoothed rollout from the objects it does not exclude.

    rollouts: as in `contrast_losses`. The contrasts need this only where a frame cannot show which object is meant, and
    do not teach it alone.
    """
    ideal = smoothed(batch.focus, batch)[:, -1]
    target = ideal / ideal.sum(1, keepdim=True).clamp(min=1e-6)
    return divergence(target, smoothed(rollouts, batch)[:, -1] * batch.visual)


def divergence(target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of unnormalised `weights` (..., N) from the distribution `target` (..., N): (...)."""
    logs = torch.log((weights + 1e-6) / (weights.sum(-1, keepdim=True) + 1e-4))
    return -(torch.special.entr(target) + target * logs).sum(-1)


def smoothed(maps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q, N): `maps` (B, Q, N) smoothed as in the method. Non-visual tokens are ignored, dropped ones count as 0."""
    (h, w), (count, questions) = batch.grid, maps.shape[:2]
    rows = -(-(int(batch.cells.max()) + 1) // (h * w))
    # Non-visual tokens go to one extra place, which is cut off.
    places = torch.where(batch.cells < 0, rows * h * w, batch.cells)[:, None].expand(maps.shape)
    images = maps.new_zeros(count, questions, rows * h * w + 1).scatter(2, places, maps)[..., :-1]
    kernel = VIDEO_KERNEL if batch.grid == GRIDS["video"] else FRAME_KERNEL
    images = smooth_tensor(images.reshape(-1, h, w), kernel).reshape(count, questions, -1)
    return F.pad(images, (0, 1)).gather(2, places)


def unevenness(contrast: torch.Tensor, ideal: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q): spread of the targets' heights, the mean absolute plus squared deviation of their logarithms.

    A height is the contrast of one target in one temporal row, relative to the ideal contrast there. All heights count
    equally, whatever the target's size.

    contrast, ideal: (B, Q, N).
    """
    targeted = batch.focus > 0
    places = (batch.segments + 1)[:, None].expand(batch.focus.shape)
    sums = batch.focus.new_zeros(*batch.focus.shape[:2], int(batch.segments.max()) + 2)
    present = sums.scatter_add(2, places, targeted.float()) > 0
    heights = sums.scatter_add(2, places, contrast * targeted)
    heights = heights / sums.scatter_add(2, places, ideal * targeted).clamp(min=1e-6)
    counts = present.sum(2, keepdim=True).clamp(min=1)
    mean = (heights * present).sum(2, keepdim=True) / counts
    logs = torch.log(heights / mean.clamp(min=1e-9) + HEIGHT_EPSILON)
    mean_log = (logs * present).sum(2, keepdim=True) / counts
    deviation = (logs - mean_log) * present
    return (deviation.abs() + deviation.square()).sum(2) / counts[..., 0]


def spill(contrast: torch.Tensor, ideal: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q): peaks of the contrast off the targets, which the method would click.

    For each other object, and the background, in each temporal row: its highest token as a share of the targets' mean
    height, minus the same share of the ideal contrast and SPILL_THRESHOLD, clamped to [0, SPILL_MAX]. Summed over
    objects, averaged over rows.

    contrast, ideal: (B, Q, N).
    """
    targeted, others = batch.focus > 0, (batch.focus == 0) & batch.visual[:, None]

    def shares(maps: torch.Tensor) -> torch.Tensor:
        mean = (maps * targeted).sum(2, keepdim=True) / targeted.sum(2, keepdim=True).clamp(min=1)
        return maps / mean.clamp(min=1e-9)

    above = F.relu(shares(contrast) - shares(ideal) - SPILL_THRESHOLD).clamp(max=SPILL_MAX) * others
    places = (batch.segments + 1)[:, None].expand(batch.focus.shape)
    highest = above.new_zeros(*above.shape[:2], int(batch.segments.max()) + 2)
    highest = highest.scatter_reduce(2, places, above, "amax")
    h, w = batch.grid
    return highest.sum(2) / (batch.cells.amax(1)[:, None] // (h * w) + 1)


def last_rows_of_rollout(layers: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """(B, Q, N) float32: the rollout of `decaf_ros.grounding.rollout` for each question alone, with gradients.

    layers: attention (B, heads, N, N) each, bottom to top. Head weights carry no gradient.
    """
    own = batch.own_tokens.float()
    row = torch.zeros(batch.focus.shape).scatter_(2, batch.answer_at[..., None] - 1, 1.0)
    for attention in reversed(layers):
        top = (attention.detach() * batch.visual[:, None, None]).amax(-1).float()
        strength = torch.einsum("bhn,bqn->bqh", top, own)
        strength = strength / strength.amax(2, keepdim=True).clamp(min=1e-9)
        attended = (row[:, None].to(attention.dtype) @ attention).float()  # (B, heads, Q, N)
        row = (row + torch.einsum("bqh,bhqn->bqn", strength, attended) / strength.shape[2]) / 2
    return row
