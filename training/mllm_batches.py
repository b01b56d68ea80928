"""Questions to tensors: chat ids, visual features, positions, all padded on the left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2TokenizerFast

from decaf_ros.grounding.qwen_vl import visual_positions
from training.mllm_lessons import FRAME_GRID, VIDEO_GRID, Lesson
from training.mllm_model import HIDDEN

# As in `decaf_ros.grounding.qwen_vl` with two tokens a second and two frames a second.
TIME_STEP = 2.0
GRIDS = {"video": VIDEO_GRID, "image": FRAME_GRID}


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of N tokens: a question and its answer's first token, padded on the left.

    ids: (B, N). valid, visual: (B, N) bool. positions: (3, B, N). features: (V, HIDDEN) of all visual tokens in order.
    answer: (B,), which is also ids[:, -1]. sets: (B, N) int64, -1 where there is nothing to look at.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    visual: torch.Tensor
    positions: torch.Tensor
    features: torch.Tensor
    answer: torch.Tensor
    sets: torch.Tensor
    kinds: tuple[str, ...]  # with the visual, such as "motion video"


class Writer:
    """Writes lessons as the adapter would: the same chat template, the same positions."""

    def __init__(self, tokenizer: Qwen2TokenizerFast, chat_template: str) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._chats: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def chat(self, kind: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after the visual tokens."""
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
        before, after = chat.split(pad) if kind else (chat, "")
        return self._encode(before), self._encode(after)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def batch(
        self,
        lessons: list[tuple[Lesson, np.ndarray | None]],
        keep: float,
        rng: np.random.Generator,
        short: bool = False,
    ) -> Batch:
        """lessons: with their visual features (tokens, HIDDEN). keep: share of the tokens without an object that stay.
        short: the short wording instead of the prompt."""
        rows = [self._row(lesson, features, keep, short, rng) for lesson, features in lessons]
        length = max(len(row[0]) for row in rows)
        size = (len(rows), length)
        pad = self.tokenizer.pad_token_id
        ids, sets = torch.full(size, pad), torch.full(size, -1)
        valid, visual = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        positions = torch.ones(3, *size, dtype=torch.int64)
        for place, (row_ids, row_visual, row_positions, row_sets, _) in enumerate(rows):
            tail = slice(length - len(row_ids), length)
            ids[place, tail], visual[place, tail] = row_ids, row_visual
            positions[:, place, tail], sets[place, tail] = row_positions, row_sets
            valid[place, tail] = True
        features = torch.cat([row[4] for row in rows])
        return Batch(
            ids, valid, visual, positions, features, ids[:, -1], sets, tuple(lesson.name for lesson, _ in lessons)
        )

    def _row(
        self, lesson: Lesson, features: np.ndarray | None, keep: float, short: bool, rng: np.random.Generator
    ) -> tuple[torch.Tensor, ...]:
        before, after = self.chat(lesson.visual, lesson.short if short else lesson.text)
        (answer,) = self.tokenizer(lesson.answer, add_special_tokens=False)["input_ids"]
        tail = (*after, answer)
        if not lesson.visual:
            ids = torch.tensor(before + tail)
            nothing = torch.zeros(len(ids), dtype=torch.bool)
            positions = torch.arange(len(ids)).expand(3, -1)
            return ids, nothing, positions, torch.full((len(ids),), -1), torch.zeros(0, HIDDEN)
        h, w = GRIDS[lesson.visual]
        count = lesson.rows * h * w
        token = self.tokenizer.convert_tokens_to_ids(f"<|{lesson.visual}_pad|>")
        ids = torch.cat([torch.tensor(before), torch.full((count,), token), torch.tensor(tail)])
        visual = ids == token
        positions = visual_positions(visual[None], (lesson.rows, h, w), TIME_STEP)[:, 0]
        sets = torch.full((len(ids),), -1)
        sets[visual] = torch.from_numpy(lesson.sets)
        kept = np.ones(count, bool)
        if keep < 1:
            kept = (lesson.owners.reshape(-1) > 0) | (rng.random(count) < keep)
        stays = torch.ones(len(ids), dtype=torch.bool)
        stays[visual] = torch.from_numpy(kept)
        return (
            ids[stays],
            visual[stays],
            positions[:, stays],
            sets[stays],
            torch.from_numpy(features[kept].astype(np.float32)),
        )
