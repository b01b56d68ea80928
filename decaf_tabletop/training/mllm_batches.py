"""Questions to tensors: chat ids, visual features, positions, several questions to a sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from transformers import Qwen2TokenizerFast

from decaf_ros.grounding.families.qwen_vl import visual_positions
from decaf_tabletop.training.mllm_lessons import FRAME_GRID, VIDEO_GRID, Lesson
from decaf_tabletop.training.mllm_model import HIDDEN

# As in `decaf_ros.grounding.families.qwen_vl` with two tokens a second and two frames a second.
TIME_STEP = 2.0
GRIDS = {"video": VIDEO_GRID, "image": FRAME_GRID}


class Pack(NamedTuple):
    """Questions about the same visual tokens, (tokens, HIDDEN), the last one about the background; or about none."""

    lessons: list[Lesson]
    tokens: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Batch:
    """B sequences of N tokens, padded on the right: what Q questions share, then each question with its answer's first
    token. A question sees what is shared and itself, so that its answer is the one that it would get alone, and the
    shared tokens, of which there are many, pass through the model once.

    ids: (B, N). part: (B, N) int64, 0 shared, k the k-th question, -1 padding. visual: (B, N) bool.
    positions: (3, B, N). features: (V, HIDDEN) of all visual tokens in order. ends: (B, Q), where the answers are.
    answers: (B, Q). look: (B, Q, N) float32, how much is to be looked at a token, in shares of
    any sum. segments: (B, N) int64, tokens of the same object in the same temporal row have the same number from 0 on,
    and the surroundings of a row count as one; -1 where nothing is visual. cells: (B, N) int64, of a visual token the
    place in (rows, h, w); -1 elsewhere. grid: h, w; (0, 0) where nothing is visual. contrasted: (B, Q) bool, see
    `Lesson`. kinds: (B, Q) names.
    """

    ids: torch.Tensor
    part: torch.Tensor
    visual: torch.Tensor
    positions: torch.Tensor
    features: torch.Tensor
    ends: torch.Tensor
    answers: torch.Tensor
    look: torch.Tensor
    segments: torch.Tensor
    cells: torch.Tensor
    grid: tuple[int, int]
    contrasted: torch.Tensor
    kinds: tuple[tuple[str, ...], ...]

    @property
    def sees(self) -> torch.Tensor:
        """(B, N, N) bool: who attends to whom; padding to itself, for a softmax over nothing is not a number."""
        length = self.part.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        part, key = self.part[:, :, None], self.part[:, None]
        return (earlier & (part >= 0) & ((key == 0) | (key == part))) | torch.eye(length, dtype=torch.bool)

    @property
    def rows(self) -> torch.Tensor:
        """(B, Q, N) bool: the tokens of each question's own sequence, without its answer."""
        questions = torch.arange(1, self.ends.shape[1] + 1)[:, None]
        own = (self.part[:, None] == 0) | (self.part[:, None] == questions)
        return own.scatter(2, self.ends[..., None], False)


class Writer:
    """Writes lessons as the adapter would: the same chat template, the same positions."""

    def __init__(self, tokenizer: Qwen2TokenizerFast, chat_template: str) -> None:
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._chats: dict[tuple[str, str], tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def chat(self, kind: str, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and after the visual tokens; without any, all of them are after."""
        if not kind:  # the choices, of which hardly two are the same
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
        """packs: of as many questions each. keep: share of the tokens without an object that stay. short: the short
        wording instead of the prompt."""
        rows = [self._row(pack, keep, short, rng) for pack in packs]
        size = (len(rows), max(len(row.ids) for row in rows))
        questions = len(packs[0].lessons)
        ids, part = torch.full(size, self.tokenizer.pad_token_id), torch.full(size, -1)
        visual = torch.zeros(size, dtype=torch.bool)
        positions = torch.ones(3, *size, dtype=torch.int64)
        look = torch.zeros(size[0], questions, size[1])
        segments, cells = torch.full(size, -1), torch.full(size, -1)
        for place, row in enumerate(rows):
            own = slice(len(row.ids))
            ids[place, own], part[place, own], visual[place, own] = row.ids, row.part, row.visual
            positions[:, place, own], look[place, :, own] = row.positions, row.look
            segments[place, own], cells[place, own] = row.segments, row.cells
        ends = torch.stack([row.ends for row in rows])
        return Batch(
            ids,
            part,
            visual,
            positions,
            torch.cat([row.features for row in rows]),
            ends,
            ids.gather(1, ends),
            look,
            segments,
            cells,
            GRIDS.get(packs[0].lessons[0].visual, (0, 0)),
            torch.tensor([[lesson.contrasted for lesson in pack.lessons] for pack in packs]),
            tuple(tuple(lesson.name for lesson in pack.lessons) for pack in packs),
        )

    def _row(self, pack: Pack, keep: float, short: bool, rng: np.random.Generator) -> _Row:
        one = pack.lessons[0]
        chats = [self.chat(one.visual, lesson.short if short else lesson.text) for lesson in pack.lessons]
        before = torch.tensor(chats[0][0], dtype=torch.int64)
        tails = []
        for lesson, (_, after) in zip(pack.lessons, chats):
            (answer,) = self._encode(lesson.answer)
            tails.append(torch.tensor((*after, answer)))
        longest = max(map(len, tails))
        count = 0
        if one.visual:
            h, w = GRIDS[one.visual]
            count = one.rows * h * w
        visual = torch.zeros(len(before) + count + longest, dtype=torch.bool)
        visual[len(before) : len(before) + count] = True
        if count:
            places = visual_positions(visual[None], (one.rows, h, w), TIME_STEP)[:, 0]
        else:
            places = torch.arange(len(visual)).expand(3, -1)
        shared = len(before) + count
        stays = torch.ones(shared, dtype=torch.bool)
        look = torch.zeros(len(tails), shared)
        segments, cells = torch.full((shared,), -1), torch.full((shared,), -1)
        features = torch.zeros(0, HIDDEN)
        if count:
            kept = (one.owners.reshape(-1) > 0) | (rng.random(count) < keep)
            stays[len(before) :] = torch.from_numpy(kept)
            look[:, len(before) :] = torch.from_numpy(np.stack([lesson.look for lesson in pack.lessons]))
            starts = np.arange(one.rows)[:, None, None] * (one.owners.max() + 1)
            segments[len(before) :] = torch.from_numpy((starts + one.owners).reshape(-1))
            cells[len(before) :] = torch.arange(count)
            features = torch.from_numpy(pack.tokens[kept].astype(np.float32))
        pad = self.tokenizer.convert_tokens_to_ids(f"<|{one.visual or 'video'}_pad|>")
        lengths = torch.tensor([len(tail) for tail in tails])
        questions = torch.arange(1, len(tails) + 1).repeat_interleave(lengths)
        nothing = torch.zeros(len(questions), dtype=torch.bool)
        shared_ids = torch.cat([before, torch.full((count,), pad)])[stays]
        return _Row(
            torch.cat([shared_ids, *tails]),
            torch.cat([torch.zeros(len(shared_ids), dtype=torch.int64), questions]),
            torch.cat([visual[:shared][stays], nothing]),
            torch.cat(
                [places[:, :shared][:, stays], *(places[:, shared : shared + len(tail)] for tail in tails)], dim=1
            ),
            torch.cat([look[:, stays], torch.zeros(len(tails), len(questions))], dim=1),
            torch.cat([segments[stays], torch.full((len(questions),), -1)]),
            torch.cat([cells[stays], torch.full((len(questions),), -1)]),
            len(shared_ids) + lengths.cumsum(0) - 1,
            features,
        )


class _Row(NamedTuple):
    """One sequence of a batch, unpadded."""

    ids: torch.Tensor
    part: torch.Tensor
    visual: torch.Tensor
    positions: torch.Tensor
    look: torch.Tensor
    segments: torch.Tensor
    cells: torch.Tensor
    ends: torch.Tensor
    features: torch.Tensor
