"""Clips prepared for the language model's training: visual tokens instead of images, and a sampler of questions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from decaf_tabletop.training.cpu import parallel_map
from decaf_tabletop.training.mllm_batches import Pack
from decaf_tabletop.training.mllm_examples import FRAME_GRID, VIDEO_GRID, ExampleSampler, image_visual, video_visual
from decaf_tabletop.training.mllm_marked import marked_examples, marked_images, marked_objects
from decaf_tabletop.training.mllm_model import new_model, new_tokenizer
from decaf_tabletop.training.mllm_tower import TowerTrainer, shrink
from decaf_tabletop.training.mllm_words import FACT_NORM, fact_vectors
from decaf_tabletop.world.clip import TabletopClip
from decaf_tabletop.world.store import read_clip

_FACT_VECTORS = fact_vectors().numpy()


class EncodedClip:
    """The visual tokens of a clip, ideal ones or the tower's, and a sampler of questions about them.

    marked: for some objects the video's tokens with this object marked, see `marked_images`: (T, h * w, C) float16.
        None with ideal tokens, which show no marks.
    """

    def __init__(self, clip: TabletopClip, tower: TowerTrainer | None, images: int = 3) -> None:
        rng = np.random.default_rng(clip.seed)
        frames = np.sort(rng.choice(len(clip), images, replace=False))
        visuals = {"video": video_visual(clip), "image": image_visual(clip, frames)}
        self.sampler = ExampleSampler(clip, *visuals.values())
        self.features, self.marked = None, None
        if tower is not None:
            self.features = {}
            for (name, visual), grid in zip(visuals.items(), (VIDEO_GRID, FRAME_GRID)):
                pairs = visual.frames if name == "video" else visual.frames[:, :1]
                self.features[name] = _tokens(tower, clip.images, pairs, grid)
            pairs = visuals["video"].frames
            self.marked = {
                marked: _tokens(tower, marked_images(clip, marked, rng), pairs, VIDEO_GRID)
                for marked in marked_objects(self.sampler, rng)
            }
        # Drops the images, so that thousands of clips fit into memory. Copies: a view would keep them.
        self.sampler.clip = dataclasses.replace(clip, images=clip.images[:0].copy(), labels=clip.labels[:0].copy())

    def pack(self, rng: np.random.Generator, visual: str, count: int) -> Pack:
        """Draws `count` questions about the same visual tokens; `visual` as in `ExampleSampler.examples`."""
        examples = self.sampler.examples(rng, visual, count)
        if not visual:
            return Pack(examples, None)
        shown = examples[0]
        rows = slice(shown.row, shown.row + shown.rows)
        if self.features is not None:
            tokens = self.features[visual][rows]
            return Pack(examples, tokens.reshape(-1, tokens.shape[-1]))
        vectors = self.sampler.visuals[visual].facts[rows] @ _FACT_VECTORS
        tokens = np.concatenate([row[owners.reshape(-1)] for row, owners in zip(vectors, shown.owners)])
        noise = 0.3 * FACT_NORM / np.sqrt(tokens.shape[-1])
        return Pack(examples, tokens + rng.normal(size=tokens.shape).astype(np.float32) * noise)

    def marked_pack(self, rng: np.random.Generator, count: int) -> Pack:
        """Draws `count` questions about the video with one object marked. Raises ValueError for ideal tokens."""
        if self.marked is None:
            raise ValueError("marked_pack: expected the tokens of a tower, got ideal ones")
        marked = int(rng.choice(list(self.marked)))
        tokens = self.marked[marked]
        return Pack(marked_examples(self.sampler, rng, marked, count), tokens.reshape(-1, tokens.shape[-1]))


def _tokens(tower: TowerTrainer, images: np.ndarray, pairs: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The tower's tokens of single frames (T, 1) or pairs of frames (T, 2): (T, h * w, C) float16."""
    pixels = np.stack([shrink(images[pair], grid) for pair in pairs])
    tokens = torch.cat([tower.features(pixels[at : at + 8])[0] for at in range(0, len(pixels), 8)])
    return tokens.view(len(pairs), -1, tokens.shape[-1]).half().numpy()


def encode_clips(files: list[Path], tower: TowerTrainer | None, workers: int) -> list[EncodedClip]:
    """Reads and encodes clips, with the tokens of `tower`, or ideal ones if None."""
    # As arrays: each tensor would open a shared memory file.
    encoder = _ClipEncoder(tower and {name: value.numpy() for name, value in tower.tower.state_dict().items()})
    return list(parallel_map(encoder, files, workers))


@dataclasses.dataclass
class _ClipEncoder:
    """Picklable function that encodes a clip file. weights: of the tower, or None."""

    weights: dict[str, np.ndarray] | None

    @torch.no_grad()
    def __call__(self, file: Path) -> EncodedClip:
        return EncodedClip(read_clip(file), self._tower())

    def _tower(self) -> TowerTrainer | None:
        if self.weights is None:
            return None
        if "tower" not in _CACHE:
            _CACHE["tower"] = TowerTrainer(new_model(new_tokenizer()))
            weights = {name: torch.from_numpy(value) for name, value in self.weights.items()}
            _CACHE["tower"].tower.load_state_dict(weights)
        return _CACHE["tower"]


_CACHE: dict[str, TowerTrainer] = {}  # one per worker process
