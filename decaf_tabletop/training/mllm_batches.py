"""Turns training examples into tensors, with several questions packed into one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen2TokenizerFast

from decaf_ros.grounding.families.qwen_vl import visual_positions
from decaf_tabletop.training.mllm_examples import FRAME_GRID, VIDEO_GRID, Example
from decaf_tabletop.training.mllm_model import HIDDEN

# As in `decaf_ros.grounding.families.qwen_vl` for two tokens and two frames per second.
TIME_STEP = 2.0
GRIDS = {"video": VIDEO_GRID, "image": FRAME_GRID}


class Pack(NamedTuple):
    """Questions about the same visual tokens (tokens, HIDDEN), the last one about the background; None: text only."""

    examples: list[Example]
    tokens: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of N tokens, padded on the right: a shared prefix, then Q questions, each with its one-token answer.

    A question attends to the prefix and to itself, so its answer is the one it would get alone, while the many visual
    tokens pass through the model once.

    Attributes:
        ids: (B, N) int64.
        question: (B, N) int64, 0 the shared prefix, k the k-th question, -1 padding.
        visual: (B, N) bool.
        positions: (3, B, N) int64, rotary positions.
        features: (V, HIDDEN) float32, all visual tokens in order.
        answer_at: (B, Q) int64, index of the answers in the sequence.
        answers: (B, Q) int64, token ids.
        focus: (B, Q, N) float32, relative desired attention, not normalised.
        segments: (B, N) int64, one number from 0 on for each object, or the background, in each temporal row; -1 for
            other tokens.
        cells: (B, N) int64, index of a visual token in (rows, h, w); -1 for other tokens.
        grid: h, w; (0, 0) without visual tokens.
        has_targets: (B, Q) bool, see `Example`.
        kinds: (B, Q) names.
    """

    ids: torch.Tensor
    question: torch.Tensor
    visual: torch.Tensor
    positions: torch.Tensor
    features: torch.Tensor
    answer_at: torch.Tensor
    answers: torch.Tensor
    focus: torch.Tensor
    segments: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int]
    has_targets: torch.Tensor
    kinds: tuple[tuple[str, ...], ...]

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, N, N) bool, query by key. Padding attends to itself, since a softmax over nothing is NaN."""
        length = self.question.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        query, key = self.question[:, :, None], self.question[:, None]
        return (causal & (query >= 0) & ((key == 0) | (key == query))) | torch.eye(length, dtype=torch.bool)

    @property
    def own_tokens(self) -> torch.Tensor:
        """(B, Q, N) bool: the shared prefix and the question's own tokens, without its answer."""
        questions = torch.arange(1, self.answer_at.shape[1] + 1)[:, None]
        own = (self.question[:, None] == 0) | (self.question[:, None] == questions)
        return own.scatter(2, self.answer_at[..., None], False)


class Writer:
    """Encodes examples as the adapter does: same chat template, same positions."""

    def __init__(self, tokenizer: Qwen2TokenizerFast, chat_template: str) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._chats: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def chat(self, kind: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids before and after the visual tokens; without any, all are after."""
        if not kind:  # category choices hardly repeat
            return self._chat(kind, text)
        if (kind, text) not in self._chats:
            self._chats[kind, text] = self._chat(kind, text)
        return self._chats[kind, text]

    def _chat(self, kind: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        content = [{"type": "text", "text": text}]
        if kind:
            content.insert(0, {"type": kind})
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        pad = f"<|{kind}_pad|>"
        before, after = chat.split(pad) if kind else ("", chat)
        return self._encode(before), self._encode(after)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(self, packs: list[Pack], keep: float, rng: np.random.Generator, short: bool = False) -> Batch:
        """packs: with equally many questions. keep: share of background tokens that are kept. short: use the short
        wording instead of the prompt."""
        rows = [self._row(pack, keep, short, rng) for pack in packs]
        size = (len(rows), max(len(row.ids) for row in rows))
        questions = len(packs[0].examples)
        ids, question = torch.full(size, self.tokenizer.pad_token_id), torch.full(size, -1)
        visual = torch.zeros(size, dtype=torch.bool)
        positions = torch.ones(3, *size, dtype=torch.int64)
        focus = torch.zeros(size[0], questions, size[1])
        segments, cells = torch.full(size, -1), torch.full(size, -1)
        for place, row in enumerate(rows):
            own = slice(len(row.ids))
            ids[place, own], question[place, own], visual[place, own] = row.ids, row.question, row.visual
            positions[:, place, own], focus[place, :, own] = row.positions, row.focus
            segments[place, own], cells[place, own] = row.segments, row.cells
        answer_at = torch.stack([row.answer_at for row in rows])
        return Batch(
            ids,
            question,
            visual,
            positions,
            torch.cat([row.features for row in rows]),
            answer_at,
            ids.gather(1, answer_at),
            focus,
            segments,
            cells,
            GRIDS.get(packs[0].examples[0].visual, (0, 0)),
            torch.tensor([[example.has_targets for example in pack.examples] for pack in packs]),
            tuple(tuple(example.name for example in pack.examples) for pack in packs),
        )

    def _row(self, pack: Pack, keep: float, short: bool, rng: np.random.Generator) -> _Row:
        shown = pack.examples[0]
        chats = [self.chat(shown.visual, example.short if short else example.text) for example in pack.examples]
        before = torch.tensor(chats[0][0], dtype=torch.int64)
        tails = []
        for example, (_, after) in zip(pack.examples, chats):
            (answer,) = self._encode(example.answer)
            tails.append(torch.tensor((*after, answer)))
        longest = max(map(len, tails))
        count = 0
        if shown.visual:
            h, w = GRIDS[shown.visual]
            count = shown.rows * h * w
        visual = torch.zeros(len(before) + count + longest, dtype=torch.bool)
        visual[len(before) : len(before) + count] = True
        if count:
            positions = visual_positions(visual[None], (shown.rows, h, w), TIME_STEP)[:, 0]
        else:
            positions = torch.arange(len(visual)).expand(3, -1)
        prefix_length = len(before) + count
        keep_token = torch.ones(prefix_length, dtype=torch.bool)
        focus = torch.zeros(len(tails), prefix_length)
        segments, cells = torch.full((prefix_length,), -1), torch.full((prefix_length,), -1)
        features = torch.zeros(0, HIDDEN)
        if count:
            keep_visual = (shown.owners.reshape(-1) > 0) | (rng.random(count) < keep)
            keep_token[len(before) :] = torch.from_numpy(keep_visual)
            focus[:, len(before) :] = torch.from_numpy(np.stack([example.focus for example in pack.examples]))
            starts = np.arange(shown.rows)[:, None, None] * (shown.owners.max() + 1)
            segments[len(before) :] = torch.from_numpy((starts + shown.owners).reshape(-1))
            cells[len(before) :] = torch.arange(count)
            features = torch.from_numpy(pack.tokens[keep_visual].astype(np.float32))
        pad = self.tokenizer.convert_tokens_to_ids(f"<|{shown.visual or 'video'}_pad|>")
        lengths = torch.tensor([len(tail) for tail in tails])
        questions = torch.arange(1, len(tails) + 1).repeat_interleave(lengths)
        not_visual = torch.zeros(len(questions), dtype=torch.bool)
        prefix_ids = torch.cat([before, torch.full((count,), pad)])[keep_token]
        return _Row(
            torch.cat([prefix_ids, *tails]),
            torch.cat([torch.zeros(len(prefix_ids), dtype=torch.int64), questions]),
            torch.cat([visual[:prefix_length][keep_token], not_visual]),
            torch.cat(
                [
                    positions[:, :prefix_length][:, keep_token],
                    *(positions[:, prefix_length : prefix_length + len(tail)] for tail in tails),
                ],
                dim=1,
            ),
            torch.cat([focus[:, keep_token], torch.zeros(len(tails), len(questions))], dim=1),
            torch.cat([segments[keep_token], torch.full((len(questions),), -1)]),
            torch.cat([cells[keep_token], torch.full((len(questions),), -1)]),
            len(prefix_ids) + lengths.cumsum(0) - 1,
            features,
        )


class _Row(NamedTuple):
    """One sequence of a batch, unpadded."""

    ids: torch.Tensor
    question: torch.Tensor
    visual: torch.Tensor
    positions: torch.Tensor
    focus: torch.Tensor
    segments: torch.Tensor
    cells: torch.Tensor
    answer_at: torch.Tensor
    features: torch.Tensor
