"""The second half of the demo MLLM's training: a language model that looks things up, and looks where the answer is.

Two phases, each of them needed. Short questions with few visual tokens teach the look-up; full prompts follow at once
when they come after it, and stay on a plateau when they come first. Then an auxiliary loss pulls to the target the
difference that the method makes of the rollouts through the upper layers: a model that answers perfectly need not look
at what it names.
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
from decaf_tabletop.training.mllm_words import meanings, word_meanings

TAP = "training_kept_attention"
# The rollout starts in the middle.
LOOKING_LAYERS = range(LAYERS // 2, LAYERS)
# Least share of the last token's attention that is visual: without a floor it learns to look at nothing.
MASS_FLOOR = 0.3
# Weight of the share of the attention that asking for what is not there moves.
MOVED = 10.0
# Weight of how unevenly high the targets are, and what share of their mean height is next to nothing in that.
UNEVEN, LEAST_HEIGHT = 2.0, 0.05
# Weight of what else stands high, and from what share of the targets' mean height it counts: well below the share of
# the maximum from which the method clicks. More than SPILL_MOST counts as that: where the targets hardly show at all,
# anything else is any number of times as high.
SPILL, SPILL_FROM, SPILL_MOST = 2.0, 0.3, 3.0
# Weights of where the background's question looks, if it names a category, and of all contrasts. Between looking at no
# object and at those of other categories lies looking at all of them, which costs every contrast its target: these are
# for a while in which it learns to exclude. Afterwards the contrasts alone keep it up, and are better for it: from what
# else the object's question looks at a little, it then takes away the surroundings, too.
EXCLUDING_WEIGHTS = 3.0, 0.1
# Width of the soft corner that the contrast has at 0 here, in shares of the mean rollout of a visual token.
SOFTNESS = 0.05


def _attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """attention_mask: (B, 1, N, N), added to the logits. The looking layers keep their attention (B, heads, N, N), with
    gradients."""
    logits = (query * scaling) @ key.transpose(-1, -2) + attention_mask
    # As two products, and not in float32: on a CPU the fused attention takes twice as long.
    weights = torch.softmax(logits, -1, dtype=logits.dtype)
    if module.layer_idx in LOOKING_LAYERS and module.training:
        module.kept = weights
    return (weights @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(TAP, _attention)


@dataclass
class Marks:
    """Running share of right answers, by kind and visual."""

    right: dict[str, deque] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=300)))
    looked: dict[str, deque] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=300)))

    def add(self, kind: str, right: bool, looked: float) -> None:
        self.right[kind].append(right)
        if not math.isnan(looked):
            self.looked[kind].append(looked)

    def of(self, names: tuple[str, ...]) -> float:
        """The worst of these kinds; 0 before there is one."""
        return min((sum(self.right[name]) / max(len(self.right[name]), 1) for name in names), default=0.0)

    def line(self) -> str:
        looked = {name: f"/{sum(values) / len(values):.2f}" for name, values in self.looked.items() if values}
        return " ".join(
            f"{name} {sum(values) / len(values):.2f}{looked.get(name, '')}"
            for name, values in sorted(self.right.items())
            if values
        )


class LanguageTrainer:
    """Trains everything of a model but its vision tower."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2TokenizerFast) -> None:
        self.model = model
        self.text = model.model.language_model
        self.text.set_attn_implementation(TAP)
        self.text.train()
        self.parameters = [*self.text.parameters(), *model.lm_head.parameters()]
        self.new_optimizer()
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.marks = Marks()

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
        """Word embeddings and the output head start at what the words mean to the vision tower."""
        vectors = meanings()
        table = self.text.embed_tokens.weight
        table.normal_(0, vectors.norm(dim=1).mean() / math.sqrt(table.shape[1]))
        for token, fact in word_meanings(tokenizer).items():
            table[token] = vectors[fact]
        self.model.lm_head.weight.copy_(table)

    def step(self, batch: Batch, rate: float, looking: float, excluding: bool = False) -> tuple[float, float]:
        """One update. looking: weight of the auxiliary loss. excluding: above all, of where the background's question
        looks. Returns both losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        said, looked = self._losses(batch, self.marks, excluding)
        self.optimizer.zero_grad()
        (said + looking * looked).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return said.item(), looked.item()

    @torch.no_grad()
    def check(self, batches: Iterable[Batch]) -> str:
        """Marks on questions that are not trained on, as a line."""
        marks = Marks()
        for batch in batches:
            self._losses(batch, marks)
        return marks.line()

    def logits(self, batch: Batch) -> torch.Tensor:
        """(B, Q, 2, vocabulary) float32, of the answer and of what follows it."""
        embedded = self.text.embed_tokens(batch.ids)
        embedded = embedded.masked_scatter(batch.visual[..., None], batch.features.to(embedded.dtype))
        sees = batch.sees
        bias = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill(~sees, -1e4)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.text(
                inputs_embeds=embedded,
                attention_mask=bias[:, None],
                position_ids=batch.positions,
                use_cache=False,
            ).last_hidden_state
            places = torch.stack([batch.ends - 1, batch.ends], dim=2)
            hidden = hidden[torch.arange(len(hidden))[:, None, None], places]
            return self.model.lm_head(hidden).float()

    def _losses(self, batch: Batch, marks: Marks, excluding: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.logits(batch)
        said = F.cross_entropy(logits[:, :, 0].flatten(0, 1), batch.answers.flatten())
        ends = torch.full((batch.answers.numel(),), self.end)
        said = said + 0.1 * F.cross_entropy(logits[:, :, 1].flatten(0, 1), ends)
        looked, shares = self._looking(batch, excluding)
        right = (logits[:, :, 0].argmax(-1) == batch.answers).flatten().tolist()
        kinds = [kind for of_one in batch.kinds for kind in of_one]
        for kind, is_right, share in zip(kinds, right, shares):
            marks.add(kind, is_right, share)
        return said, looked

    def _looking(self, batch: Batch, excluding: bool = False) -> tuple[torch.Tensor, list[float]]:
        """How far the contrast is from what is to be looked at (`contrast_losses`), and a floor on how much of each
        looking layer's attention is visual. What the rollouts of both questions have in common is left to the model,
        but for a while (`excluding`), see `background_losses`. Besides, of each question, the share of the contrast, of
        the background's that of its rollout, that lies where anything is to be looked at; not a number where there are
        no objects to look at."""
        asked = batch.look.any(2)
        if not bool(asked.any()):
            return torch.zeros(()), [math.nan] * batch.ends.numel()
        kept = [self.text.layers[layer].self_attn.kept for layer in LOOKING_LAYERS]
        last = (torch.arange(len(batch.ends))[:, None], batch.ends - 1)
        visual = batch.visual[:, None]
        rows = [attention.transpose(1, 2)[last].float().mean(2) * visual for attention in kept]
        floors = [F.relu(math.log(MASS_FLOOR) - torch.log(row.sum(2) + 1e-5))[asked].mean() for row in rows]

        rolled = last_rows_of_rollout(kept, batch) * visual
        made = contrast_losses(rolled, batch)[asked[:, :-1]].mean()
        if excluding and bool((excludes := batch.contrasted[:, -1]).any()):
            others, contrast = EXCLUDING_WEIGHTS
            made = contrast * made + others * background_losses(rolled, batch)[excludes].mean()
        hard = (rolled - rolled[:, -1:]).clamp(min=0).detach()
        hard[:, -1] = rolled[:, -1].detach()
        share = (hard * (batch.look > 0)).sum(2) / hard.sum(2).clamp(min=1e-9)
        share[~batch.contrasted] = math.nan
        return made + torch.stack(floors).mean(), share.flatten().tolist()


def contrast_losses(rolled: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q - 1), how far each question's contrast with the background's, the last one, is from what is to be looked
    at.

    rolled: (B, Q, N) rollout, 0 where nothing is visual. As the method has it, both maps are smoothed first: the
    background's question looks at what is beside a target, and of a small one smoothing then leaves little. Where a
    question has no target, its rollout shall be distributed as the background's is, so that little contrast is left.
    """
    background, visual = rolled[:, -1:], batch.visual[:, None]
    # Soft, or a target below the background would have no gradient.
    soft = (SOFTNESS * rolled.sum(2, keepdim=True) / visual.sum(2, keepdim=True).clamp(min=1)).detach() + 1e-9
    contrast = F.softplus(smoothed(rolled - background, batch) / soft) * soft * visual
    ideal = smoothed(batch.look, batch)
    wanted = ideal / ideal.sum(2, keepdim=True).clamp(min=1e-6)
    # The divergence is that of all tokens, most of which are the larger objects'.
    shown = divergence(wanted, contrast) + UNEVEN * unevenness(contrast, ideal, batch)
    shown = shown + SPILL * spill(contrast, ideal, batch)
    same = (background / background.sum(2, keepdim=True).clamp(min=1e-6)).detach()
    # The divergence of what is nearly the same is nearly nothing, and the method scales what is left up to 1.
    moved = (rolled / rolled.sum(2, keepdim=True).clamp(min=1e-6) - same).clamp(min=0).sum(2)
    alike = divergence(same, rolled) + MOVED * moved
    return torch.where(batch.contrasted, shown, alike)[:, :-1]


def background_losses(rolled: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B,), how far the rollout of the background's question is from what it is to look at. rolled: as above.

    The contrast asks for that only where a frame cannot show which object is meant, and alone does not teach it.
    """
    ideal = smoothed(batch.look, batch)[:, -1]
    wanted = ideal / ideal.sum(1, keepdim=True).clamp(min=1e-6)
    return divergence(wanted, smoothed(rolled, batch)[:, -1] * batch.visual)


def divergence(wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of weights (..., N), of any sum, from the distribution wanted (..., N): (...)."""
    parts = torch.log((weights + 1e-6) / (weights.sum(-1, keepdim=True) + 1e-4))
    return -(torch.special.entr(wanted) + wanted * parts).sum(-1)


def smoothed(maps: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q, N), as the method smooths maps. maps: (B, Q, N), of which the visual tokens count; those that were left
    out count as 0."""
    (h, w), (count, questions) = batch.grid, maps.shape[:2]
    rows = -(-(int(batch.cells.max()) + 1) // (h * w))
    # What is not visual goes to one more place, which is none.
    places = torch.where(batch.cells < 0, rows * h * w, batch.cells)[:, None].expand(maps.shape)
    images = maps.new_zeros(count, questions, rows * h * w + 1).scatter(2, places, maps)[..., :-1]
    kernel = VIDEO_KERNEL if batch.grid == GRIDS["video"] else FRAME_KERNEL
    images = smooth_tensor(images.reshape(-1, h, w), kernel).reshape(count, questions, -1)
    return F.pad(images, (0, 1)).gather(2, places)


def unevenness(contrast: torch.Tensor, ideal: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q), how far the heights are from each other that the targets have in the rows of tokens where they are seen:
    the mean deviation of their logarithms, absolute and squared. Each target in each row counts alike, however small it
    is.

    contrast, ideal: (B, Q, N), that of the model and one that is as it should be; heights are in relation to that.
    """
    asked = batch.look > 0
    places = (batch.segments + 1)[:, None].expand(batch.look.shape)
    sums = batch.look.new_zeros(*batch.look.shape[:2], int(batch.segments.max()) + 2)
    there = sums.scatter_add(2, places, asked.float()) > 0
    heights = sums.scatter_add(2, places, contrast * asked)
    heights = heights / sums.scatter_add(2, places, ideal * asked).clamp(min=1e-6)
    counts = there.sum(2, keepdim=True).clamp(min=1)
    mean = (heights * there).sum(2, keepdim=True) / counts
    logs = torch.log(heights / mean.clamp(min=1e-9) + LEAST_HEIGHT)
    middle = (logs * there).sum(2, keepdim=True) / counts
    off = (logs - middle) * there
    return (off.abs() + off.square()).sum(2) / counts[..., 0]


def spill(contrast: torch.Tensor, ideal: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(B, Q), how high the contrast stands where it should not, as the method sees it, which clicks on peaks: of each
    object that is not asked for, and of the surroundings, in each row of tokens the highest token, as a share of the
    targets' mean height, so far as that is above what smoothing an ideal one would leave there and SPILL_FROM, at most
    SPILL_MOST; summed over the objects, mean over the rows.

    contrast, ideal: (B, Q, N), that of the model and one that is as it should be.
    """
    asked, others = batch.look > 0, (batch.look == 0) & batch.visual[:, None]

    def shares(maps: torch.Tensor) -> torch.Tensor:
        mean = (maps * asked).sum(2, keepdim=True) / asked.sum(2, keepdim=True).clamp(min=1)
        return maps / mean.clamp(min=1e-9)

    above = F.relu(shares(contrast) - shares(ideal) - SPILL_FROM).clamp(max=SPILL_MOST) * others
    places = (batch.segments + 1)[:, None].expand(batch.look.shape)
    highest = above.new_zeros(*above.shape[:2], int(batch.segments.max()) + 2)
    highest = highest.scatter_reduce(2, places, above, "amax")
    h, w = batch.grid
    return highest.sum(2) / (batch.cells.amax(1)[:, None] // (h * w) + 1)


def last_rows_of_rollout(layers: Sequence[torch.Tensor], batch: Batch) -> torch.Tensor:
    """What `decaf_ros.grounding.rollout` computes for each question by itself, with gradients: (B, Q, N) float32.

    layers: (B, heads, N, N) each, bottom to top. The weights of the heads are taken as they are: without gradients.
    """
    own = batch.rows.float()
    row = torch.zeros(batch.look.shape).scatter_(2, batch.ends[..., None] - 1, 1.0)
    for attention in reversed(layers):
        top = (attention.detach() * batch.visual[:, None, None]).amax(-1).float()
        strength = torch.einsum("bhn,bqn->bqh", top, own)
        strength = strength / strength.amax(2, keepdim=True).clamp(min=1e-9)
        attended = (row[:, None].to(attention.dtype) @ attention).float()  # (B, heads, Q, N)
        row = (row + torch.einsum("bqh,bhqn->bqn", strength, attended) / strength.shape[2]) / 2
    return row
