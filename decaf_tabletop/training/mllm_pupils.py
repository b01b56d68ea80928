"""Clips as the language model's training sees them: a teacher's questions, and visual tokens without their pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from decaf_tabletop.training.cpu import in_parallel
from decaf_tabletop.training.mllm_batches import Pack
from decaf_tabletop.training.mllm_lessons import FRAME_GRID, VIDEO_GRID, Teacher, image_visual, video_visual
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer
from decaf_tabletop.training.mllm_tower import TowerTrainer, shrink
from decaf_tabletop.training.mllm_words import NORM, meanings
from decaf_tabletop.world.clip import TabletopClip
from decaf_tabletop.world.store import read_clip

_MEANINGS = meanings().numpy()


class Pupil:
    """A teacher and the visual tokens of its clip: ideal ones, or the tower's."""

    def __init__(self, clip: TabletopClip, tower: TowerTrainer | None, images: int = 3) -> None:
        frames = np.sort(np.random.default_rng(clip.seed).choice(len(clip), images, replace=False))
        visuals = {"video": video_visual(clip), "image": image_visual(clip, frames)}
        self.features = None
        if tower is not None:
            self.features = {}
            for (name, visual), grid in zip(visuals.items(), (VIDEO_GRID, FRAME_GRID)):
                pairs = visual.rows if name == "video" else visual.rows[:, :1]
                pixels = np.stack([shrink(clip.images[pair], grid) for pair in pairs])
                tokens = torch.cat([tower.features(pixels[at : at + 8])[0] for at in range(0, len(pixels), 8)])
                self.features[name] = tokens.view(len(pairs), -1, tokens.shape[-1]).half().numpy()
        self.teacher = Teacher(clip, *visuals.values())
        # A few thousand clips fit into memory without their pictures (a copy: a view would keep them).
        self.teacher.clip = dataclasses.replace(clip, images=clip.images[:0].copy(), labels=clip.labels[:0].copy())

    def pack(self, rng: np.random.Generator, visual: str, count: int) -> Pack:
        """Questions about the same visual tokens; `visual` as in `Teacher.lessons`."""
        lessons = self.teacher.lessons(rng, visual, count)
        if not visual:
            return Pack(lessons, None)
        one = lessons[0]
        rows = slice(one.row, one.row + one.rows)
        if self.features is not None:
            tokens = self.features[visual][rows]
            return Pack(lessons, tokens.reshape(-1, tokens.shape[-1]))
        facts = self.teacher.visuals[visual].facts[rows] @ _MEANINGS
        tokens = np.concatenate([row[owners.reshape(-1)] for row, owners in zip(facts, one.owners)])
        noise = 0.3 * NORM / np.sqrt(tokens.shape[-1])
        return Pack(lessons, tokens + rng.normal(size=tokens.shape).astype(np.float32) * noise)


def pupils_of(files: list[Path], tower: TowerTrainer | None, workers: int) -> list[Pupil]:
    """Of clips; with `tower`, with its tokens."""
    # As arrays: tensors would be passed through shared memory, one file each.
    make = _PupilMaker(tower and {name: value.numpy() for name, value in tower.tower.state_dict().items()})
    return list(in_parallel(make, files, workers))


@dataclasses.dataclass
class _PupilMaker:
    """What another process needs to make pupils; weights: of the tower, or None."""

    weights: dict[str, np.ndarray] | None

    @torch.no_grad()
    def __call__(self, file: Path) -> Pupil:
        return Pupil(read_clip(file), self._tower())

    def _tower(self) -> TowerTrainer | None:
        if self.weights is None:
            return None
        if "tower" not in _MADE:
            _MADE["tower"] = TowerTrainer(new_model(new_tokenizer()))
            weights = {name: torch.from_numpy(value) for name, value in self.weights.items()}
            _MADE["tower"].tower.load_state_dict(weights)
        return _MADE["tower"]


_MADE: dict[str, TowerTrainer] = {}
