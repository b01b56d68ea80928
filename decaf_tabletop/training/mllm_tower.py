"""Vision half of the table's MLLM training: a tower whose tokens are the sum of their facts' vectors (`mllm_words.py`).

Linear probes on the patches after SHAPE_LAYER layers have finer targets: the object's mask within the patch, its
category, and the offset to its centre. They make the tower learn shapes early, and are discarded afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from decaf_tabletop.training.cpu import patch_vision_tower
from decaf_tabletop.training.mllm_examples import Visual
from decaf_tabletop.training.mllm_model import MERGE, PATCH, SHAPE_LAYER, TOKEN_PX, VISION_HIDDEN
from decaf_tabletop.training.mllm_words import FACT_NORM, GROUPS, OFFSETS, fact_vectors, mirrored_facts
from decaf_tabletop.world.clip import TabletopClip

FINE = 4  # mask cells per patch side
SHARPNESS = 10.0  # inverse temperature: logit of a fact = SHARPNESS * its coefficient in the token


@dataclass(frozen=True, eq=False)
class Scenes:
    """S training images of one grid.

    Attributes:
        pixels: (S, 2, H, W, 3) uint8, temporal pairs, or (S, 1, H, W, 3), single frames.
        owners: (S, h, w) uint8, see `token_owners`.
        facts: (S, 6, FACTS) float16, of the background, then of up to five objects.
        fine: (S, h * MERGE * FINE, w * MERGE * FINE) uint8, owners of the mask cells.
        boxes: (S, 6, 4) float32, of the visible part of each object: centre x, y, width, height, relative to the image.
    """

    pixels: np.ndarray
    owners: np.ndarray
    facts: np.ndarray
    fine: np.ndarray
    boxes: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)

    def select(self, indices: np.ndarray) -> Scenes:
        return Scenes(*(getattr(self, name)[indices] for name in self.__dataclass_fields__))

    def augmented(self, rng: np.random.Generator) -> Scenes:
        """Mirrors half of the images, and varies the brightness of all."""
        flip = rng.random(len(self)) < 0.5
        pixels = self.pixels.astype(np.float32) * rng.uniform(0.8, 1.2, (len(self), 1, 1, 1, 1)).astype(np.float32)
        pixels = pixels.clip(0, 255).astype(np.uint8)
        owners, facts, fine, boxes = (array.copy() for array in (self.owners, self.facts, self.fine, self.boxes))
        pixels[flip] = pixels[flip][:, :, :, ::-1]
        owners[flip], fine[flip] = owners[flip][..., ::-1], fine[flip][..., ::-1]
        facts[flip] = facts[flip][..., _MIRRORED]
        boxes[flip, :, 0] = np.where(boxes[flip, :, 2] > 0, 1 - boxes[flip, :, 0], 0)
        return Scenes(pixels, owners, facts, fine, boxes)

    def cropped(self, side: int, rng: np.random.Generator) -> Scenes:
        """Crops side x side tokens around a random object of each image. Neighbours become undecided (0.5)."""
        parts = []
        for index in range(len(self)):
            owners, boxes = self.owners[index], self.boxes[index]
            visible = np.flatnonzero(boxes[:, 2] > 0)
            centre = boxes[rng.choice(visible), :2] if len(visible) else np.full(2, 0.5)
            room = np.array(owners.shape[::-1]) - side
            x, y = np.clip(np.round(centre * owners.shape[::-1] - side / 2), 0, room).astype(int)
            rows = [slice(y * step, (y + side) * step) for step in (1, TOKEN_PX, MERGE * FINE)]
            columns = [slice(x * step, (x + side) * step) for step in (1, TOKEN_PX, MERGE * FINE)]
            facts = self.facts[index].copy()
            facts[:, OFFSETS["neighbours"] :] = 0.5
            moved = boxes.copy()
            moved[:, :2] = (boxes[:, :2] * owners.shape[::-1] - (x, y)) / side
            moved[:, 2:] = boxes[:, 2:] * owners.shape[::-1] / side
            parts.append(
                (
                    self.pixels[index][:, rows[1], columns[1]],
                    owners[rows[0], columns[0]],
                    facts,
                    self.fine[index][rows[2], columns[2]],
                    moved,
                )
            )
        return Scenes(*(np.stack(part) for part in zip(*parts)))


def shrink(images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resizes (T, H, W, 3) uint8 to the pixels of a token grid, as the adapter does."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    size = [side * TOKEN_PX for side in grid]
    return resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True).permute(0, 2, 3, 1).numpy()


def scenes(clip: TabletopClip, visual: Visual, grid: tuple[int, int], rows: np.ndarray) -> Scenes:
    """The training images of some rows of `visual`."""
    frames = visual.frames[rows]
    single = (frames[:, 0] == frames[:, 1]).all()
    pixels = np.stack([shrink(clip.images[pair[:1] if single else pair], grid) for pair in frames])
    facts = np.zeros((len(rows), 6, visual.facts.shape[-1]), np.float16)
    facts[:, : visual.facts.shape[1]] = visual.facts[rows]
    height, width = (side * MERGE * FINE for side in grid)
    first_labels = clip.labels[frames[:, 0]]
    fine = np.stack([cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST) for labels in first_labels])
    boxes = np.stack([_boxes(labels) for labels in first_labels])
    return Scenes(pixels, visual.owners[rows].astype(np.uint8), facts, fine, boxes)


def _boxes(labels: np.ndarray) -> np.ndarray:
    boxes = np.zeros((6, 4), np.float32)
    height, width = labels.shape
    for k in range(1, 6):
        ys, xs = np.nonzero(labels == k)
        if len(xs):
            left, top, accuracy, bottom = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
            boxes[k] = (left + accuracy) / 2, (top + bottom) / 2, accuracy - left, bottom - top
    return boxes / np.array([width, height, width, height], np.float32)


def concatenated(parts: list[Scenes]) -> Scenes:
    return Scenes(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scenes.__dataclass_fields__))


def _mostly_inside(boxes: np.ndarray) -> torch.Tensor:
    """(S, 6) bool: whether at least 0.8 of the box's width and height lie within the image; true for the background."""
    centre, half = torch.from_numpy(boxes[..., :2]), torch.from_numpy(boxes[..., 2:]) / 2
    inside = (centre + half).clamp(0, 1) - (centre - half).clamp(0, 1)
    return (inside >= 0.8 * 2 * half).all(-1)


_MIRRORED = mirrored_facts()
_MEAN = torch.tensor(OPENAI_CLIP_MEAN) * 255
_SCALE = 1 / (torch.tensor(OPENAI_CLIP_STD) * 255)


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """(S, 1 or 2, H, W, 3) uint8 to (S * patches, 3 * 2 * PATCH**2) float32 in the processors' order.

    The MERGE x MERGE patches of a token are consecutive; axes within a patch: channel, time, row, column.
    """
    pixels = pixels.expand(-1, 2, -1, -1, -1)
    s, t, height, width, _ = pixels.shape
    h, w = height // TOKEN_PX, width // TOKEN_PX
    values = (pixels.float() - _MEAN) * _SCALE
    values = values.view(s, t, h, MERGE, PATCH, w, MERGE, PATCH, 3)
    values = values.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return values.reshape(s * h * w * MERGE**2, 3 * t * PATCH**2)


@torch.no_grad()
def whiten_patches(model: Qwen2_5_VLForConditionalGeneration, scenes: Scenes) -> None:
    """Initialises the patch embedding with the principal components of real patches, partly whitened.

    Random filters respond mainly to a patch's mean colour, which delays learning shapes. Three quarters of the filters
    take the mean of a temporal pair, the others its difference.
    """
    kernel = model.model.visual.patch_embed.proj.weight  # (VISION_HIDDEN, 3, 2, PATCH, PATCH)
    samples = patches(torch.from_numpy(scenes.pixels)).view(-1, 3, 2, PATCH, PATCH)
    size = 3 * PATCH**2
    counts = (len(kernel) * 3 // 4, len(kernel) // 4)
    filters = []
    for part, sign, count in zip((samples.mean(2), (samples[:, :, 1] - samples[:, :, 0]) / 2), (1.0, -1.0), counts):
        part = part.reshape(-1, size)
        values, vectors = torch.linalg.eigh(torch.cov(part.T))
        values = values[-count:].clamp(min=1e-4)
        # Half-way whitening: with equal variances the surface's grain would drown the objects.
        vectors = vectors[:, -count:] * values**-0.25 / values.sqrt().mean().sqrt()
        space = vectors.T.reshape(count, 3, 1, PATCH, PATCH)
        filters.append(torch.cat([space * sign, space], dim=2) / 2)
    kernel.copy_(torch.cat(filters))


class TowerTrainer:
    """Trains the vision tower of a model together with its probes."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        self.tower = model.model.visual.train()
        patch_vision_tower(self.tower)
        self.probes = nn.Linear(VISION_HIDDEN, FINE**2 + 4 + len(GROUPS["category"]))
        self.parameters = [*self.tower.parameters(), *self.probes.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
        self.fact_vectors = fact_vectors()

    def state_dict(self) -> dict:
        parts = {"tower": self.tower, "probes": self.probes, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict) -> None:
        self.tower.load_state_dict(state["tower"])
        self.probes.load_state_dict(state["probes"])
        self.optimizer.load_state_dict(state["optimizer"])

    @torch.no_grad()
    def check(self, batch: Scenes, size: int = 32) -> dict[str, float]:
        """Accuracy by fact group on held-out scenes."""
        starts = range(0, len(batch), size)
        parts = [self._loss(batch.select(np.arange(at, min(at + size, len(batch)))))[1] for at in starts]
        return {
            group: float(np.mean([part[group] for part in parts if group in part]))
            for group in (*GROUPS, "neighbours", "no_neighbours")
        }

    def features(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (S * h * w, HIDDEN), and patches after SHAPE_LAYER layers (S * h * w * MERGE**2, VISION_HIDDEN)."""
        s, _, height, width, _ = pixels.shape
        grid = torch.tensor([[1, height // PATCH, width // PATCH]]).expand(s, -1)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.tower(patches(torch.from_numpy(pixels)), grid_thw=grid, output_hidden_states=True)
        return output.pooler_output.float(), output.hidden_states[SHAPE_LAYER].float()

    def step(self, batches: list[Scenes], rate: float) -> dict[str, float]:
        """One update on scenes of several grids. Returns the loss, and the accuracy by fact group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        scores: dict[str, list[float]] = {}
        for batch in batches:
            loss, accuracy = self._loss(batch)
            loss.backward()
            for name, value in {"loss": loss.item(), **accuracy}.items():
                scores.setdefault(name, []).append(value)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return {name: float(np.nanmean(values)) for name, values in scores.items()}

    def _loss(self, batch: Scenes) -> tuple[torch.Tensor, dict[str, float]]:
        tokens, hidden = self.features(batch.pixels)
        owners = torch.from_numpy(batch.owners.astype(np.int64)).flatten(1)
        facts, inside = torch.from_numpy(batch.facts).float(), _mostly_inside(batch.boxes)
        target = facts.gather(1, owners[..., None].expand(-1, -1, facts.shape[-1])).flatten(0, 1)
        judged = inside.gather(1, owners).flatten()
        tokens, target, owners = tokens[judged], target[judged], owners.flatten()[judged]
        predicted = tokens @ (self.fact_vectors / self.fact_vectors.square().sum(1, keepdim=True)).T
        # The squared error leaves out the neighbours, which are the hardest and have a loss of their own.
        split = OFFSETS["neighbours"]
        wrong = (
            tokens - predicted[:, split:] @ self.fact_vectors[split:] - target[:, :split] @ self.fact_vectors[:split]
        )
        loss = wrong.square().sum(1).mean() / FACT_NORM**2
        accuracy = {}
        # Few tokens show motion, and fewer a fall: they get more weight.
        motion = OFFSETS["motion"] + np.array([GROUPS["motion"].index(name) for name in ("still", "fell")])
        counts = 1 + (owners > 0) * (1 - target[:, motion[0]]) + 2 * target[:, motion[1]]
        for group, names in GROUPS.items():
            part = slice(OFFSETS[group], OFFSETS[group] + len(names))
            in_group = target[:, part].sum(1) > 0
            logits, truth = predicted[in_group, part] * SHARPNESS, target[in_group, part]
            if len(truth):
                cross_entropy = F.cross_entropy(logits, truth, reduction="none") * counts[in_group]
                loss = loss + cross_entropy.sum() / counts[in_group].sum() * (2.0 if group == "category" else 1.0)
                accuracy[group] = (logits.argmax(1) == truth.argmax(1)).float().mean().item()
        logits, truth = (predicted[owners > 0, split:] - 0.5) * SHARPNESS, target[owners > 0, split:]
        clear = truth != 0.5
        if clear.any():
            logits, truth = logits[clear], truth[clear]
            loss = loss + 4 * F.binary_cross_entropy_with_logits(logits, truth, weight=1 + 2 * truth)
            accuracy["neighbours"] = (logits > 0)[truth == 1].float().mean().item()
            accuracy["no_neighbours"] = (logits < 0)[truth == 0].float().mean().item()
        return loss + self._fine_loss(hidden, batch), accuracy

    def _fine_loss(self, hidden: torch.Tensor, batch: Scenes) -> torch.Tensor:
        """Loss of the probes: the object's mask within each patch, its category, its centre and size."""
        s, height, width = batch.fine.shape
        h, w = height // (MERGE * FINE), width // (MERGE * FINE)
        fine = torch.from_numpy(batch.fine.astype(np.int64))
        cells = fine.view(s, h, MERGE, FINE, w, MERGE, FINE).permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, FINE**2)
        predicted = self.probes(hidden)
        loss = F.binary_cross_entropy_with_logits(predicted[:, : FINE**2], (cells > 0).float())
        owner = cells.max(1).values
        scene = torch.arange(s).repeat_interleave(h * w * MERGE**2)
        on_object = (owner > 0) & _mostly_inside(batch.boxes)[scene, owner]
        part = slice(OFFSETS["category"], OFFSETS["category"] + len(GROUPS["category"]))
        category = torch.from_numpy(batch.facts).float()[scene[on_object], owner[on_object], part].argmax(1)
        loss = loss + F.cross_entropy(predicted[on_object, FINE**2 + 4 :], category)
        # Offset to the object's centre, and its size, in units of two tokens.
        columns, rows = torch.meshgrid(torch.arange(w * MERGE), torch.arange(h * MERGE), indexing="xy")
        patch_centres = torch.stack([(columns + 0.5) / (w * MERGE), (rows + 0.5) / (h * MERGE)], dim=-1)
        patch_centres = (
            patch_centres.view(h, MERGE, w, MERGE, 2).permute(0, 2, 1, 3, 4).reshape(-1, 2).repeat(s, 1)[on_object]
        )
        box = torch.from_numpy(batch.boxes)[scene[on_object], owner[on_object]]
        tokens = torch.tensor([w, h], dtype=torch.float32)
        offsets = torch.cat([(box[:, :2] - patch_centres) * tokens, box[:, 2:] * tokens], dim=1) / 2
        return loss + F.smooth_l1_loss(predicted[on_object, FINE**2 : FINE**2 + 4], offsets)
